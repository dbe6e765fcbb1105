"""The least that a round of speculative decoding can cost on this machine: its forwards alone.

Knows nothing about rules, drafts that are accepted, or the terminal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable

import torch
from transformers import CompileConfig

from hf_judge.evaluation.answers import Pair
from hf_judge.ragged.compiling import Compiled
from hf_judge.ragged.model import RaggedModel, draft_step
from hf_judge.upstream.states import StateReader

BEHIND_PROMPT = 64  # tokens: about the middle of an answer of the embedded pair


class Floor:
    """Times `n_drafted` bare forwards of the draft and one bare forward of the target over `n_drafted` + 1 tokens.

    Args:
        pair: the models.
        prompt_ids: (1, n) long; the forwards run behind it.
        n_drafted: M, drafted tokens per round.
        n_rows: rows of a batch.
        compile_config: also measure compiled forwards; None: eager ones alone.
    """

    @torch.no_grad()
    def __init__(
        self,
        pair: Pair,
        prompt_ids: torch.LongTensor,
        n_drafted: int,
        *,
        n_rows: int = 1,
        compile_config: CompileConfig | None = None,
    ):
        self._ways = {"eager": _Round(pair, prompt_ids, n_drafted, n_rows, None)}
        if compile_config is not None:
            self._ways["compiled"] = _Round(pair, prompt_ids, n_drafted, n_rows, Compiled(compile_config))
        self._seconds: dict[str, list[float]] = {key: [] for key in self._ways}

    @torch.no_grad()
    def measure(self, n_rounds: int = 12) -> None:
        """Once more: the median of some rounds, after two that warm up."""
        for key, seconds in interleaved_medians(self._ways, n_rounds).items():
            self._seconds[key].append(seconds)

    def beside(self, round_seconds: list[float]) -> dict:
        """JSON values.

        Args:
            round_seconds: of the engine, measured in turn with `measure`.

        Returns:
            Medians {"eager_seconds_per_round", "compiled_seconds_per_round" (None where it was not asked for),
            "seconds_per_round" (of the faster one), "engine_seconds_per_round", "share": the floor over the engine,
            each measurement with its neighbour, "share_spread"}.
        """
        medians = {key: statistics.median(seconds) for key, seconds in self._seconds.items()}
        fastest = min(medians, key=medians.get)
        shares = [floor / mine for floor, mine in zip(self._seconds[fastest], round_seconds, strict=True)]
        return {
            "eager_seconds_per_round": medians["eager"],
            "compiled_seconds_per_round": medians.get("compiled"),
            "seconds_per_round": medians[fastest],
            "engine_seconds_per_round": statistics.median(round_seconds),
            "share": statistics.median(shares),
            "share_spread": [min(shares), max(shares)],
        }


def interleaved_medians(ways: dict[Hashable, Callable[[], float]], repeats: int) -> dict[Hashable, float]:
    """Median seconds of each way, one call of every way after the other; two calls of each warm up."""
    seconds = {key: [] for key in ways}
    for i in range(repeats + 2):
        for key, run in ways.items():
            elapsed = run()
            if i >= 2:
                seconds[key].append(elapsed)
    return {key: statistics.median(found) for key, found in seconds.items()}


class _Round:
    """The forwards of one round, again and again from the same cache."""

    def __init__(self, pair: Pair, prompt_ids, n_drafted: int, n_rows: int, compiled: Compiled | None):
        self._n_drafted = n_drafted
        n = prompt_ids.shape[1] + BEHIND_PROMPT
        text = prompt_ids.repeat(n_rows, -(-n // prompt_ids.shape[1]))[:, :n]
        reader = StateReader(pair.target, "post_norm")
        if compiled is not None:
            reader.leave_forwards_alone()
        self._more = reader.request({}, {})
        self._target = RaggedModel(pair.target, n_rows, compiled=compiled)
        self._draft = RaggedModel(pair.draft, n_rows, draft_step, compiled)
        # as drafting and verifying make them: a slice has other strides, and would be compiled for once more
        self._token = text[:, -1:].clone(memory_format=torch.contiguous_format)
        self._ids = self._token.repeat(1, n_drafted + 1)
        self._first = torch.full((n_rows,), n - 1, device=text.device)
        self._target.prefill(text, [n] * n_rows, **self._more)
        self._draft.prefill(text, [n] * n_rows)
        for rows, widths, more in (
            (self._draft, [1], {}),
            (self._target, [n_drafted + 1], {"logits_to_keep": n_drafted + 1} | self._more),
        ):
            rows.cache.reserve(n + n_drafted)
            if compiled is not None:
                rows.warm_up(widths, n + n_drafted, "Compiling the floor", **more)

    def __call__(self) -> float:
        start = time.perf_counter()
        token, first = self._token.to(self._draft.device), self._first.to(self._draft.device)
        for _ in range(self._n_drafted):
            _, token = self._draft.run(token, first)
            first = first + 1
        outputs = self._target.run(self._ids, self._first, logits_to_keep=self._n_drafted + 1, **self._more)
        outputs.logits[0, -1].argmax().item()  # the one synchronisation that decoding has as well
        return time.perf_counter() - start
