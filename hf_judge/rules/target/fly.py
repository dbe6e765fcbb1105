"""Wait for the next tokens: FLy's entropy gate and deferred window (2511.22972), and vLLM's variant of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at, entropy
from hf_judge.rules.base import AddingRule, drafted
from hf_judge.verify.strict import draft_lengths


def fly_accepts(
    matched: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, threshold: float, window: int
) -> torch.Tensor:
    """Accept a mismatch where ``H(p) / log V >= threshold`` and the next `window` - 1 drafted tokens all match.

    FLy's entropy gate and deferred window (2511.22972): the target was unsure, and then agrees. The last `window` - 1
    tokens of a draft have no window after them and stay strict; two mismatches within a window are both rejected.

    Args:
        matched: (batch, n) bool, where strict verification accepts.
        scores: (batch, n, V) float, the target's scores.
        lengths: (batch,) long, drafted tokens per prompt.
        threshold: bound on the normalised entropy, 0 to 1.
        window: W, tokens in the window, with the mismatch.

    Returns:
        (batch, n) bool.
    """
    unsure = entropy(scores) >= threshold * math.log(scores.shape[-1])
    return unsure & (matches_after(matched, lengths, window - 1) == window - 1)


def vllm_fly_accepts(
    matched: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, threshold: float, window: int, top_k: int
) -> torch.Tensor:
    """Accept a mismatch where the entropy of the best tokens is high and the next `window` drafted tokens all match.

    vLLM's `rejection_sample_method="fly"` (pull request 53987): ``-sum p(v) log p(v) >= threshold`` over the `top_k`
    most probable tokens, in nats and not normalised; and the window does not count the mismatch itself.

    Args:
        matched: (batch, n) bool, where strict verification accepts.
        scores: (batch, n, V) float, the target's scores.
        lengths: (batch,) long, drafted tokens per prompt.
        threshold: bound on the entropy, in nats.
        window: tokens that must match after the mismatch.
        top_k: number of tokens in the entropy.

    Returns:
        (batch, n) bool.
    """
    best = scores.log_softmax(dim=-1).topk(min(top_k, scores.shape[-1]), dim=-1).values
    unsure = -(best.exp() * best.clamp(min=torch.finfo(best.dtype).min)).sum(dim=-1) >= threshold
    return unsure & (matches_after(matched, lengths, window) == window)


def matches_after(matched: torch.Tensor, lengths: torch.Tensor, window: int) -> torch.Tensor:
    """Count the matches among the next `window` drafted tokens, (batch, n) long; padding is no match."""
    n = matched.shape[1]
    inside = matched & (torch.arange(n, device=matched.device) < lengths.unsqueeze(1))
    total = torch.nn.functional.pad(inside.long().cumsum(dim=1), (1, window + 1))
    total[:, n + 1 :] = total[:, n : n + 1]
    return total[:, window + 1 : n + window + 1] - total[:, 1 : n + 1]


@dataclass(eq=False)
class FlyVerifier(AddingRule):
    """Accepts a mismatch where the target was unsure and agrees afterwards (FLy), see [`fly_accepts`].

    Args:
        threshold: bound on the normalised entropy; 0.3 in the paper.
        window: tokens in the window; 6 in the paper.
    """

    threshold: float = 0.3
    window: int = 6

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 1)
        check_number("window", self.window, 1, kind=int)

    def judged(self, candidates, outputs, choice):
        lengths = draft_lengths(candidates)
        return fly_accepts(choice.accepted, drafted(outputs), lengths, self.threshold, self.window)


@dataclass(eq=False)
class VllmFlyVerifier(AddingRule):
    """Accepts a mismatch as vLLM's variant of FLy does, see [`vllm_fly_accepts`]; the numbers are vLLM's defaults.

    A token that the target rules out is not accepted.

    Args:
        threshold: bound on the entropy of the best tokens, in nats.
        window: tokens that must match after the mismatch.
        top_k: number of tokens in the entropy.
    """

    threshold: float = 0.3
    window: int = 6
    top_k: int = 3

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold", self.threshold, 0)
        check_number("window", self.window, 1, kind=int)
        check_number("top_k", self.top_k, 1, kind=int)

    def judged(self, candidates, outputs, choice):
        scores, lengths = drafted(outputs), draft_lengths(candidates)
        judged = vllm_fly_accepts(choice.accepted, scores, lengths, self.threshold, self.window, self.top_k)
        return judged & (at(scores, candidates.ids) > torch.finfo(scores.dtype).min)
