"""Use a rule in one phase of the answer only: inside ``<think>...</think>``, or outside."""

from __future__ import annotations

import torch

from hf_judge.head.config import check_number
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, CandidateVerifier, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats
from hf_judge.verify.strict import draft_lengths


class ThinkingVerifier:
    """Uses a rule while the model thinks, and strict verification elsewhere; or the reverse.

    Engines relax verification for thoughts alone (TensorRT-LLM's `use_relaxed_acceptance_for_thinking`). The model
    thinks after `open_id` until `close_id`; a prompt may open the thought. The two tokens themselves are always the
    target's: a draft is verified up to the first of them, and the target adds its own token there.

    Args:
        rule: any rule.
        open_id: token that opens a thought, ``tokenizer.convert_tokens_to_ids("<think>")``.
        close_id: token that closes it.
        inside: True: the rule holds inside thoughts; False: outside.

    Raises:
        TypeError, ValueError: an id is not a whole number of 0 or more, or the ids are equal.
    """

    def __init__(self, rule: CandidateVerifier, open_id: int, close_id: int, *, inside: bool = True):
        check_number("open_id", open_id, 0, kind=int)
        check_number("close_id", close_id, 0, kind=int)
        if open_id == close_id:
            raise ValueError(f"open_id and close_id must be two tokens, got {open_id} for both")
        self.rule, self.open_id, self.close_id, self.inside = rule, open_id, close_id, inside
        self.stats = JudgeStats()

    @property
    def hidden_state(self) -> str | None:
        """Name of the hidden state that the rule reads."""
        return getattr(self.rule, "hidden_state", "post_norm")

    @property
    def reads_draft_logits(self) -> bool:
        """Whether the rule reads the draft's logits before its processors."""
        return getattr(self.rule, "reads_draft_logits", False)

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`].

        Raises:
            ValueError: the engine does not tell the texts before the round.
        """
        if candidates.texts is None:
            raise ValueError(
                "ThinkingVerifier needs the text before each round (candidates.texts), and this engine does not give "
                "it: use generate(judge=...)"
            )
        holds = self._thinks(candidates) == self.inside
        candidates = candidates._replace(lengths=self._before_marker(candidates))
        of_rule, strict = self.rule.verify(candidates, outputs), decide(candidates, outputs)
        zero = torch.zeros_like(strict.n_accepted)
        chosen = []
        for mine, plain in zip(of_rule, strict, strict=True):
            mine, plain = (zero if values is None else values for values in (mine, plain))
            chosen.append(torch.where(holds if mine.dim() == 1 else holds.unsqueeze(1), mine, plain))
        return Verdict(*chosen)

    def _thinks(self, candidates: Candidates) -> torch.Tensor:
        """Tell for each prompt whether its text ends inside a thought, (batch,) bool."""
        found = []
        for text in candidates.texts:
            position = torch.arange(1, text.shape[-1] + 1, device=text.device)
            opened, closed = ((position * (text.view(-1) == id)).amax() for id in (self.open_id, self.close_id))
            found.append(opened > closed)
        return torch.stack(found).to(candidates.ids.device)

    def _before_marker(self, candidates: Candidates) -> torch.Tensor:
        """Return the number of drafted tokens before the first that opens or closes a thought, (batch,) long."""
        marker = (candidates.ids == self.open_id) | (candidates.ids == self.close_id)
        before = (~marker).long().cumprod(dim=1).sum(dim=1)
        return torch.minimum(before, draft_lengths(candidates))

    def __repr__(self) -> str:
        where = "inside" if self.inside else "outside"
        return f"ThinkingVerifier({self.rule!r}, {where} {self.open_id}...{self.close_id})"
