"""Runs target and draft of the ragged engine: any batch, one vocabulary, full attention."""

from __future__ import annotations

import logging
import sys
import time

import torch
from transformers import DynamicCache, GenerationConfig

from hf_judge.decoding.backend import Draft, Forward
from hf_judge.ragged.compiling import compile_for
from hf_judge.ragged.drafting import Drafter
from hf_judge.ragged.model import RaggedModel, draft_step
from hf_judge.ragged.schedule import length_schedule
from hf_judge.speculators.drafting import Eagle3Drafter
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.upstream.candidates import DraftingOptions
from hf_judge.upstream.forward import max_positions, sent, unwrapped
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.states import StateReader

logger = logging.getLogger(__name__)

DEFAULT_TOKENS = 20  # upstream's default draft length


class RaggedBackend:
    """Runs target and draft on caches whose rows have lengths of their own: row i belongs to unfinished prompt i.

    Args:
        call: the call as `generate()` prepared it; prompts are padded on the left.
        reader: reads the target's hidden state.
        options: drafting settings of this call.
        ranks: the processes that run this very call together.
    """

    def __init__(self, call: PreparedCall, reader: StateReader, options: DraftingOptions, ranks: Ranks):
        model, draft, batch = call.model, unwrapped(call.assistant_model), call.input_ids.shape[0]
        mask = call.model_kwargs.get("attention_mask")
        self._pads = [0] * batch if mask is None else (mask == 0).sum(dim=1).tolist()
        self._n_cached = 0 if batch == 1 else None  # tokens of a single prompt that its cache holds
        self._reader, self._ranks = reader, ranks
        self._schedule = _schedule(options, draft.generation_config)
        self._max_length = call.generation_config.max_length
        self._reads_states = isinstance(draft, Eagle3DraftModel)  # the draft goes on from the target's own states
        self._draft_positions = sys.maxsize if self._reads_states else max_positions(draft)
        self._max_position = min(max_positions(model), self._draft_positions)
        # compiling runs the target, in each process on its own
        may_compile = ranks.alone and not call.synced_gpus and not self._reads_states
        self._compiled = compile_for(model, draft, call.generation_config) if may_compile else None
        if self._compiled is not None:
            reader.leave_forwards_alone()
        n_more = min(self._schedule.next(), max(self._max_length - call.input_ids.shape[1], 0)) + 1
        room = {"limit": self._max_length + n_more, "compiled": self._compiled, "device": call.input_ids.device}
        last = self._max_length - 1
        self._target = RaggedModel(model, batch, last_position=last, **room)
        if self._reads_states:
            self._drafter = Eagle3Drafter(draft, call, options)
            if call.generation_config.compile_config is not None:
                logger.info("compile_config: not compiled, because an EAGLE-3 draft reads states between the layers")
        else:
            last = min(last, self._draft_positions - 1)
            self._drafter = Drafter(RaggedModel(draft, batch, draft_step, last_position=last, **room), call, options)
        self._started, self._warm = 0.0, None
        try:
            self._read_prompts(call, n_more)
        except BaseException:
            self.close(failed=True)
            raise

    def _read_prompts(self, call: PreparedCall, n_more: int) -> None:
        ids, pads = call.input_ids, self._pads
        lengths = [ids.shape[1] - pad for pad in pads]
        packed = torch.stack([torch.roll(row, -pad) for row, pad in zip(ids, pads, strict=True)])
        # requesting the state here too lets upstream get ready for it outside of what is compiled
        request = self._reader.request({}, {})
        self._target.prefill(packed, lengths, n_more=n_more, in_one=call.synced_gpus, **request)
        self._reader.forget()
        if self._reads_states:
            self._drafter.extend(self._reader.read_layers(), lengths)
        elif self._ranks.decides and max(lengths) <= self._draft_positions:
            self._drafter.prefill(packed, lengths, n_more=n_more)

    def propose(self, texts: list[torch.LongTensor], budgets: list[int]) -> Draft:
        """See [`hf_judge.decoding.backend.Backend`]."""
        self._started = time.perf_counter()
        scheduled, unpadded = self._schedule.next(), self._unpadded(texts)
        longest = max(text.shape[1] for text in unpadded)
        # a draft with fewer positions than the target stops drafting where they end
        n_tokens = min(scheduled, max(budgets), self._draft_positions - longest)
        if n_tokens <= 0 or (self._reads_states and not self._drafter.can_draft):
            self._eagerly = True
            none = texts[0].new_zeros(len(texts), 0)
            return Draft(none, none.new_zeros(len(texts)), None)
        n_wanted, width = n_tokens, _width(scheduled) if self._schedule.compiled_lengths_round_up else scheduled
        # a compiled width is kept to the end, as long as there are positions for it
        self._eagerly = self._compiled is None or longest + width > self._max_position
        if not self._eagerly:
            n_tokens = width
            self._warm_up(n_tokens)
        if self._reads_states:
            ids, lengths, *logits = self._drafter.propose(texts, unpadded, n_tokens)
            lengths = lengths.clamp(max=sent([min(budget, n_wanted) for budget in budgets], lengths.device))
        elif self._ranks.decides:
            ids, lengths, *logits = self._drafter.propose(texts, unpadded, n_tokens, eagerly=self._eagerly)
            lengths = lengths.clamp(max=sent([min(budget, n_wanted) for budget in budgets], lengths.device))
        else:
            ids, lengths = (texts[0].new_zeros(shape) for shape in ((len(texts), n_tokens), len(texts)))
            logits = (None, None)
        # equally many tokens in every process: no width to agree on first, and no waiting for the device
        agreed = self._ranks.agree(torch.cat([lengths.unsqueeze(1), ids], dim=1))
        return Draft(agreed[:, 1:], agreed[:, 0], *logits)

    def forward(self, texts: list[torch.LongTensor], draft: Draft) -> Forward:
        """See [`hf_judge.decoding.backend.Backend`]."""
        unpadded, n_positions = self._unpadded(texts), draft.ids.shape[1] + 1
        ids = torch.cat([torch.cat([text[:, -1:] for text in unpadded]), draft.ids], dim=1).to(self._target.device)
        first = sent([text.shape[1] - 1 for text in unpadded], self._target.device)
        self._target.cache.reserve(max(text.shape[1] for text in unpadded) + draft.ids.shape[1])
        eagerly = n_positions == 1 or self._eagerly
        request = {"logits_to_keep": n_positions} | self._reader.request({}, {})
        outputs = self._target.run(ids, first, eagerly=eagerly, **request)
        logits = outputs.logits[:, -n_positions:].to(device=draft.ids.device, dtype=torch.float32)
        hidden = self._reader.read(outputs, n_positions)
        if hidden is not None and hidden.shape[0] != len(texts):  # read by a hook, which catches unused rows too
            hidden = self._target.of_prompts(hidden)
        return Forward(logits, hidden, None)

    def commit(self, texts: list[torch.LongTensor], growth: list[tuple[int, int]], scores: torch.Tensor) -> None:
        """See [`hf_judge.decoding.backend.Backend`].

        No rollback is needed: the next round overwrites from each prompt's new length.
        """
        n_drafted, lengths = scores.shape[1] - 1, [text.shape[1] for text in self._unpadded(texts)]
        if self._reads_states:
            self._drafter.extend(self._reader.read_layers(), lengths)
        elif n_drafted and self._ranks.decides:
            self._drafter.accept([n - n_new + n_ok for n, (n_new, n_ok) in zip(lengths, growth, strict=True)])
        if self._n_cached is not None:
            self._n_cached = lengths[0] - 1
        accepted = [n_accepted for _, n_accepted in growth]
        seconds = time.perf_counter() - self._started
        if not self._ranks.alone:  # one clock: the next draft must have the same length in every process
            seconds = float(self._ranks.agree(torch.tensor(seconds, dtype=torch.float64)))
        self._schedule.observe([n_drafted] * len(growth), accepted, seconds)

    def keep(self, kept: list[int]) -> None:
        """See [`hf_judge.decoding.backend.Backend`]."""
        self._pads = [self._pads[i] for i in kept]
        self._target.keep(kept)
        if self._ranks.decides:
            self._drafter.keep(kept)

    def idle(self) -> None:
        """See [`hf_judge.decoding.backend.Backend`]."""
        self._target.idle()

    def cache(self) -> DynamicCache | None:
        """Return the target's cache for a later turn; None for a batch, whose answers have different lengths."""
        if self._n_cached is None:
            return None
        cache = DynamicCache(config=self._target.model.config.get_text_config(decoder=True))
        for i, layer in enumerate(self._target.cache.layers):
            cache.update(layer.keys[:, :, : self._n_cached], layer.values[:, :, : self._n_cached], i)
        return cache

    def close(self, *, failed: bool = False) -> None:
        """See [`hf_judge.decoding.backend.Backend`]."""
        self._target.close(failed=failed)
        if not self._reads_states:
            self._drafter.model.close(failed=failed)

    def _unpadded(self, texts: list[torch.LongTensor]) -> list[torch.LongTensor]:
        """Return the texts without the padding of their prompts, (1, n) long each."""
        return [text[:, pad:] for text, pad in zip(texts, self._pads, strict=True)]

    def _warm_up(self, n_tokens: int) -> None:
        """Compile for all rounds to come at this draft length: for every width, batch and length of the cache."""
        now = n_tokens, self._target.cache.n_rows, self._target.cache.length, self._drafter.model.cache.length
        if now == self._warm:
            return
        self._warm = now
        n_keys = min(self._max_length + n_tokens, self._max_position)
        self._drafter.model.warm_up([1, 2], n_keys, "Compiling the draft")
        more = {"logits_to_keep": n_tokens + 1} | self._reader.request({}, {})
        self._target.warm_up([n_tokens + 1], n_keys, "Compiling the target", **more)


def _width(n_tokens: int) -> int:
    """Return the compiled draft length that holds `n_tokens`: itself up to 4, then multiples of 2, 4, 8, ..."""
    step = max(1, (1 << max(n_tokens - 1, 1).bit_length()) // 4)
    return -(-n_tokens // step) * step


def _schedule(options: DraftingOptions, of_draft: GenerationConfig):
    """Return the schedule of draft lengths: the call's settings count before those of the draft."""
    n_tokens = options.num_assistant_tokens or of_draft.num_assistant_tokens or DEFAULT_TOKENS
    schedule = options.num_assistant_tokens_schedule or of_draft.num_assistant_tokens_schedule or "constant"
    return length_schedule(n_tokens, schedule, is_maximum=options.num_assistant_tokens is not None)
