"""The decoding loop: propose, forward, process, verify, commit, stop.

It stands in the place of upstream's assisted loop: inputs, processors, criteria and caches were prepared by
``GenerationMixin.generate`` (transformers 5.19 to 5.24). Where drafts come from and how the target runs is a backend's
affair (`cropping.py`, `ragged/`); how a rule decides is `verify.py`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from hf_judge.decoding.record import Record, merged
from hf_judge.upstream.devices import sent
from hf_judge.upstream.forward import pad_token, stop_tokens, with_cache
from hf_judge.upstream.names import BaseStreamer, GenerateDecoderOnlyOutput, ModelOutput
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.processors import AtRow, RowProcessor, is_upstreams_own
from hf_judge.verify.rule import Candidates, CandidateVerifier, Rows, Verdict
from hf_judge.verify.stats import JudgeStats, VerdictCode

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
    """A streamer that is also told how its tokens came about.

    `put_verdicts` comes before the `put` of the same tokens.
    """

    def put_verdicts(self, codes: torch.Tensor) -> None:
        """Receive the (n,) int8 [`VerdictCode`]s of the tokens that the next `put` brings."""
        raise NotImplementedError


class Draft(NamedTuple):
    """What a backend proposes for the rows in work."""

    ids: torch.Tensor  # (batch, k) long, padded on the right
    lengths: torch.Tensor  # (batch,) long
    logits: torch.Tensor | None  # (batch, k, V), the scores the ids were drawn from; None: no random draw
    raw_logits: torch.Tensor | None = None  # (batch, k, V), the draft's own, before processors; None: not known


class Forward(NamedTuple):
    """The target's rows for a draft."""

    logits: torch.Tensor  # (batch, k+1, V) float32, raw
    hidden: torch.Tensor | None  # (batch, k+1, D), the state the verifier reads
    outputs: ModelOutput | None  # the model's own output, for attentions and hidden states


class Backend(Protocol):
    """Drafts, runs the target, and keeps the caches of the rows in work."""

    def propose(self, answers: list[torch.LongTensor], budgets: list[int]) -> Draft:
        """Draft at most `budgets[r]` tokens after each row, (1, n_r) long."""

    def forward(self, answers: list[torch.LongTensor], draft: Draft) -> Forward:
        """Run the target over the last committed token and the draft of every row."""

    def commit(self, answers: list[torch.LongTensor], grown: list[tuple[int, int]], scores: torch.Tensor) -> None:
        """Roll back what was rejected: `grown` holds each row's new tokens and how many of them were drafted."""

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only; the others have finished."""

    def idle(self) -> None:
        """A forward that changes nothing, for ranks that wait for others."""

    def cache(self):
        """The target's cache to return to the caller, or None for a batch."""

    def close(self, *, failed: bool = False) -> None:
        """The call has ended: let go of its memory. After a failure nothing is kept for the next call either."""


@dataclass
class _Answer:
    """One row: its tokens so far and what must be known about them."""

    ids: torch.LongTensor  # (1, n), the prompt (with its padding) and the answer
    process: RowProcessor
    record: Record
    row: int  # its place in the batch
    codes: list[int] = field(default_factory=list)  # one VerdictCode per new token
    n_rescued: int = 0
    finished: bool = False


