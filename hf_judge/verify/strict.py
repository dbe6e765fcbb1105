"""Keeps exactly the tokens that the target would have chosen or drawn: strict verification.

Source: Leviathan et al. 2211.17192, algorithm 1. In its formulas p is the target's distribution and q the draft's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hf_judge.verify.round import Candidates, TargetOutputs


class StrictChoice(NamedTuple):
    """Strict verification's own decision at every position of a round."""

    accepted: torch.Tensor  # (batch, k) bool
    tokens: torch.Tensor | None  # (batch, k+1) long, the target's choice at each position; None: drawn when needed
    draws: torch.Tensor | None = None  # (batch, k) float in [0, 1), the uniform draw of each decision; None: no draw


def strict_choice(candidates: Candidates, outputs: TargetOutputs) -> StrictChoice:
    """Decide at every position whether strict verification accepts the drafted token.

    Greedy: accept x where it is the argmax of the target's scores. Sampling from a draft of known distribution q
    (2211.17192, algorithm 1): accept where ``u <= p(x) / q(x)``, u uniform in [0, 1). Sampling otherwise: draw y from p
    and accept where y = x, which samples exactly from the target for any deterministic draft.

    Args:
        candidates: drafted ids (batch, k), and the draft's logits (batch, k, V) if the ids were drawn from them.
        outputs: the target's scores (batch, k+1, V).

    Returns:
        StrictChoice: one decision for each drafted token. Under sampling with draft logits `tokens` is None.
    """
    k = candidates.ids.shape[1]
    if not outputs.do_sample:
        tokens = outputs.scores.argmax(dim=-1)
        return StrictChoice(tokens[:, :k] == candidates.ids, tokens)
    target_probs = outputs.scores.softmax(dim=-1)
    if candidates.logits is None:
        tokens = drawn(target_probs)
        return StrictChoice(tokens[:, :k] == candidates.ids, tokens)
    at = candidates.ids.unsqueeze(-1)
    target_prob = target_probs[:, :k].gather(-1, at).squeeze(-1)
    draft_prob = candidates.logits.softmax(dim=-1).gather(-1, at).squeeze(-1)
    draws = torch.rand_like(target_prob)
    # u * q <= p instead of u <= p / q: no division by a draft probability that underflowed
    accepted = draws * draft_prob <= target_prob
    # u may be exactly 0, and a token that the target rules out must never pass
    return StrictChoice(accepted & (target_prob > 0), None, draws)


def next_token(
    candidates: Candidates, outputs: TargetOutputs, n_accepted: torch.Tensor, choice: StrictChoice
) -> torch.Tensor:
    """Return the target's own token after the accepted prefix.

    Greedy, or sampling without draft logits: the choice already made at that position. Sampling with draft logits: a
    draw from p after a wholly accepted draft, else from the residual ``norm(max(p - q, 0))`` (2211.17192, algorithm 1).

    Args:
        n_accepted: (batch,) long, accepted tokens of each prompt.

    Returns:
        (batch,) long; -1 where there is no distribution to draw from (see [`drawn`]).
    """
    if choice.tokens is not None:
        return choice.tokens.gather(1, n_accepted.unsqueeze(1)).squeeze(1)
    vocabulary = outputs.scores.shape[-1]
    position = n_accepted.view(-1, 1, 1)
    target = outputs.scores.gather(1, position.expand(-1, 1, vocabulary)).squeeze(1).softmax(dim=-1)
    if candidates.ids.shape[1] == 0:
        return drawn(target)
    rejected = (n_accepted < draft_lengths(candidates)).unsqueeze(1)
    drafted_position = position.clamp(max=candidates.logits.shape[1] - 1).expand(-1, 1, vocabulary)
    draft = candidates.logits.gather(1, drafted_position).squeeze(1).softmax(dim=-1)
    residual = torch.where(rejected, (target - draft).clamp(min=0), target)
    # p and q equal to rounding leave an empty residual; p itself is then the right distribution
    residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, target)
    return drawn(residual)


def drawn(probs: torch.Tensor) -> torch.LongTensor:
    """Draw the tokens that `torch.multinomial` would draw, without its wait for the device.

    It reads back whether the probabilities are valid; here an invalid row gives -1, and the host sees it with the
    round's verdict. The token is the argmax of ``p / e``, where each e is drawn from Exp(1): the Gumbel-max trick.

    Args:
        probs: (..., V) float, not necessarily of sum 1.

    Returns:
        (...) long: one token for each row; -1 where the row is all zero, or holds NaN or infinity.
    """
    best, tokens = (probs / torch.empty_like(probs).exponential_()).max(dim=-1)  # NaN counts as the largest
    return torch.where((best > 0) & best.isfinite(), tokens, -1)


def draft_lengths(candidates: Candidates) -> torch.Tensor:
    """Return the number of drafted tokens of each prompt, (batch,) long."""
    if candidates.lengths is not None:
        return candidates.lengths
    batch, k = candidates.ids.shape
    return torch.full((batch,), k, dtype=torch.long, device=candidates.ids.device)
