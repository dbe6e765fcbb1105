"""A reference for judged generation that is too slow to be wrong: no cache, no crop, one full forward per question.

Written from DESIGN.md section 3, apart from the package: greedy, one prompt, an assistant that drafts by argmax.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class NaiveResult(NamedTuple):
    """What the loop made, and how."""

    new_tokens: list[int]
    kinds: list[str]  # "matched", "rescued", "corrected" or "bonus" for every new token
    n_drafted: int
    n_forwards: int


class NaiveModel:
    """Rows of a stock model as plain functions of the ids before them; remembers what it was asked."""

    def __init__(self, model, *, state: torch.nn.Module | None = None):
        self._model = model
        self._rows = {}
        self._state = None
        (state or model.get_output_embeddings()).register_forward_pre_hook(self._keep)

    def _keep(self, module, args):
        self._state = args[0]

    def rows(self, ids: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, V) and states (n, D) of a forward over all of `ids`, without a cache."""
        if ids not in self._rows:
            with torch.no_grad():
                logits = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
            self._rows[ids] = logits, self._state[0].float()
        return self._rows[ids]

    def next_token(self, ids: tuple[int, ...]) -> int:
        """Argmax after `ids`."""
        return int(self.rows(ids)[0][-1].argmax())


def naive_judged(
    target: NaiveModel,
    draft: NaiveModel,
    prompt: list[int],
    *,
    weight: torch.Tensor,
    bias: torch.Tensor,
    threshold: float,
    n_draft: int,
    max_new_tokens: int,
    eos: tuple[int, ...] = (),
    rescue_stop_tokens: bool = False,
) -> NaiveResult:
    """Judge decoding by the book.

    Args:
        weight: (1, D), bias: (1,), of the head.
        threshold: a drafted token is acceptable where sigmoid(w.h + b) > threshold.
        n_draft: tokens that the draft proposes, fewer at the end of the answer and after a stop token.
        eos: tokens that end the answer.
    """
    ids, end = list(prompt), len(prompt) + max_new_tokens
    kinds, n_drafted, n_forwards = [], 0, 0
    while len(ids) < end and not (kinds and ids[-1] in eos):
        drafted = []
        while len(drafted) < min(n_draft, end - len(ids) - 1) and not (drafted and drafted[-1] in eos):
            drafted.append(draft.next_token(tuple(ids + drafted)))
        logits, states = target.rows(tuple(ids + drafted))
        n_drafted, n_forwards = n_drafted + len(drafted), n_forwards + 1

        block, block_kinds = [], []
        for i, token in enumerate(drafted):
            predicting, reaction = len(ids) - 1 + i, len(ids) + i
            score = float(weight[0] @ states[reaction] + bias[0])
            acceptable = 1 / (1 + math.exp(-score)) > threshold and (rescue_stop_tokens or token not in eos)
            if int(logits[predicting].argmax()) == token:
                block_kinds.append("matched")
            elif acceptable:
                block_kinds.append("rescued")
            else:
                break
            block.append(token)
        block_kinds.append("bonus" if len(block) == len(drafted) else "corrected")
        block.append(int(logits[len(ids) - 1 + len(block)].argmax()))

        ends = [i for i, token in enumerate(block) if token in eos]
        keep = ends[0] + 1 if ends else len(block)
        ids += block[:keep]
        kinds += block_kinds[:keep]
    return NaiveResult(ids[len(prompt) :], kinds, n_drafted, n_forwards)
