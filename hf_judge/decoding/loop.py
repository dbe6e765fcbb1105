"""Runs the decoding loop: propose, forward, process, verify, commit, stop.

It stands in the place of upstream's assisted loop: `GenerationMixin.generate` (transformers 5.19 to 5.24) has prepared
inputs, processors, criteria and caches. A backend (`upstream_caches.py` or `ragged/backend.py`) supplies drafts and
target forwards; a rule (`verify/`) decides which drafted tokens to accept.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from hf_judge.decoding.backend import Backend, Draft, Forward
from hf_judge.decoding.output import JudgeDecoderOnlyOutput, VerdictStreamer
from hf_judge.decoding.record import Record, merged
from hf_judge.decoding.stopping import StoppingRule
from hf_judge.upstream.forward import pad_token, sent, with_cache
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.processors import PromptProcessor, check_own_processors
from hf_judge.verify.round import Candidates, CandidateVerifier, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats, VerdictCode

_stats_lock = threading.Lock()


def judged_decoding(
    call: PreparedCall, backend: Backend, verifier: CandidateVerifier, ranks: Ranks
) -> JudgeDecoderOnlyOutput | torch.LongTensor:
    """Generate with drafts that `verifier` accepts or rejects.

    Args:
        call: the call as `generate()` prepared it.
        backend: supplies drafts and target forwards.
        verifier: the acceptance rule.
        ranks: the processes that run this very call together; the first of them decides for all.

    Returns:
        (batch, n + n_new) long, padded on the right, or [`JudgeDecoderOnlyOutput`] with `return_dict_in_generate=True`.
    """
    stats, clock = JudgeStats(), _Clock()
    prompts = _prompts(call)
    stop = StoppingRule(call.stopping_criteria, call.generation_config, len(prompts), call.input_ids.device, ranks)
    do_sample = bool(call.generation_config.do_sample)
    unfinished = list(prompts)

    while call.has_unfinished(not unfinished):
        if not unfinished:  # another process goes on: take part in its collective forwards, change nothing
            backend.idle()
            stats.target_forwards += 1
            continue
        clock.start()

        # 1. propose; the target adds a token of its own, so one place stays free
        texts = [prompt.ids for prompt in unfinished]
        draft = backend.propose(texts, [stop.max_length - ids.shape[1] - 1 for ids in texts])
        stats.seconds_drafting += clock.lap()

        # 2. forward: one pass over the draft gives outputs at k+1 positions
        forward = backend.forward(texts, draft)
        stats.target_forwards += 1
        stats.row_forwards += len(unfinished)

        # 3. process: the logits processors, prompt by prompt
        if stats.rounds == 0:
            check_own_processors(call.logits_processor, call.input_ids, forward.logits[:, 0])
        scores, forbidden = _processed(unfinished, forward, draft)
        stats.seconds_verifying += clock.lap()

        # 4. verify: the rule decides how much of each draft to accept
        verdict = None
        if ranks.decides:
            candidates = _candidates(unfinished, draft, forbidden, stop.stop_tokens)
            verdict = verifier.verify(candidates, TargetOutputs(forward.logits, scores, forward.hidden, do_sample))
        decisions = _to_host(draft, verdict, ranks)
        stats.seconds_judging += clock.lap()

        # 5. commit: the new tokens join the texts, the caches are rolled back
        growth = _commit(call, unfinished, stop, decisions, forward, scores)
        _count(stats, decisions, growth)
        backend.commit([prompt.ids for prompt in unfinished], growth, scores)

        # 6. stop: finished prompts leave the batch
        kept = [i for i, prompt in enumerate(unfinished) if not prompt.finished]
        if len(kept) < len(unfinished):
            unfinished = [unfinished[i] for i in kept]
            if unfinished:
                backend.keep(kept)
        stats.seconds_rest += clock.lap()

    _check_own_criteria(call, prompts, stop)
    if call.streamer is not None:
        call.streamer.end()
    with _stats_lock:
        verifier.stats = verifier.stats + stats
    return _output(call, prompts, stats, backend)


@dataclass
class _Prompt:
    """One prompt of the batch with its answer so far."""

    ids: torch.LongTensor  # (1, n), the prompt (with its padding) and the answer
    process: PromptProcessor
    record: Record
    place: int  # in the batch
    codes: list[int] = field(default_factory=list)  # one VerdictCode for each new token
    n_rescued: int = 0
    finished: bool = False


def _prompts(call: PreparedCall) -> list[_Prompt]:
    n_prompts = call.input_ids.shape[0]
    return [
        _Prompt(
            call.input_ids[place : place + 1],
            PromptProcessor(call.logits_processor, place, n_prompts),
            Record(call.generation_config),
            place,
        )
        for place in range(n_prompts)
    ]


def _processed(prompts: list[_Prompt], forward: Forward, draft: Draft) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the logits processors: scores (batch, k+1, V), and the drafted tokens that they forbid (batch, k)."""
    processed = [
        prompt.process(prompt.ids, forward.logits[i : i + 1], draft.ids[i : i + 1]) for i, prompt in enumerate(prompts)
    ]
    scores, forbidden = (torch.cat(tensors) for tensors in zip(*processed, strict=True))
    return scores, forbidden


def _candidates(
    prompts: list[_Prompt], draft: Draft, forbidden: torch.Tensor, stop_tokens: torch.LongTensor
) -> Candidates:
    device = draft.lengths.device
    return Candidates(
        ids=draft.ids,
        lengths=draft.lengths,
        logits=draft.logits,
        forbidden=forbidden,
        stop=torch.isin(draft.ids, stop_tokens),
        n_generated=sent([len(prompt.codes) for prompt in prompts], device),
        n_rescued=sent([prompt.n_rescued for prompt in prompts], device),
        raw_logits=draft.raw_logits,
        places=sent([prompt.place for prompt in prompts], device),
        texts=tuple(prompt.ids for prompt in prompts),
    )


