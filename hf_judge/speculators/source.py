"""Drafts with an EAGLE-3 draft for upstream's caches: one prompt, any architecture of the target."""

from __future__ import annotations

import torch

from hf_judge.speculators.drafting import Eagle3Drafter
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.upstream.candidates import DraftingOptions, Proposal
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.private_names import ModelOutput
from hf_judge.upstream.states import StateReader


class Eagle3Source:
    """The drafts of one generation: has the methods of [`hf_judge.upstream.candidates.CandidateSource`].

    Args:
        call: the call as `generate()` prepared it.
        draft: the draft.
        options: drafting settings of this call.
        reader: catches the target's states in its own forwards.
    """

    reads_target_states = True
    model_kwargs_overrides: dict = {}

    def __init__(self, call: PreparedCall, draft: Eagle3DraftModel, options: DraftingOptions, reader: StateReader):
        self._drafter, self._reader = Eagle3Drafter(draft, call, options), reader
        mask = call.model_kwargs.get("attention_mask")
        padded = mask is not None and mask.dim() == 2 and mask.shape == call.input_ids.shape
        self._pads = int((mask[0] == 0).long().cumprod(dim=0).sum()) if padded else 0
        self._n_tokens = options.num_assistant_tokens or draft.generation_config.num_assistant_tokens
        self._is_first = True

    def propose(
        self,
        input_ids: torch.LongTensor,
        *,
        budget: int,
        model_kwargs: dict,
        outputs: ModelOutput | None,
        n_last_accepted: int,
    ) -> Proposal:
        """See [`hf_judge.upstream.candidates.CandidateSource.propose`]; the first round only reads the prompt."""
        n_tokens = min(self._n_tokens, budget)
        if n_tokens <= 0 or not self._drafter.can_draft:
            return Proposal(input_ids[:, :0], None, None)
        found = self._drafter.propose([input_ids], [input_ids[:, self._pads :]], n_tokens)
        ids, lengths, logits, raw_logits = found
        n = int(lengths[0])
        return Proposal(ids[:, :n], logits[:, :n], raw_logits[:, :n])

    def update(self, input_ids: torch.LongTensor, scores: torch.Tensor, n_accepted: int) -> None:
        """Take the states of the round's accepted tokens."""
        skipped = [self._pads] if self._is_first else None
        self._is_first = False
        self._drafter.extend(self._reader.read_layers(), [input_ids.shape[1] - self._pads], skipped)
