"""The decoding loop: propose, forward, process, verify, commit, stop.

It stands in the place of upstream's assisted loop: inputs, processors, criteria and caches were prepared by
``GenerationMixin.generate`` (transformers 5.17 to 5.23). Batch size 1, a dynamic cache that can be cropped, any
architecture, any candidate source. Knows nothing about how a rule decides.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.candidate_generator import (
    _prepare_attention_mask,
    _prepare_position_ids,
    _prepare_token_type_ids,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from hf_judge.constraints import RowProcessor
from hf_judge.sources import CandidateSource
from hf_judge.states import StateReader
from hf_judge.stats import JudgeStats, VerdictCode
from hf_judge.verify import Candidates, CandidateVerifier, Rows, Verdict

_stats_lock = threading.Lock()


@dataclass
class JudgeDecoderOnlyOutput(GenerateDecoderOnlyOutput):
    """Upstream's output of a judged generation, and what the judge did.

    Args:
        judge_stats ([`JudgeStats`]): counts and seconds of this call.
        verdicts (`torch.Tensor` of shape `(batch, n_new)`, int8): a [`VerdictCode`] for every new token.
        scores: here and in `logits`, always the target's: after the processors and raw.
    """

    judge_stats: JudgeStats | None = None
    verdicts: torch.Tensor | None = None


class VerdictStreamer(BaseStreamer):
    """A streamer that is also told how its tokens came about: `put_verdicts` comes before the `put` of the same "
    "tokens."""

    def put_verdicts(self, codes: torch.Tensor) -> None:
        """Receive the (n,) int8 [`VerdictCode`]s of the tokens that the next `put` brings."""
        raise NotImplementedError


def judged_decoding(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    *,
    verifier: CandidateVerifier,
    source: CandidateSource,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    model_kwargs: dict,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
) -> JudgeDecoderOnlyOutput | torch.LongTensor:
    """Generate with drafts that `verifier` accepts or rejects.

    Args:
        model: the target.
        input_ids: (1, n) long, the prompt.
        verifier: the acceptance rule.
        source: proposes the drafts.
        logits_processor, stopping_criteria, generation_config, model_kwargs: as `generate()` prepared them.
        synced_gpus: go on with idle forwards until every rank has finished.
        streamer: receives the new tokens block by block.

    Returns:
        (1, n + n_new) long, or [`JudgeDecoderOnlyOutput`] with `return_dict_in_generate=True`.
    """
    stats, clock = JudgeStats(), _Clock()
    process = RowProcessor(logits_processor)
    stop = _Stop(stopping_criteria, generation_config, input_ids.device)
    record = _Record(generation_config)
    n_prompt = input_ids.shape[1]
    codes = []
    outputs, n_accepted, finished = None, 0, False

    with StateReader(model, getattr(verifier, "hidden_state", "post_norm")) as reader:
        while model._has_unfinished_sequences(finished, synced_gpus, device=input_ids.device):
            if finished:  # another rank goes on: take part in its collective forwards, change nothing
                _idle_forward(model, input_ids, stats)
                continue
            clock.start()

            # 1. propose
            room = stop.max_length - input_ids.shape[1]
            ids, draft_logits = source.propose(
                input_ids,
                budget=room - 1,  # the target adds a token of its own
                model_kwargs=model_kwargs,
                outputs=outputs,
                n_last_accepted=n_accepted,
            )
            k = ids.shape[1]
            stats.seconds_drafting += clock.lap()

            # 2. forward: one pass over the draft gives k+1 rows
            inputs = _round_inputs(model, input_ids, ids, model_kwargs, generation_config, is_first=outputs is None)
            outputs = model(**reader.request(inputs, source.model_kwargs_overrides))
            stats.target_forwards += 1
            logits = outputs.logits[:, -k - 1 :].to(device=input_ids.device, dtype=torch.float32, copy=True)

            # 3. process
            scores, forbidden = process(input_ids, logits, ids)
            stats.seconds_verifying += clock.lap()

            # 4. verify
            candidates = Candidates(
                ids=ids,
                lengths=ids.new_full((1,), k),
                logits=draft_logits,
                forbidden=forbidden,
                stop=torch.isin(ids, stop.token_ids),
                n_generated=ids.new_full((1,), stats.new_tokens),
                n_rescued=ids.new_full((1,), stats.rescued),
            )
            rows = Rows(logits, scores, reader.read(outputs, k + 1), bool(generation_config.do_sample))
            verdict = verifier.verify(candidates, rows)
            n_accepted = int(verdict.n_accepted)
            stats.seconds_judging += clock.lap()

            # 5. commit
            new_ids = torch.cat([ids[:, :n_accepted], verdict.next_token.view(1, 1).to(ids)], dim=1)
            n_new, finished = stop.cut(input_ids, new_ids, record, logits, scores)
            new_ids, new_codes = new_ids[:, :n_new], verdict.codes[:, :n_new]
            n_accepted = min(n_accepted, n_new)
            _count(stats, verdict, new_codes, k)
            codes.append(new_codes)
            record.states(outputs, k, n_new)
            input_ids = torch.cat([input_ids, new_ids], dim=1)
            if streamer is not None:
                if isinstance(streamer, VerdictStreamer):
                    streamer.put_verdicts(new_codes[0].cpu())
                streamer.put(new_ids.cpu())
            # The last new token was not fed yet: the cache keeps the rows before it. crop(0) matters too, it lets
            # sliding-window layers shrink back to their window.
            outputs.past_key_values.crop(-(k + 1 - n_new))
            source.update(input_ids, scores, n_accepted)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, num_new_tokens=n_new)
            stats.seconds_rest += clock.lap()
            # 6. stop: the loop's condition

    if streamer is not None:
        streamer.end()
    with _stats_lock:
        verifier.stats = verifier.stats + stats
    if not generation_config.return_dict_in_generate:
        return input_ids
    empty = torch.zeros((1, 0), dtype=torch.int8, device=input_ids.device)
    return JudgeDecoderOnlyOutput(
        sequences=input_ids,
        **record.collected(),
        past_key_values=model_kwargs.get("past_key_values"),
        judge_stats=stats,
        verdicts=torch.cat([empty, *codes], dim=1)[:, : input_ids.shape[1] - n_prompt],
    )


