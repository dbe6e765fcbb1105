"""Defines the output of a judged generation, and the streamer that receives verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.upstream.private_names import BaseStreamer, GenerateDecoderOnlyOutput
from hf_judge.verify.stats import JudgeStats


@dataclass
class JudgeDecoderOnlyOutput(GenerateDecoderOnlyOutput):
    """Upstream's output of a generation, with what the judge did.

    Args:
        judge_stats ([`JudgeStats`]): counts and seconds of this call.
        verdicts (`torch.Tensor` of shape `(batch, n_new)`, int8): a [`VerdictCode`] for every new token.
        scores, logits: as upstream; always the target's own, after and before the logits processors.
    """

    judge_stats: JudgeStats | None = None
    verdicts: torch.Tensor | None = None


class VerdictStreamer(BaseStreamer):
    """A streamer that also receives how its tokens came about: `put_verdicts` comes before the `put` of the tokens."""

    def put_verdicts(self, codes: torch.Tensor) -> None:
        """Receive the (n,) int8 [`VerdictCode`]s of the tokens that the next `put` brings."""
        raise NotImplementedError
