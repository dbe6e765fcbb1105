"""Rescue tokens where the drafts of several requests lie end to end, one position after another, as engines lay them.

Pure tensor functions without synchronisation with the device. They replace no engine's rejection sampler, but rewrite
the scores of rescued tokens so that every sampler accepts these. The engine still decides which prefix of a draft
stands and what replaces a rejected token, and counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

FORCED = 1e8  # a score above this is no model's: an engine forces that token (vLLM adds 1e9 to end a thinking budget)


def requests_of(ends: torch.Tensor, n: int) -> torch.Tensor:
    """Find the request of each drafted token.

    Args:
        ends: (requests,) integer, cumulative numbers of drafted tokens: those of request r end before ``ends[r]``.
        n: number of drafted tokens.

    Returns:
        (n,) int64.
    """
    position = torch.arange(n, device=ends.device, dtype=ends.dtype)
    return torch.searchsorted(ends, position, right=True)


def stop_tokens(table: torch.Tensor, ids: torch.Tensor, request: torch.Tensor) -> torch.Tensor:
    """Find the drafted tokens that would end the answer of their request.

    Args:
        table: (requests, s) integer, each request's stop tokens, padded with -1.
        ids: (n,) integer, the drafted tokens; negative: no token.
        request: (n,) integer, the row of `table` of each drafted token.

    Returns:
        (n,) bool.
    """
    return (table[request] == ids.unsqueeze(1)).any(dim=1)


def stop_table(stops: Sequence[Collection[int]], device: torch.device) -> torch.Tensor:
    """Make the table of `stop_tokens` on a device, without waiting for it.

    Args:
        stops: stop tokens of each request.
        device: device of the table.

    Returns:
        (requests, s) int32.
    """
    width = max(map(len, stops), default=0)
    rows = [sorted(tokens) + [-1] * (width - len(tokens)) for tokens in stops]
    table = torch.tensor(rows, dtype=torch.int32).view(len(rows), width)
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def rescuable(
    judged: torch.Tensor,
    hidden: torch.Tensor,
    scores: torch.Tensor,
    ids: torch.Tensor,
    stop: torch.Tensor | None = None,
) -> torch.Tensor:
    """Find the tokens that the judge may rescue, by the rules of `hf_judge.verify.decide`.

    Args:
        judged: (n,) bool, where the judge accepts.
        hidden: (n, D) float, the target's states at the drafted tokens themselves.
        scores: (n, V) float, the target's scores that predict the drafted tokens, after every constraint (grammar
            masks, banned and allowed tokens) and before what only shapes the distribution (temperature, top-k, top-p).
        ids: (n,) integer, the drafted tokens; negative: no token.
        stop: (n,) bool, whether the token ends the answer; None: no token does, or such tokens may be rescued.

    Returns:
        (n,) bool: the judge accepts, state and score are finite, no constraint forbids the token or forces another one.
    """
    drafted = scores.gather(1, ids.long().clamp(min=0).unsqueeze(1)).squeeze(1)
    # NaN compares false; the dtype's minimum is how some masks spell -inf
    allowed = drafted.abs() < torch.finfo(scores.dtype).max
    forced_otherwise = (scores.amax(dim=1) > FORCED) & (drafted <= FORCED)
    rescued = judged & (ids >= 0) & allowed & ~forced_otherwise & hidden.isfinite().all(dim=1)
    return rescued if stop is None else rescued & ~stop


def undone(rescued: torch.Tensor, matched: torch.Tensor, request: torch.Tensor, window: int) -> torch.Tensor:
    """Find the rescues that lead to a correction: `rescue_window` of `hf_judge.verify.decide`, on flat rows.

    An engine that samples draws only later whether a token that is no first choice stands; here it counts as corrected,
    so that more rescues are undone than in `generate()`, never fewer.

    Args:
        rescued: (n,) bool, see [`rescuable`]; of these, matched tokens are no rescues.
        matched: (n,) bool, where the drafted token is the target's first choice, and where there is none.
        request: (n,) integer, the request of each drafted token; a request's tokens lie side by side.
        window: largest distance in tokens between such a rescue and the correction; 0: none is undone.

    Returns:
        (n,) bool.
    """
    n = len(rescued)  # as a position: none
    if window <= 0 or n == 0:
        return torch.zeros_like(rescued)
    position = torch.arange(n, device=rescued.device)
    segment = torch.nn.functional.pad(request[1:] != request[:-1], (1, 0)).long().cumsum(0)
    none = torch.full_like(position, n)
    first = torch.where(rescued | matched, n, position)
    correction = none.scatter_reduce(0, segment, first, "amin")[segment]  # of each row's request
    stands = rescued & ~matched & (position < correction) & (correction < n)
    later = torch.where(stands, position, n).flip(0).cummin(0).values.flip(0)
    nearest = torch.cat([later[1:], none[:1]]).minimum(correction)
    is_kept = stands & (nearest - position > window)
    last_kept = torch.full_like(none, -1).scatter_reduce(0, segment, torch.where(is_kept, position, -1), "amax")
    return stands & (position > last_kept[segment])


def force_(scores: torch.Tensor, ids: torch.Tensor, rescued: torch.Tensor) -> torch.Tensor:
    """Rule out all tokens but the drafted one where it is rescued, in place.

    It is then the argmax, and p = 1 passes any ``u <= p / q``. Temperature, top-k and top-p keep such scores.

    Args:
        scores: (n, V) float.
        ids: (n,) integer, the drafted tokens.
        rescued: (n,) bool, the positions to rewrite; the others keep their values bit for bit.

    Returns:
        `scores`.
    """
    at, rows = ids.long().clamp(min=0).unsqueeze(1), rescued.unsqueeze(1)
    drafted = scores.gather(1, at).masked_fill(rows, 0.0)
    return scores.masked_fill_(rows, float("-inf")).scatter_(1, at, drafted)