def _round_inputs(model, input_ids, candidate_ids, model_kwargs, generation_config, *, is_first: bool) -> dict:
    """The target's forward arguments for a round: what the cache lacks of the sequence, then the draft."""
    k = candidate_ids.shape[1]
    kwargs = dict(model_kwargs)
    total = _known_length(input_ids, kwargs, generation_config)
    # Lengths are counted from what is there, not from input_ids: an earlier turn may live in the cache alone.
    if kwargs.get("attention_mask") is not None:
        kwargs = _prepare_attention_mask(kwargs, kwargs["attention_mask"].shape[1] + k, False)
    if kwargs.get("position_ids") is not None:
        kwargs = _prepare_position_ids(kwargs, kwargs["position_ids"].shape[-1] + k, False)
    if kwargs.get("token_type_ids") is not None:
        kwargs = _prepare_token_type_ids(kwargs, kwargs["token_type_ids"].shape[1] + k)
    n_next = k + 1
    if is_first:
        cached = kwargs["past_key_values"].get_seq_length()
        if kwargs.get("inputs_embeds") is not None:
            n_next = kwargs["inputs_embeds"].shape[1] - cached
        else:
            # either the whole sequence was passed again, or only what the cache does not hold yet
            if total == input_ids.shape[1] <= cached:
                raise ValueError(
                    f"past_key_values holds {cached} tokens, but input_ids and attention_mask have {total}: pass the ids "
                    "of the whole sequence, or only the new ids with the attention_mask of the whole sequence"
                )
            n_next = k + (input_ids.shape[1] - cached if total == input_ids.shape[1] else input_ids.shape[1])
    inputs = model.prepare_inputs_for_generation(
        torch.cat([input_ids, candidate_ids], dim=1), next_sequence_length=n_next, is_first_iteration=is_first, **kwargs
    )
    if "logits_to_keep" in inputs:
        inputs["logits_to_keep"] = k + 1
    return inputs


def _known_length(input_ids, kwargs: dict, generation_config) -> int:
    """Length of the sequence so far, tokens that only the cache holds included."""
    if kwargs.get("attention_mask") is not None:
        return kwargs["attention_mask"].shape[1]
    if kwargs.get("position_ids") is not None:
        return kwargs["position_ids"].shape[-1]
    # upstream drops a mask of ones and leaves its length here (5.19 on)
    return getattr(generation_config, "_mask_length", input_ids.shape[1])


def _idle_forward(model, input_ids, stats: JudgeStats) -> None:
    model(input_ids=input_ids[:, -1:], use_cache=False)
    stats.target_forwards += 1


def _count(stats: JudgeStats, verdict: Verdict, codes: torch.Tensor, n_drafted: int) -> None:
    counts = torch.bincount(codes.flatten().long(), minlength=len(VerdictCode)).tolist()
    stats.rounds += 1
    stats.drafted += n_drafted
    stats.matched += counts[VerdictCode.MATCHED]
    stats.rescued += counts[VerdictCode.RESCUED]
    stats.corrected += counts[VerdictCode.CORRECTED]
    stats.bonus += counts[VerdictCode.BONUS]
    stats.accepted += counts[VerdictCode.MATCHED] + counts[VerdictCode.RESCUED]
    stats.refused_by_constraint += 0 if verdict.n_refused is None else int(verdict.n_refused.sum())
    stats.non_finite += 0 if verdict.n_non_finite is None else int(verdict.n_non_finite.sum())


