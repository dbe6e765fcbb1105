"""The ragged backend: any batch, an assistant model of the same vocabulary, full attention."""

from __future__ import annotations

import sys
import time

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel

from hf_judge.decoding.loop import Draft, Forward
from hf_judge.ragged.compiling import compile_for
from hf_judge.ragged.drafting import Drafter
from hf_judge.ragged.rows import ModelRows
from hf_judge.ragged.schedule import length_schedule
from hf_judge.upstream.candidates import DraftingOptions
from hf_judge.upstream.devices import sent
from hf_judge.upstream.forward import stop_tokens, vocabulary_rows
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.processors import RowProcessor
from hf_judge.upstream.states import StateReader

DEFAULT_TOKENS = 20  # upstream's default draft length


class RaggedBackend:
    """Runs target and draft on caches whose rows have lengths of their own.

    Args:
        model: the target.
        draft: the assistant model.
        input_ids: (batch, n) long, prompts, padded on the left.
        attention_mask: (batch, n), 0 on padding; None: no padding.
        reader: reads the target's hidden state.
        generation_config: the prepared config of this call.
        logits_processor: the target's processors; drafts obey them too.
        options: drafting settings of this call.
        ranks: the processes that run this very call together.
        synced_gpus: other processes wait for each forward of the target.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        draft: PreTrainedModel,
        input_ids: torch.LongTensor,
        *,
        attention_mask: torch.Tensor | None,
        reader: StateReader,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        options: DraftingOptions,
        ranks: Ranks,
        synced_gpus: bool,
    ):
        batch, end = input_ids.shape[0], stop_tokens(generation_config)
        own = draft.generation_config
        n_tokens = options.num_assistant_tokens or own.num_assistant_tokens or DEFAULT_TOKENS
        schedule = options.num_assistant_tokens_schedule or own.num_assistant_tokens_schedule or "constant"
        self._schedule = length_schedule(n_tokens, schedule, told=options.num_assistant_tokens is not None)
        self._reader, self._ranks, self._max_length = reader, ranks, generation_config.max_length
        self._pads = [0] * batch if attention_mask is None else (attention_mask == 0).sum(dim=1).tolist()
        self._n_cached = 0 if batch == 1 else None  # tokens of a single row that its cache holds
        self._max_position = min(_max_positions(model), _max_positions(draft))
        # compiling runs the target, in each process on its own
        may_compile = ranks.alone and not synced_gpus
        self._compiled = compile_for(model, draft, generation_config) if may_compile else None
        if self._compiled is not None:
            reader.leave_forwards_alone()
        n_more = min(self._schedule.next(), max(self._max_length - input_ids.shape[1], 0)) + 1
        limit = self._max_length + n_more
        last = self._max_length - 1
        self._target = ModelRows(
            model, batch, compiled=self._compiled, device=input_ids.device, limit=limit, last_position=last
        )
        self._draft_positions = _max_positions(draft)
        self._drafter = Drafter(
            draft,
            batch,
            processors=[RowProcessor(logits_processor, row, batch) for row in range(batch)] if logits_processor else [],
            do_sample=bool(generation_config.do_sample),
            end_ids=input_ids.new_zeros(0) if end is None else end,
            confidence=options.assistant_confidence_threshold or 0.0,
            compiled=self._compiled,
            limit=limit,
            last_position=min(last, self._draft_positions - 1),
            vocabulary=vocabulary_rows(model),
        )
        lengths = [input_ids.shape[1] - pad for pad in self._pads]
        packed = torch.stack([torch.roll(ids, -pad) for ids, pad in zip(input_ids, self._pads, strict=True)])
        self._started, self._warm = 0.0, None
        try:
            # asking for the state here too lets upstream get ready for it outside of what is compiled
            self._target.prefill(packed, lengths, n_more=n_more, in_one=synced_gpus, **reader.request({}, {}))
            reader.forget()
            if ranks.decides and max(lengths) <= self._draft_positions:
                self._drafter.prefill(packed, lengths, n_more=n_more)
        except BaseException:
            self.close(failed=True)
            raise

    def propose(self, answers: list[torch.LongTensor], budgets: list[int]) -> Draft:
        """See [`hf_judge.decoding.loop.Backend`]."""
        self._started = time.perf_counter()
        scheduled, texts = self._schedule.next(), self._texts(answers)
        # a draft with fewer positions than the target stops drafting where they end
        n_tokens = min(scheduled, max(budgets), self._draft_positions - max(text.shape[1] for text in texts))
        if n_tokens <= 0:
            none = answers[0].new_zeros(len(answers), 0)
            return Draft(none, none.new_zeros(len(answers)), None)
        n_wanted, width = n_tokens, _width(scheduled) if self._schedule.compiled_lengths_round_up else scheduled
        # a compiled width is kept to the end, as long as there are positions for it
        self._eagerly = self._compiled is None or max(t.shape[1] for t in texts) + width > self._max_position
        if not self._eagerly:
            n_tokens = width
            self._warm_up(n_tokens)
        if self._ranks.decides:
            ids, lengths, *logits = self._drafter.propose(answers, texts, n_tokens, eagerly=self._eagerly)
            lengths = lengths.clamp(max=sent([min(budget, n_wanted) for budget in budgets], lengths.device))
        else:
            ids, lengths = (answers[0].new_zeros(shape) for shape in ((len(answers), n_tokens), len(answers)))
            logits = (None, None)
        # equally many tokens in every process: no width to agree on first, and no waiting for the device
        agreed = self._ranks.agree(torch.cat([lengths.unsqueeze(1), ids], dim=1))
        return Draft(agreed[:, 1:], agreed[:, 0], *logits)

    def forward(self, answers: list[torch.LongTensor], draft: Draft) -> Forward:
        """See [`hf_judge.decoding.loop.Backend`]."""
        texts, n_rows = self._texts(answers), draft.ids.shape[1] + 1
        ids = torch.cat([torch.cat([text[:, -1:] for text in texts]), draft.ids], dim=1).to(self._target.device)
        first = sent([text.shape[1] - 1 for text in texts], self._target.device)
        self._target.cache.reserve(max(text.shape[1] for text in texts) + draft.ids.shape[1])
        eagerly = n_rows == 1 or self._eagerly
        outputs = self._target.run(ids, first, eagerly=eagerly, logits_to_keep=n_rows, **self._reader.request({}, {}))
        logits = outputs.logits[:, -n_rows:].to(device=draft.ids.device, dtype=torch.float32)
        hidden = self._reader.read(outputs, n_rows)
        if hidden is not None and hidden.shape[0] != len(texts):  # read by a hook, which sees unused rows too
            hidden = self._target.in_work(hidden)
        return Forward(logits, hidden, None)

    def commit(self, answers: list[torch.LongTensor], grown: list[tuple[int, int]], scores: torch.Tensor) -> None:
        """See [`hf_judge.decoding.loop.Backend`]: nothing to roll back, the next round's starts say it all."""
        n_drafted, lengths = scores.shape[1] - 1, [text.shape[1] for text in self._texts(answers)]
        if n_drafted and self._ranks.decides:
            self._drafter.accept(
                [n - n_new + n_accepted for n, (n_new, n_accepted) in zip(lengths, grown, strict=True)]
            )
        if self._n_cached is not None:
            self._n_cached = lengths[0] - 1
        accepted = [n_accepted for _, n_accepted in grown]
        seconds = torch.tensor(time.perf_counter() - self._started, dtype=torch.float64)
        # one clock: the next draft must have the same length in every process
        self._schedule.observe([n_drafted] * len(grown), accepted, float(self._ranks.agree(seconds)))

    def keep(self, rows: list[int]) -> None:
        """See [`hf_judge.decoding.loop.Backend`]."""
        self._pads = [self._pads[r] for r in rows]
        self._target.keep(rows)
        if self._ranks.decides:
            self._drafter.keep(rows)

    def idle(self) -> None:
        """See [`hf_judge.decoding.loop.Backend`]."""
        self._target.idle()

    def cache(self) -> DynamicCache | None:
        """The target's cache for a later turn; None for a batch, whose rows have different lengths."""
        if self._n_cached is None:
            return None
        cache = DynamicCache(config=self._target.model.config.get_text_config(decoder=True))
        for i, layer in enumerate(self._target.cache.layers):
            cache.update(layer.keys[:, :, : self._n_cached], layer.values[:, :, : self._n_cached], i)
        return cache

    def close(self, *, failed: bool = False) -> None:
        """See [`hf_judge.decoding.loop.Backend`]."""
        self._target.close(failed=failed)
        self._drafter.rows.close(failed=failed)

    def _texts(self, answers: list[torch.LongTensor]) -> list[torch.LongTensor]:
        """The rows without their padding, (1, t_r) long each."""
        return [answer[:, pad:] for answer, pad in zip(answers, self._pads, strict=True)]

    def _warm_up(self, n_tokens: int) -> None:
        """Compile for all that is to come at this draft length, once for every width, batch and length of the cache."""
        now = n_tokens, self._target.cache.n_rows, self._target.cache.length, self._drafter.rows.cache.length
        if now == self._warm:
            return
        self._warm = now
        n_keys = min(self._max_length + n_tokens, self._max_position)
        self._drafter.rows.warm_up([1, 2], n_keys, "Compiling the draft")
        more = {"logits_to_keep": n_tokens + 1} | self._reader.request({}, {})
        self._target.warm_up([n_tokens + 1], n_keys, "Compiling the target", **more)


def _width(n_tokens: int) -> int:
    """The compiled draft length that holds `n_tokens`: itself up to 4, then multiples of 4, 8, 16, ..."""
    step = max(1, (1 << max(n_tokens - 1, 1).bit_length()) // 4)
    return -(-n_tokens // step) * step


def _max_positions(model: PreTrainedModel) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
