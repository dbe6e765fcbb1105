"""Verify against a mixture whose weight a trained head chooses at every token: DIVERSED (2604.07622)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.judge_head import JudgeHead
from hf_judge.rules.both.ensemble import EnsembleVerifier


def diversed_weights(head: JudgeHead, hidden: torch.Tensor, bias: float) -> torch.Tensor:
    """Return the target's weight in the mixture, ``1 - sigmoid(head(h) + bias)``.

    DIVERSED (2604.07622, section 3) takes ``softmax(W h)`` of two outputs, which is the sigmoid of one. h is the state
    from which the token is predicted: the weight does not depend on the token, and the mixture is a distribution.

    Args:
        head: what was trained on these states.
        hidden: (batch, n, D), the target's states at the positions that predict the drafted tokens.
        bias: number added to every logit; 0 is the head as it was trained.

    Returns:
        (batch, n) float between 0 (the draft alone) and 1 (the target alone); 1 where the state is not finite.
    """
    return (-(head(hidden) + bias)).sigmoid().nan_to_num(nan=1.0)


@dataclass(eq=False)
class DiversedVerifier(EnsembleVerifier):
    """Verifies against ``w p + (1 - w) q`` with a weight w for every token, see [`diversed_weights`].

    Two things differ from the paper: its head also reads the draft's state, which no engine here gives, and is trained
    by reinforcement on whole answers. `hf-judge features --state before` and `hf-judge train` fit this one to labelled
    tokens: it follows the draft where a mistake is unlikely.

    Args:
        head: a head trained on the states before the tokens, without extra features.
        bias: number added to every logit of the head: strict for a large negative number, lenient for a positive one.

    Raises:
        TypeError, ValueError: the head is none, or was trained on other numbers.
    """

    head: JudgeHead | None = None
    bias: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.head, JudgeHead):
            raise TypeError(
                f"DiversedVerifier expects a JudgeHead, got {type(self.head).__name__}: "
                "load one with JudgeHead.from_pretrained(...)"
            )
        if self.head.config.extra_features:
            raise ValueError(
                f"DiversedVerifier reads the state alone, and this head also reads {self.head.config.extra_features}: "
                "train it without --extra-features"
            )
        if self.head.config.state_of == "token":
            raise ValueError(
                "DiversedVerifier reads the state before a token, and this head was trained on the state at the token "
                "itself: make the features with --state before"
            )
        check_number("bias", self.bias)

    @property
    def hidden_state(self) -> str:
        """Name of the hidden state that the head reads."""
        return self.head.config.hidden_state

    def weights(self, candidates, outputs):
        hidden = outputs.hidden[:, : candidates.ids.shape[1]]
        return diversed_weights(self.head, hidden, self.bias).to(outputs.scores.device)