class _Clock:
    """Host time between phases. Reading the accepted length is the round's one synchronisation with the device: on a
    GPU, work that a phase only launched is counted where the round waits for it, in the judging phase."""

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class _Stop:
    """Where an answer ends: lengths and end tokens for a whole block at once, every other criterion at every new "
    "token."""

    def __init__(self, criteria: StoppingCriteriaList, generation_config: GenerationConfig, device: torch.device):
        lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
        self.max_length = min([*lengths, generation_config.max_length])
        self._ends = set()
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self._ends.update(criterion.eos_token_id.flatten().tolist())
        stop_tokens = set(self._ends)
        if generation_config._eos_token_tensor is not None:
            stop_tokens.update(generation_config._eos_token_tensor.flatten().tolist())
        self.token_ids = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=device)
        self._others = StoppingCriteriaList(c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria))

    def cut(self, input_ids, new_ids, record: _Record, logits, scores) -> tuple[int, bool]:
        """How many of the new tokens (1, n) stand, and whether the answer ends with them; keeps their scores."""
        room = self.max_length - input_ids.shape[1]
        tokens = new_ids[0].tolist()[:room]
        n_new = next((i + 1 for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        finished = n_new == room or tokens[n_new - 1] in self._ends
        for i in range(n_new):
            record.scores(logits[:, i], scores[:, i])
            if self._others:
                so_far = torch.cat([input_ids, new_ids[:, : i + 1]], dim=1)
                if bool(self._others(so_far, record.score_rows).all()):
                    return i + 1, True
        return n_new, finished


class _Record:
    """What `return_dict_in_generate` asked for, one entry per new token as in plain decoding."""

    def __init__(self, config: GenerationConfig):
        wanted = config.return_dict_in_generate
        self.score_rows = () if wanted and config.output_scores else None
        self._logit_rows = () if wanted and config.output_logits else None
        self._attentions = () if wanted and config.output_attentions else None
        self._hidden_states = () if wanted and config.output_hidden_states else None
        self._is_first = True

    def scores(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        if self.score_rows is not None:
            self.score_rows += (scores,)
        if self._logit_rows is not None:
            self._logit_rows += (logits,)

    def states(self, outputs: ModelOutput, k: int, n_new: int) -> None:
        # some models run sdpa only and return None for their attentions
        if self._attentions is not None and outputs.attentions and outputs.attentions[0] is not None:
            self._attentions += _attentions_per_token(
                outputs.attentions, _windows(outputs.past_key_values, len(outputs.attentions)), k, n_new, self._is_first
            )
        if self._hidden_states is not None:
            self._hidden_states += _states_per_token(outputs.hidden_states, k, n_new, self._is_first)
        self._is_first = False

    def collected(self) -> dict:
        return {
            "scores": self.score_rows,
            "logits": self._logit_rows,
            "attentions": self._attentions,
            "hidden_states": self._hidden_states,
        }


def _states_per_token(layers: tuple, k: int, n_new: int, is_first: bool) -> tuple:
    """Split a round's tensors (..., rows, width) into a tuple over layers for each new token.

    Row -(k+1) predicted the first new token, the rows after it the next ones; the very first entry holds the whole
    prompt.
    """
    tokens = ()
    for i in range(n_new):
        entry = ()
        for layer in layers:
            last = layer.shape[-2] - k + i  # rows up to and with the one that predicted token i
            entry += (layer[..., 0 if is_first and i == 0 else last - 1 : last, :],)
        tokens += (entry,)
    return tokens


def _attentions_per_token(layers: tuple, windows: list, k: int, n_new: int, is_first: bool) -> tuple:
    """As [`_states_per_token`] for weights (..., rows, keys): with the keys that plain decoding would have seen."""
    tokens = ()
    for i, entry in enumerate(_states_per_token(layers, k, n_new, is_first)):
        of_prompt, cropped = is_first and i == 0, ()
        for weights, window in zip(entry, windows, strict=True):
            n_keys = weights.shape[-1] - k + i  # the drafted tokens after token i were not there
            # a cache that can be rolled back keeps more than the window of a sliding layer
            first = 0 if of_prompt or window is None else max(n_keys - window, 0)
            cropped += (weights[..., first:n_keys],)
        tokens += (cropped,)
    return tokens


def _windows(cache, n_layers: int) -> list[int | None]:
    """Keys that one new token sees in each layer; None: all."""
    if len(cache.layers) != n_layers:  # layers that share keys or have no attention: which is which is not known
        return [None] * n_layers
    layers = zip(cache.layers, cache.is_sliding, strict=True)
    return [layer.sliding_window if is_sliding else None for layer, is_sliding in layers]
