"""A judge's rescues where the drafts of several requests lie end to end, one row each, as serving engines lay them out.

Pure tensor functions: no synchronisation with the device, nothing known about any engine. Instead of replacing an
engine's rejection sampler, the rows of rescued tokens are rewritten so that every sampler accepts them; which prefix of
a draft stands, what replaces a rejected token, and all counting stay the engine's.
"""

from __future__ import annotations

import torch

FORCED = 1e8  # a score above this is no model's: an engine forces that token (vLLM adds 1e9 to end a thinking budget)


def stop_tokens(table: torch.Tensor, ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Where a drafted token would end its own request's answer.

    Args:
        table: (requests, s) integer, each request's stop tokens, padded with any negative number.
        ids: (n,) integer, drafted tokens of request 0, then of request 1, ...
        ends: (requests,) integer, cumulative numbers of drafted tokens: request r has those before ``ends[r]``.

    Returns:
        (n,) bool.
    """
    position = torch.arange(ids.shape[0], device=ids.device, dtype=ends.dtype)
    request = torch.searchsorted(ends, position, right=True)
    return (table[request] == ids.unsqueeze(1)).any(dim=1)


def rescuable(
    judged: torch.Tensor,
    hidden: torch.Tensor,
    scores: torch.Tensor,
    ids: torch.Tensor,
    stop: torch.Tensor | None = None,
) -> torch.Tensor:
    """Where the judge's word counts: what `hf_judge.verify.rule.decide` lets a judge rescue.

    Args:
        judged: (n,) bool, where the judge accepts.
        hidden: (n, D) float, the target's states at the drafted tokens themselves.
        scores: (n, V) float, the rows that predict the drafted tokens, after every constraint (grammar masks, banned
            and allowed tokens) and before what merely shapes the distribution (temperature, top-k, top-p).
        ids: (n,) integer, the drafted tokens; negative: no token.
        stop: (n,) bool, the token ends the answer; None: none does, or they may be rescued.

    Returns:
        (n,) bool: the judge accepts, state and score are finite, no constraint forbids the token or forces another one.
    """
    drafted = scores.gather(1, ids.long().clamp(min=0).unsqueeze(1)).squeeze(1)
    # NaN compares false; the dtype's minimum is how some masks spell -inf
    allowed = drafted.abs() < torch.finfo(scores.dtype).max
    forced_otherwise = (scores.amax(dim=1) > FORCED) & (drafted <= FORCED)
    rescued = judged & (ids >= 0) & allowed & ~forced_otherwise & hidden.isfinite().all(dim=1)
    return rescued if stop is None else rescued & ~stop


def force_(scores: torch.Tensor, ids: torch.Tensor, rescued: torch.Tensor) -> torch.Tensor:
    """Leave the drafted token alone in its row, in place: it is the argmax, and p = 1 passes any ``u <= p / q``.

    Temperature, top-k and top-p keep such a row as it is.

    Args:
        scores: (n, V) float.
        ids: (n,) integer.
        rescued: (n,) bool, the rows to rewrite; the others keep their values bit for bit.

    Returns:
        `scores`.
    """
    at, rows = ids.long().clamp(min=0).unsqueeze(1), rescued.unsqueeze(1)
    drafted = scores.gather(1, at).masked_fill(rows, 0.0)
    return scores.masked_fill_(rows, float("-inf")).scatter_(1, at, drafted)
