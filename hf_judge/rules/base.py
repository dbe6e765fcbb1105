"""Share what all rules need: adding to strict verification, sampling from another distribution, checked settings."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats
from hf_judge.verify.strict import StrictChoice, draft_lengths, drawn, strict_choice


@dataclass(eq=False)
class AddingRule:
    """Adds a rule to strict verification: "strict accepts OR the rule accepts".

    Args:
        rescue_stop_tokens: whether the rule may end the answer earlier than the target would.
        max_rescue_fraction: largest share of an answer that may come from rescues; None: any.
    """

    rescue_stop_tokens: bool = field(default=False, kw_only=True)
    max_rescue_fraction: float | None = field(default=None, kw_only=True)

    hidden_state = None  # no annotation: the state that `verify` needs is no setting

    def __post_init__(self):
        if self.max_rescue_fraction is not None:
            check_number("max_rescue_fraction", self.max_rescue_fraction, 0, 1)
        self.stats = JudgeStats()

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`]."""
        choice = strict_choice(candidates, outputs)
        return self._decide(candidates, outputs, choice, self.judged(candidates, outputs, choice))

    def judged(self, candidates: Candidates, outputs: TargetOutputs, choice: StrictChoice) -> torch.Tensor:
        """Return where the rule itself accepts, (batch, k) bool; a rule needs only this method.

        Args:
            candidates: the drafted tokens: `ids` (batch, k) long, and what is known about them.
            outputs: the target's outputs; see [`drafted`] for its scores of the drafted tokens.
            choice: the decisions of strict verification.
        """
        raise NotImplementedError

    def _decide(self, candidates, outputs, choice, judged, **how) -> Verdict:
        return decide(
            candidates,
            outputs,
            judged,
            choice=choice,
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
            **how,
        )


@dataclass(eq=False)
class RelaxedSampler(AddingRule):
    """Samples from a distribution of its own, pi, in place of the target's p; strict verification in greedy decoding.

    Sampling accepts x where ``u <= pi(x) / q(x)`` and else draws from ``norm(max(pi - q, 0))``: algorithm 1 of
    2211.17192 with pi for p, so that every token is a draw from pi. After a wholly accepted draft there is no q, and
    the next token is drawn from p. pi may end the answer like any other token, so `rescue_stop_tokens` is on.
    """

    rescue_stop_tokens: bool = field(default=True, kw_only=True)

    def relaxed(
        self, candidates: Candidates, outputs: TargetOutputs, target: torch.Tensor, draft: torch.Tensor
    ) -> torch.Tensor:
        """Return pi at the positions of the drafted tokens, (batch, k, V); a rule needs only this method.

        Args:
            candidates, outputs: the round.
            target: (batch, k, V) float, p.
            draft: (batch, k, V) float, q.
        """
        raise NotImplementedError

    def verify(self, candidates, outputs):
        """See [`CandidateVerifier`]."""
        k = candidates.ids.shape[1]
        draft = draft_scores_of(candidates, outputs, type(self).__name__).softmax(dim=-1)
        if not outputs.do_sample:
            return super().verify(candidates, outputs)
        choice = strict_choice(candidates, outputs)
        if k == 0:
            return self._decide(candidates, outputs, choice, None)
        target = outputs.scores.softmax(dim=-1)
        relaxed = self.relaxed(candidates, outputs, target[:, :k], draft)
        judged = _accepted_from(relaxed, draft, candidates, choice)
        tokens = residual_tokens(candidates, target, relaxed, draft)
        return self._decide(candidates, outputs, choice, judged, replaces_strict=True, tokens=tokens)

    def judged(self, candidates, outputs, choice):
        if not outputs.do_sample:
            return torch.zeros_like(choice.accepted)
        draft = draft_scores_of(candidates, outputs, type(self).__name__).softmax(dim=-1)
        relaxed = self.relaxed(candidates, outputs, drafted(outputs).softmax(dim=-1), draft)
        return _accepted_from(relaxed, draft, candidates, choice)


def _accepted_from(
    relaxed: torch.Tensor, draft: torch.Tensor, candidates: Candidates, choice: StrictChoice
) -> torch.Tensor:
    wanted = at(relaxed, candidates.ids)
    return (choice.draws * at(draft, candidates.ids) <= wanted) & (wanted > 0)


def residual_tokens(
    candidates: Candidates, target: torch.Tensor, wanted: torch.Tensor, draft: torch.Tensor
) -> torch.Tensor:
    """Draw the token that would replace each drafted one, from ``norm(max(wanted - q, 0))``.

    Args:
        candidates: the drafted tokens.
        target: (batch, k+1, V) float, p: what is drawn from after a whole draft, and where the residual is empty, since
            `wanted` and q are equal there up to rounding.
        wanted: (batch, k, V) float, the distribution to sample from, or a multiple of it.
        draft: (batch, k, V) float, q.

    Returns:
        (batch, k+1) long; -1 as of [`drawn`].
    """
    residual = (wanted - draft).clamp(min=0)
    inside = torch.arange(residual.shape[1], device=residual.device) < draft_lengths(candidates).unsqueeze(1)
    usable = (residual.sum(dim=-1) > 0) & inside
    rows = torch.cat([torch.where(usable.unsqueeze(-1), residual, target[:, :-1]), target[:, -1:]], dim=1)
    return drawn(rows)


def drafted(outputs: TargetOutputs) -> torch.Tensor:
    """Return the target's scores (batch, k, V) at the positions that predict the drafted tokens."""
    return outputs.scores[:, :-1]


def draft_scores_of(candidates: Candidates, outputs: TargetOutputs, rule: str) -> torch.Tensor:
    """Return the draft's scores (batch, k, V) float32.

    Raises:
        ValueError: there are none, or they are over another vocabulary; the message names the rule.
    """
    if candidates.ids.shape[1] == 0:
        return drafted(outputs)
    if candidates.logits is None:
        raise ValueError(
            f"{rule} compares the target with the draft's distribution, and this source of drafts has none (prompt "
            "lookup and the like): pass assistant_model=, or a rule that needs the target alone"
        )
    if candidates.logits.shape[-1] != outputs.scores.shape[-1]:
        raise ValueError(
            f"{rule} needs draft and target over one vocabulary, got {candidates.logits.shape[-1]} and "
            f"{outputs.scores.shape[-1]} tokens"
        )
    return candidates.logits.to(outputs.scores.device, torch.float32)


def raw_probabilities(candidates: Candidates, outputs: TargetOutputs, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both models' distributions (batch, k, V) before any processor: at temperature 1.

    For rules that decide by how sure the models are. They set `reads_draft_logits`; a source of drafts that does not
    tell the draft's unprocessed logits is read by its processed ones.

    Raises:
        ValueError: see [`draft_scores_of`].
    """
    scores = draft_scores_of(candidates, outputs, rule)
    raw = scores if candidates.raw_logits is None else candidates.raw_logits.to(scores.device, torch.float32)
    return outputs.logits[:, : candidates.ids.shape[1]].softmax(dim=-1), raw.softmax(dim=-1)