class _Decision(NamedTuple):
    """The verdict about one prompt, on the host."""

    tokens: list[int]  # the accepted drafted tokens and the target's own
    codes: list[int]  # one VerdictCode for each of them
    n_accepted: int
    n_drafted: int
    n_refused: int
    n_non_finite: int


def _to_host(draft: Draft, verdict: Verdict | None, ranks: Ranks) -> list[_Decision]:
    """Read the round's verdict, or another process's (None): the round's one synchronisation with the device."""
    batch, k = draft.ids.shape
    if verdict is None:
        packed = draft.ids.new_zeros(batch, 5 + k + k + 1)
    else:
        zeros = torch.zeros_like(draft.lengths)
        refused = zeros if verdict.n_refused is None else verdict.n_refused
        non_finite = zeros if verdict.n_non_finite is None else verdict.n_non_finite
        columns = torch.stack([verdict.n_accepted, verdict.next_token, draft.lengths, refused, non_finite], dim=1)
        packed = torch.cat([columns.to(draft.ids), draft.ids, verdict.codes.to(draft.ids)], dim=1)
    decisions = []
    for n_accepted, own_token, n_drafted, n_refused, n_non_finite, *rest in ranks.agree(packed).tolist():
        if own_token < 0:
            raise RuntimeError(
                "sampling needs finite probabilities, one of them above zero; the target's scores after the logits "
                "processors gave others: load the target in bfloat16 or float32, or look for a processor that forbids "
                "every token"
            )
        tokens, codes = [*rest[:n_accepted], own_token], rest[k : k + n_accepted + 1]
        decisions.append(_Decision(tokens, codes, n_accepted, n_drafted, n_refused, n_non_finite))
    return decisions


def _commit(
    call: PreparedCall,
    prompts: list[_Prompt],
    stop: StoppingRule,
    decisions: list[_Decision],
    forward: Forward,
    scores: torch.Tensor,
) -> list[tuple[int, int]]:
    """Add the new tokens to the texts; return their number and how many of them were drafted, for each prompt."""
    k, growth = scores.shape[1] - 1, []
    for i, (prompt, decision) in enumerate(zip(prompts, decisions, strict=True)):
        of_prompt = forward.logits[i : i + 1], scores[i : i + 1]
        n_new, prompt.finished = stop.cut(prompt.place, prompt.ids, decision.tokens, prompt.record, *of_prompt)
        tokens = sent(decision.tokens[:n_new], prompt.ids.device).unsqueeze(0)
        codes = decision.codes[:n_new]
        prompt.ids = torch.cat([prompt.ids, tokens], dim=1)
        prompt.codes += codes
        prompt.n_rescued += codes.count(VerdictCode.RESCUED)
        prompt.record.states(forward.outputs, k, n_new)
        growth.append((n_new, min(decision.n_accepted, n_new)))
        if isinstance(call.streamer, VerdictStreamer):
            call.streamer.put_verdicts(torch.tensor(codes, dtype=torch.int8))
        if call.streamer is not None:
            call.streamer.put(tokens.cpu())
    return growth


def _check_own_criteria(call: PreparedCall, prompts: list[_Prompt], stop: StoppingRule) -> None:
    """Refuse a batch's answers if a caller's own criteria would have ended them elsewhere in plain decoding."""
    if stop.own:
        answers = [prompt.ids[0, call.input_ids.shape[1] :] for prompt in prompts]
        step_scores = merged([prompt.record for prompt in prompts])["scores"]
        stop.check_own(call.input_ids, answers, pad_token(call.generation_config), step_scores)


def _count(stats: JudgeStats, decisions: list[_Decision], growth: list[tuple[int, int]]) -> None:
    """Add a round to the statistics."""
    stats.rounds += 1
    for decision, (n_new, _) in zip(decisions, growth, strict=True):
        counts = Counter(decision.codes[:n_new])
        stats.drafted += decision.n_drafted
        stats.matched += counts[VerdictCode.MATCHED]
        stats.rescued += counts[VerdictCode.RESCUED]
        stats.accepted += counts[VerdictCode.MATCHED] + counts[VerdictCode.RESCUED]
        stats.corrected += counts[VerdictCode.CORRECTED]
        stats.bonus += counts[VerdictCode.BONUS]
        stats.refused_by_constraint += decision.n_refused
        stats.non_finite += decision.n_non_finite


def _output(call: PreparedCall, prompts: list[_Prompt], stats: JudgeStats, backend: Backend):
    sequences = _padded([prompt.ids for prompt in prompts], pad_token(call.generation_config))
    if not call.generation_config.return_dict_in_generate:
        return sequences
    codes = [torch.tensor([prompt.codes], dtype=torch.int8, device=sequences.device) for prompt in prompts]
    return JudgeDecoderOnlyOutput(
        sequences=sequences,
        **merged([prompt.record for prompt in prompts]),
        **with_cache(backend.cache()),
        judge_stats=stats,
        verdicts=_padded(codes, int(VerdictCode.PADDING)),
    )


def _padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=value) for t in tensors])


class _Clock:
    """Measures host time between phases.

    Reading the verdict is the round's one synchronisation with the device: on a GPU, work that an earlier phase only
    launched is counted where the round waits for it, in the judging phase.
    """

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
