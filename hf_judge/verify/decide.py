"""Turns where a rule accepts drafted tokens into the verdict about the round.

[`StrictVerifier`] is here too: it is this function without a rule.
"""

from __future__ import annotations

import torch

from hf_judge.verify.round import Candidates, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats, VerdictCode
from hf_judge.verify.strict import StrictChoice, draft_lengths, next_token, strict_choice


def decide(
    candidates: Candidates,
    outputs: TargetOutputs,
    judged: torch.Tensor | None = None,
    *,
    choice: StrictChoice | None = None,
    replaces_strict: bool = False,
    tokens: torch.Tensor | None = None,
    rescue_stop_tokens: bool = False,
    max_rescue_fraction: float | None = None,
    rescue_window: int = 0,
) -> Verdict:
    """Accept the longest prefix of the draft whose every token is matched or rescued.

    A token is *matched* where strict verification accepts it. It is *rescued* where strict verification rejects it, the
    rule accepts it, and nothing bars the rescue: a hard constraint, a stop token (unless allowed), a hidden state or
    score that is not finite, or a rescue budget that is spent.

    Args:
        candidates: the round's draft.
        outputs: the target's outputs for it.
        judged: (batch, k) bool, where the rule itself accepts; None for strict verification.
        choice: strict verification's decisions, if the rule has computed them; None: computed here.
        replaces_strict: whether a token that strict verification accepts must also be accepted by the rule.
        tokens: (batch, k+1) long, the rule's own next token at each position; None: strict verification's. Where a
            rescue was barred, strict verification's token is used: the rule might pick the barred one again.
        rescue_stop_tokens: whether a stop token may be rescued.
        max_rescue_fraction: largest share of the answer, at every point of it, that may come from rescues.
        rescue_window: a rescue is undone where one of the next `rescue_window` tokens is corrected; 0: none is.

    Returns:
        Verdict.
    """
    k = candidates.ids.shape[1]
    choice = strict_choice(candidates, outputs) if choice is None else choice
    if k == 0:
        return _undrafted(candidates, outputs, choice, tokens)
    lengths, finite = draft_lengths(candidates), _finite(candidates, outputs)
    wanted = torch.zeros_like(choice.accepted) if judged is None else judged.to(finite.device) & ~choice.accepted
    forbidden = _forbidden(candidates, rescue_stop_tokens)
    refused = wanted & finite & forbidden
    rescued = wanted & finite & ~forbidden
    if max_rescue_fraction is not None:
        rescued = _within_budget(candidates, rescued, max_rescue_fraction)
    matched = choice.accepted & judged.to(finite.device) if replaces_strict else choice.accepted

    position = torch.arange(k, device=candidates.ids.device)
    drafted = position < lengths.unsqueeze(1)  # (batch, k): False on padding
    n_accepted = ((matched | rescued) & drafted).long().cumprod(dim=1).sum(dim=1)
    if rescue_window > 0:
        n_accepted = _before_undone(rescued, n_accepted, lengths, rescue_window)
    following = next_token(candidates, outputs, n_accepted, choice)
    if tokens is not None:
        at = n_accepted.unsqueeze(1)
        barred = torch.nn.functional.pad(wanted & ~rescued | ~finite, (0, 1)).gather(1, at).squeeze(1)
        following = torch.where(barred, following, tokens.gather(1, at).squeeze(1))
    examined = drafted & (position <= n_accepted.unsqueeze(1))  # what follows a rejection was never decided on
    return Verdict(
        n_accepted=n_accepted,
        next_token=following,
        codes=_codes(rescued, n_accepted, lengths),
        n_refused=(refused & examined).sum(dim=1),
        n_non_finite=(~finite & examined).sum(dim=1),
    )


def _undrafted(
    candidates: Candidates, outputs: TargetOutputs, choice: StrictChoice, tokens: torch.Tensor | None
) -> Verdict:
    """Return the verdict of a round without a draft, at the cost of plain decoding."""
    none = torch.zeros_like(draft_lengths(candidates))
    following = next_token(candidates, outputs, none, choice) if tokens is None else tokens[:, 0]
    codes = torch.full((len(none), 1), VerdictCode.BONUS, dtype=torch.int8, device=none.device)
    return Verdict(n_accepted=none, next_token=following, codes=codes, n_refused=none, n_non_finite=none)