def judged_decoding(
    backend: Backend,
    input_ids: torch.LongTensor,
    *,
    verifier: CandidateVerifier,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    has_unfinished: Callable[[bool], bool],
    ranks: Ranks,
    streamer: BaseStreamer | None = None,
) -> JudgeDecoderOnlyOutput | torch.LongTensor:
    """Generate with drafts that `verifier` accepts or rejects.

    Args:
        backend: drafts and runs the target.
        input_ids: (batch, n) long, the prompts.
        verifier: the acceptance rule.
        logits_processor, stopping_criteria, generation_config: as `generate()` prepared them.
        has_unfinished: told whether this process has finished; whether any process has work left.
        ranks: the processes that run this very call together; what the first of them decides counts.
        streamer: receives the new tokens block by block (one row only).

    Returns:
        (batch, n + n_new) long, padded on the right, or [`JudgeDecoderOnlyOutput`] with `return_dict_in_generate=True`.
    """
    stats, clock = JudgeStats(), _Clock()
    stop = _Stop(stopping_criteria, generation_config, input_ids.shape[0], input_ids.device, ranks)
    answers = [
        _Answer(
            input_ids[row : row + 1],
            RowProcessor(logits_processor, row, input_ids.shape[0]),
            Record(generation_config),
            row,
        )
        for row in range(input_ids.shape[0])
    ]
    active = list(answers)

    while has_unfinished(not active):
        if not active:  # another rank goes on: take part in its collective forwards, change nothing
            backend.idle()
            stats.target_forwards += 1
            continue
        clock.start()

        # 1. propose; the target adds a token of its own, so one place stays free
        so_far = [answer.ids for answer in active]
        draft = backend.propose(so_far, [stop.max_length - ids.shape[1] - 1 for ids in so_far])
        stats.seconds_drafting += clock.lap()

        # 2. forward: one pass over the draft gives k+1 rows
        rows = backend.forward(so_far, draft)
        stats.target_forwards += 1
        stats.row_forwards += len(active)

        # 3. process
        processed = [a.process(a.ids, rows.logits[r : r + 1], draft.ids[r : r + 1]) for r, a in enumerate(active)]
        scores, forbidden = (torch.cat(tensors) for tensors in zip(*processed, strict=True))
        stats.seconds_verifying += clock.lap()

        # 4. verify
        candidates = Candidates(
            ids=draft.ids,
            lengths=draft.lengths,
            logits=draft.logits,
            forbidden=forbidden,
            stop=torch.isin(draft.ids, stop.token_ids),
            n_generated=sent([len(answer.codes) for answer in active], draft.lengths.device),
            n_rescued=sent([answer.n_rescued for answer in active], draft.lengths.device),
            raw_logits=draft.raw_logits,
        )
        decision = None
        if ranks.decides:
            do_sample = bool(generation_config.do_sample)
            decision = _packed(draft, verifier.verify(candidates, Rows(rows.logits, scores, rows.hidden, do_sample)))
        blocks = _to_host(draft, decision, ranks)
        stats.seconds_judging += clock.lap()

        # 5. commit
        grown = []  # (new tokens, accepted drafted tokens) of each row
        for r, (answer, block) in enumerate(zip(active, blocks, strict=True)):
            n_new, answer.finished = stop.cut(answer, block.tokens, rows.logits[r : r + 1], scores[r : r + 1])
            tokens, codes = answer.ids.new_tensor([block.tokens[:n_new]]), block.codes[:n_new]
            answer.ids = torch.cat([answer.ids, tokens], dim=1)
            answer.codes += codes
            answer.n_rescued += codes.count(VerdictCode.RESCUED)
            answer.record.states(rows.outputs, draft.ids.shape[1], n_new)
            grown.append((n_new, min(block.n_accepted, n_new)))
            _count(stats, block, codes)
            if streamer is not None:
                if isinstance(streamer, VerdictStreamer):
                    streamer.put_verdicts(torch.tensor(codes, dtype=torch.int8))
                streamer.put(tokens.cpu())
        stats.rounds += 1
        backend.commit([answer.ids for answer in active], grown, scores)

        # 6. stop
        going = [r for r, answer in enumerate(active) if not answer.finished]
        if len(going) < len(active):
            active = [active[r] for r in going]
            if active:
                backend.keep(going)
        stats.seconds_rest += clock.lap()

    if streamer is not None:
        streamer.end()
    with _stats_lock:
        verifier.stats = verifier.stats + stats
    return _output(answers, generation_config, stats, backend)


class _Block(NamedTuple):
    """One row's verdict on the host."""

    tokens: list[int]  # the accepted drafted tokens and the target's own
    codes: list[int]  # of the same tokens
    n_accepted: int
    n_drafted: int
    n_refused: int
    n_non_finite: int


def _packed(draft: Draft, verdict: Verdict) -> torch.LongTensor:
    """All of a round's decisions, (batch, 5 + k + k+1)."""
    zeros = torch.zeros_like(draft.lengths)
    refused = zeros if verdict.n_refused is None else verdict.n_refused
    non_finite = zeros if verdict.n_non_finite is None else verdict.n_non_finite
    columns = torch.stack([verdict.n_accepted, verdict.next_token, draft.lengths, refused, non_finite], dim=1)
    return torch.cat([columns.to(draft.ids), draft.ids, verdict.codes.to(draft.ids)], dim=1)


