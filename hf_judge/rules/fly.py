"""Wait for the next tokens: FLy's entropy gate and deferred window (2511.22972)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_judge.head.distributions import entropy
from hf_judge.rules.base import AddingRule, check, drafted


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
    n = matched.shape[1]
    position = torch.arange(n, device=matched.device)
    inside = matched & (position < lengths.unsqueeze(1))
    total = torch.nn.functional.pad(inside.long().cumsum(dim=1), (1, window))
    total[:, n + 1 :] = total[:, n : n + 1]
    following = total[:, window : n + window] - total[:, 1 : n + 1]  # matches among the window - 1 tokens after
    return (entropy(scores) >= threshold * math.log(scores.shape[-1])) & (following == window - 1)


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
        check("threshold", self.threshold, 0, 1)
        check("window", self.window, 1, kind=int)

    def judged(self, candidates, outputs, choice):
        lengths = candidates.lengths
        if lengths is None:
            lengths = candidates.ids.new_full(candidates.ids.shape[:1], candidates.ids.shape[1])
        return fly_accepts(choice.accepted, drafted(outputs), lengths, self.threshold, self.window)