def _finite(candidates: Candidates, outputs: TargetOutputs) -> torch.Tensor:
    """Return where the drafted token's hidden state and its raw logit are finite, (batch, k) bool."""
    k = candidates.ids.shape[1]
    finite = outputs.logits[:, :k].gather(-1, candidates.ids.unsqueeze(-1)).squeeze(-1).isfinite()
    if outputs.hidden is not None:
        finite &= outputs.hidden[:, 1:].isfinite().all(dim=-1).to(finite.device)
    return finite


def _forbidden(candidates: Candidates, rescue_stop_tokens: bool) -> torch.Tensor:
    """Return the tokens that no rule may rescue, (batch, k) bool."""
    forbidden = torch.zeros_like(candidates.ids, dtype=torch.bool)
    if candidates.forbidden is not None:
        forbidden = forbidden | candidates.forbidden
    if candidates.stop is not None and not rescue_stop_tokens:
        forbidden = forbidden | candidates.stop
    return forbidden


def _within_budget(candidates: Candidates, rescued: torch.Tensor, max_rescue_fraction: float) -> torch.Tensor:
    """Return the rescues that keep the rescued share of the answer within the budget, (batch, k) bool."""
    zero = torch.zeros_like(draft_lengths(candidates))
    n_rescued = zero if candidates.n_rescued is None else candidates.n_rescued
    n_generated = zero if candidates.n_generated is None else candidates.n_generated
    n_rescued = n_rescued.unsqueeze(1) + rescued.cumsum(dim=1)
    length = n_generated.unsqueeze(1) + torch.arange(1, rescued.shape[1] + 1, device=rescued.device)
    return rescued & (n_rescued <= max_rescue_fraction * length)


def _before_undone(rescued: torch.Tensor, n_accepted: torch.Tensor, lengths: torch.Tensor, window: int) -> torch.Tensor:
    """Return how much of each draft stays when the rescues that lead to a correction are undone, (batch,) long.

    Where the correction comes at most `window` tokens after a rescue, the target's own token replaces the rescued one.
    That is a correction too, and may undo the rescue before.
    """
    k = rescued.shape[1]
    position, end = torch.arange(k, device=rescued.device).expand_as(rescued), n_accepted.unsqueeze(1)
    stands = rescued & (position < end)
    # (batch, k+1): the nearest rescue from here on, or the correction
    nearest = torch.cat([torch.where(stands, position, end), end], dim=1).flip(1).cummin(dim=1).values.flip(1)
    is_kept = stands & (nearest[:, 1:] - position > window)  # a rescue before which nothing is undone
    last_kept = torch.where(is_kept, position, -1).amax(dim=1, keepdim=True)
    first_undone = torch.where(stands & (position > last_kept), position, end).amin(dim=1)
    return torch.where(n_accepted < lengths, first_undone, n_accepted)


def _codes(rescued: torch.Tensor, n_accepted: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the codes of the accepted tokens and the target's own token, then padding: (batch, k+1) int8."""
    batch, k = rescued.shape
    position, end = torch.arange(k + 1, device=rescued.device), n_accepted.unsqueeze(1)
    codes = torch.full((batch, k + 1), VerdictCode.PADDING, dtype=torch.int8, device=rescued.device)
    codes.masked_fill_(position < end, VerdictCode.MATCHED)
    codes[:, :k].masked_fill_((position[:k] < end) & rescued, VerdictCode.RESCUED)
    whole = (n_accepted == lengths).unsqueeze(1)
    codes.masked_fill_((position == end) & whole, VerdictCode.BONUS)
    codes.masked_fill_((position == end) & ~whole, VerdictCode.CORRECTED)
    return codes


class StrictVerifier:
    """Strict verification: the target's own tokens, or samples from its own distribution; nothing is rescued."""

    hidden_state = None

    def __init__(self):
        self.stats = JudgeStats()

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`]."""
        return decide(candidates, outputs)

    def __repr__(self) -> str:
        return "StrictVerifier()"
