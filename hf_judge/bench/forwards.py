"""Times bare forwards: their costs, and the least that a round of speculative decoding can take on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable

import torch
from transformers import CompileConfig, DynamicCache, PreTrainedModel

from hf_judge.evaluation.evaluate import Pair
from hf_judge.ragged.compiling import Compiled
from hf_judge.ragged.model import RaggedModel, draft_step
from hf_judge.upstream.forward import with_cache
from hf_judge.upstream.states import StateReader

N_BEHIND_PROMPT = 64  # tokens before the timed round: about the middle of an answer of the embedded pair


class Floor:
    """Times `n_drafted` bare forwards of the draft and one bare forward of the target over `n_drafted` + 1 tokens.

    Args:
        pair: the models.
        prompt_ids: (1, n) long, the prompt after which the forwards run.
        n_drafted: M, drafted tokens per round.
        batch_size: prompts at once.
        compile_config: settings of compiled forwards, measured beside eager ones; None: only eager ones.
    """

    @torch.no_grad()
    def __init__(
        self,
        pair: Pair,
        prompt_ids: torch.LongTensor,
        n_drafted: int,
        *,
        batch_size: int = 1,
        compile_config: CompileConfig | None = None,
    ):
        self._rounds = {"eager": _Round(pair, prompt_ids, n_drafted, batch_size, None)}
        if compile_config is not None:
            self._rounds["compiled"] = _Round(pair, prompt_ids, n_drafted, batch_size, Compiled(compile_config))
        self._seconds: dict[str, list[float]] = {key: [] for key in self._rounds}

    @torch.no_grad()
    def measure(self, n_rounds: int = 12) -> None:
        """Time the bare forwards once more and keep the median of some rounds, after two that warm up."""
        for key, seconds in interleaved_medians(self._rounds, n_rounds).items():
            self._seconds[key].append(seconds)

    def compare_with(self, round_seconds: list[float]) -> dict:
        """Compare the bare forwards with the rounds of the engine.

        Args:
            round_seconds: seconds of the engine's rounds, measured alternately with `measure`.

        Returns:
            Medians as JSON values: "eager_seconds_per_round", "compiled_seconds_per_round" (None: not measured),
            "seconds_per_round" (of the faster one), "engine_seconds_per_round", "share" (bare forwards over the
            engine's round, each pair of neighbouring measurements) and "share_spread".
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


@torch.no_grad()
def measure_costs(pair: Pair, prompt_ids: torch.LongTensor, lengths: tuple[int, ...], repeats: int = 15) -> dict:
    """Measure single forwards after a prompt: of one token for either model, and of M + 1 tokens for the target.

    Args:
        pair: the models.
        prompt_ids: (1, n) long.
        lengths: values of M.
        repeats: measurements; medians are returned.

    Returns:
        target_seconds, draft_seconds, cost_ratio (draft over target), verify_cost (M -> a forward of M + 1 tokens over
        one of a single token).
    """
    sizes = sorted({1, *(m + 1 for m in lengths)})
    forwards = {("target", n): _Forward(pair.target, prompt_ids, n) for n in sizes}
    forwards[("draft", 1)] = _Forward(pair.draft, prompt_ids.to(pair.draft.device), 1)
    median = interleaved_medians(forwards, repeats)
    one = median[("target", 1)]
    return {
        "target_seconds": one,
        "draft_seconds": median[("draft", 1)],
        "cost_ratio": median[("draft", 1)] / one,
        "verify_cost": {str(m): median[("target", m + 1)] / one for m in lengths},
    }


def interleaved_medians(timers: dict[Hashable, Callable[[], float]], repeats: int) -> dict[Hashable, float]:
    """Return the median seconds of each timer; the timers take turns, and two calls of each warm up."""
    seconds = {key: [] for key in timers}
    for i in range(repeats + 2):
        for key, run in timers.items():
            elapsed = run()
            if i >= 2:
                seconds[key].append(elapsed)
    return {key: statistics.median(found) for key, found in seconds.items()}


class _Round:
    """Times the forwards of one round; every call starts from the same cache."""

    def __init__(self, pair: Pair, prompt_ids, n_drafted: int, batch_size: int, compiled: Compiled | None):
        self._n_drafted = n_drafted
        n = prompt_ids.shape[1] + N_BEHIND_PROMPT
        text = prompt_ids.repeat(batch_size, -(-n // prompt_ids.shape[1]))[:, :n]
        reader = StateReader(pair.target, "post_norm")
        if compiled is not None:
            reader.leave_forwards_alone()
        self._model_kwargs = reader.request({}, {})
        self._target = RaggedModel(pair.target, batch_size, compiled=compiled)
        self._draft = RaggedModel(pair.draft, batch_size, draft_step, compiled)
        # contiguous, as in drafting and verifying: the strides of a slice would be compiled for separately
        self._token = text[:, -1:].clone(memory_format=torch.contiguous_format)
        self._ids = self._token.repeat(1, n_drafted + 1)
        self._first = torch.full((batch_size,), n - 1, device=text.device)
        self._target.prefill(text, [n] * batch_size, **self._model_kwargs)
        self._draft.prefill(text, [n] * batch_size)
        for rows, widths, model_kwargs in (
            (self._draft, [1], {}),
            (self._target, [n_drafted + 1], {"logits_to_keep": n_drafted + 1} | self._model_kwargs),
        ):
            rows.cache.reserve(n + n_drafted)
            if compiled is not None:
                rows.warm_up(widths, n + n_drafted, "Compiling the floor", **model_kwargs)

    def __call__(self) -> float:
        start = time.perf_counter()
        token, first = self._token.to(self._draft.device), self._first.to(self._draft.device)
        for _ in range(self._n_drafted):
            _, token = self._draft.run(token, first)
            first = first + 1
        outputs = self._target.run(self._ids, self._first, logits_to_keep=self._n_drafted + 1, **self._model_kwargs)
        outputs.logits[0, -1].argmax().item()  # the one synchronisation that decoding needs too
        return time.perf_counter() - start


class _Forward:
    """Times one forward of `n` tokens after a prompt; every call starts from the same cache."""

    def __init__(self, model: PreTrainedModel, prompt_ids: torch.LongTensor, n: int):
        self._model, self._n = model, n
        self._ids = prompt_ids[:, -1:].expand(1, n)
        self._cache = DynamicCache(config=model.config)
        model(input_ids=prompt_ids, use_cache=True, **with_cache(self._cache))
        self._prompt_length = prompt_ids.shape[1]

    def __call__(self) -> float:
        start = time.perf_counter()
        outputs = self._model(input_ids=self._ids, use_cache=True, **with_cache(self._cache))
        outputs.logits[0, -1].argmax().item()  # the one synchronisation that decoding needs too
        seconds = time.perf_counter() - start
        self._cache.crop(-self._n)
        return seconds
