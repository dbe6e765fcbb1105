"""Runs the target on upstream's caches: one prompt, any architecture, any source of drafts.

Upstream facts are those of transformers 5.19 to 5.24.
"""

from __future__ import annotations

import torch

from hf_judge.decoding.backend import Draft, Forward
from hf_judge.upstream.candidates import CandidateSource
from hf_judge.upstream.forward import cache_of, known_length, length_of_changing_angles, lengthened, updated_kwargs
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.processes import Ranks
from hf_judge.upstream.states import StateReader


class CroppingBackend:
    """Runs the target on a cache of upstream, which is cropped after every round.

    Args:
        call: the call as `generate()` prepared it; its `model_kwargs` hold the cache.
        source: proposes the drafts.
        reader: reads the target's hidden state.
        ranks: the processes that run this very call together.
    """

    def __init__(self, call: PreparedCall, source: CandidateSource, reader: StateReader, ranks: Ranks):
        self._model, self._config, self._kwargs = call.model, call.generation_config, call.model_kwargs
        self._source, self._reader, self._ranks = source, reader, ranks
        self._outputs = None  # of the round before
        self._n_accepted = 0
        self._longest: int | None = None  # sequence, drafted tokens included, whose forward is plain decoding's
        self._last_ids: torch.LongTensor | None = None

    def propose(self, texts: list[torch.LongTensor], budgets: list[int]) -> Draft:
        """See [`hf_judge.decoding.backend.Backend`]."""
        ids, logits, raw_logits = texts[0][:, :0], None, None
        total = known_length(self._kwargs, self._config, texts[0])
        if self._outputs is None:
            positions = self._kwargs.get("position_ids")
            shift = 0 if positions is None else int(positions.max()) + 1 - total
            self._longest = length_of_changing_angles(self._model.config.get_text_config(), total, shift)
        if self._ranks.decides:
            ids, logits, raw_logits = self._source.propose(
                texts[0],
                budget=budgets[0] if self._longest is None else min(budgets[0], self._longest - total),
                model_kwargs=self._kwargs,
                outputs=self._outputs,
                n_last_accepted=self._n_accepted,
            )
        ids = self._ranks.agree_on_width(ids)
        return Draft(ids, ids.new_full((1,), ids.shape[1]), logits, raw_logits)

    def forward(self, texts: list[torch.LongTensor], draft: Draft) -> Forward:
        """See [`hf_judge.decoding.backend.Backend`]."""
        k = draft.ids.shape[1]
        inputs = self._round_inputs(texts[0], draft.ids)
        self._outputs = self._model(**self._reader.request(inputs, self._source.model_kwargs_overrides))
        logits = self._outputs.logits[:, -k - 1 :].to(device=draft.ids.device, dtype=torch.float32, copy=True)
        return Forward(logits, self._reader.read(self._outputs, k + 1), self._outputs)

    def commit(self, texts: list[torch.LongTensor], growth: list[tuple[int, int]], scores: torch.Tensor) -> None:
        """See [`hf_judge.decoding.backend.Backend`]."""
        (n_new, self._n_accepted), self._last_ids = growth[0], texts[0]
        # The last new token was not fed yet: the cache keeps what was fed before it. crop(0) matters too, it lets
        # sliding-window layers shrink back to their window.
        cache_of(self._outputs).crop(-(scores.shape[1] - n_new))
        if self._ranks.decides:
            self._source.update(texts[0], scores, self._n_accepted)
        self._kwargs = updated_kwargs(self._model, self._outputs, self._kwargs, n_new)

    def keep(self, kept: list[int]) -> None:
        """See [`hf_judge.decoding.backend.Backend`]: the only prompt is never dropped."""

    def idle(self) -> None:
        """See [`hf_judge.decoding.backend.Backend`]."""
        self._model(input_ids=self._last_ids[:, -1:], use_cache=False)

    def cache(self):
        """Return the target's cache for a later turn."""
        return cache_of(self._kwargs)

    def close(self, *, failed: bool = False) -> None:
        """See [`hf_judge.decoding.backend.Backend`]: the cache is the caller's."""

    def _round_inputs(self, input_ids: torch.LongTensor, candidate_ids: torch.LongTensor) -> dict:
        """Return the arguments of the target's forward: the ids that the cache lacks, then the draft."""
        k = candidate_ids.shape[1]
        kwargs, is_first = lengthened(self._kwargs, k), self._outputs is None
        # Lengths are counted from what is there, not from input_ids: an earlier turn may live in the cache alone.
        total = known_length(self._kwargs, self._config, input_ids)
        n_next = k + 1
        if is_first:
            cached = cache_of(kwargs).get_seq_length()
            if kwargs.get("inputs_embeds") is not None:
                n_next = kwargs["inputs_embeds"].shape[1] - cached
            else:
                # either the whole sequence was passed again, or only what the cache does not hold yet
                n_next = k + (input_ids.shape[1] - cached if total == input_ids.shape[1] else input_ids.shape[1])
        inputs = self._model.prepare_inputs_for_generation(
            torch.cat([input_ids, candidate_ids], dim=1),
            next_sequence_length=n_next,
            is_first_iteration=is_first,
            **kwargs,
        )
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = k + 1
        return inputs