def _to_host(draft: Draft, decision: torch.LongTensor | None, ranks: Ranks) -> list[_Block]:
    """Read the round's decisions, or another process's: the round's one synchronisation with the device."""
    batch, k = draft.ids.shape
    if decision is None:
        decision = draft.ids.new_zeros(batch, 5 + k + k + 1)
    blocks = []
    for n_accepted, own_token, n_drafted, n_refused, n_non_finite, *rest in ranks.agree(decision).tolist():
        tokens, codes = [*rest[:n_accepted], own_token], rest[k : k + n_accepted + 1]
        blocks.append(_Block(tokens, codes, n_accepted, n_drafted, n_refused, n_non_finite))
    return blocks


def _count(stats: JudgeStats, block: _Block, codes: list[int]) -> None:
    stats.drafted += block.n_drafted
    stats.matched += codes.count(VerdictCode.MATCHED)
    stats.rescued += codes.count(VerdictCode.RESCUED)
    stats.corrected += codes.count(VerdictCode.CORRECTED)
    stats.bonus += codes.count(VerdictCode.BONUS)
    stats.accepted += codes.count(VerdictCode.MATCHED) + codes.count(VerdictCode.RESCUED)
    stats.refused_by_constraint += block.n_refused
    stats.non_finite += block.n_non_finite


def _output(answers: list[_Answer], config: GenerationConfig, stats: JudgeStats, backend: Backend):
    sequences = _padded([answer.ids for answer in answers], pad_token(config))
    if not config.return_dict_in_generate:
        return sequences
    codes = [torch.tensor([answer.codes], dtype=torch.int8, device=sequences.device) for answer in answers]
    return JudgeDecoderOnlyOutput(
        sequences=sequences,
        **merged([answer.record for answer in answers]),
        **with_cache(backend.cache()),
        judge_stats=stats,
        verdicts=_padded(codes, int(VerdictCode.PADDING)),
    )


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1]), value=value) for row in rows])


class _Clock:
    """Host time between phases.

    Reading the verdict is the round's one synchronisation with the device: on a GPU, work that a phase only launched is
    counted where the round waits for it, in the judging phase.
    """

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class _Stop:
    """Where an answer ends: by length and end tokens for a whole block at once, by other criteria token by token."""

    def __init__(
        self,
        criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        n_rows: int,
        device: torch.device,
        ranks: Ranks,
    ):
        self._ranks = ranks
        lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
        self.max_length = min([*lengths, generation_config.max_length])
        self._ends = set()
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self._ends.update(criterion.eos_token_id.flatten().tolist())
        configured = stop_tokens(generation_config)
        ends = self._ends | set([] if configured is None else configured.tolist())
        self.token_ids = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        others = [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]
        self._others = [  # for each place in the batch
            StoppingCriteriaList(c if n_rows == 1 or is_upstreams_own(c) else AtRow(c, row, n_rows) for c in others)
            for row in range(n_rows)
        ]

    def cut(self, answer: _Answer, tokens: list[int], logits: torch.Tensor, scores: torch.Tensor) -> tuple[int, bool]:
        """How many of the new tokens stand, and whether the answer ends with them; records their scores.

        Args:
            answer: the row before the block.
            tokens: the block.
            logits, scores: (1, k+1, V), the target's rows, raw and processed.
        """
        room = max(self.max_length - answer.ids.shape[1], 1)  # plain decoding too looks after its first token
        tokens = tokens[:room]
        n_new = next((i + 1 for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        finished = n_new == room or tokens[n_new - 1] in self._ends
        for i in range(n_new):
            answer.record.scores(logits[:, i], scores[:, i])
            if self._others[answer.row]:
                so_far = torch.cat([answer.ids, answer.ids.new_tensor([tokens[: i + 1]])], dim=1)
                met = self._others[answer.row](so_far, answer.record.score_rows).all()
                if bool(self._ranks.agree(met)):
                    return i + 1, True
        return n_new, finished
