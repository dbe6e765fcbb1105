"""Drafting without ``generate()``: the draft's own forward, step after step, over the rows of a ragged cache.

Drafts, greedy or drawn, stay on the device until the round's verdict is read: no step waits for the device.
"""

from __future__ import annotations

import torch

from hf_judge.ragged.model import RaggedModel
from hf_judge.speculators.choice import TokenChoice
from hf_judge.upstream.candidates import DraftingOptions
from hf_judge.upstream.forward import of_width, sent, vocabulary_rows
from hf_judge.upstream.generation import PreparedCall


class Drafter:
    """Drafts tokens for every unfinished prompt.

    Args:
        model: the draft model with its cache; its step is [`draft_step`].
        call: the call as `generate()` prepared it: drafts obey the target's processors, are drawn or greedy as its
            answers are, and have the width of the target's vocabulary.
        options: drafting settings of this call.
    """

    def __init__(self, model: RaggedModel, call: PreparedCall, options: DraftingOptions):
        self.model = model
        self._vocabulary, self._last_id = vocabulary_rows(call.model), vocabulary_rows(model.model) - 1
        self._choice = TokenChoice(call, options, model.device)
        self._n_read = [0] * model.cache.n_rows  # tokens of each prompt that the cache holds

    def prefill(self, ids: torch.LongTensor, lengths: list[int], *, n_more: int = 0) -> None:
        """Read all but the last token of the prompts, (batch, n) long, packed to the left."""
        self.model.prefill(self._readable(ids), lengths, n_more=n_more)
        self._n_read = [length - 1 for length in lengths]

    def propose(
        self, texts: list[torch.LongTensor], unpadded: list[torch.LongTensor], n_tokens: int, *, eagerly: bool = False
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Draft `n_tokens` after every text.

        Args:
            texts: the texts with the padding of their prompts, (1, n) long, for the processors.
            unpadded: the same texts without it.
            n_tokens: tokens to draft after each text, at least 1.
            eagerly: whether to run without compiling, at a width that was not compiled for.

        Returns:
            ids (batch, n_tokens) long, lengths (batch,) long, and logits (batch, n_tokens, V) twice: as drawn from, and
            as the model gave them.
        """
        # After a wholly accepted draft the draft model has not read the last two tokens, so it is fed two; a text of
        # one token is fed twice.
        lengths = [text.shape[1] for text in unpadded]
        self.model.cache.reserve(max(lengths) + n_tokens)
        self._catch_up(unpadded, lengths)
        tails = [text[:, -2:] if text.shape[1] > 1 else text[:, [-1, -1]] for text in unpadded]
        step = self._readable(torch.cat(tails)).to(self.model.device)
        first = sent([length - 2 for length in lengths], self.model.device)
        ids, scores, raw = [], [], []
        for i in range(n_tokens):
            logits, best = self.model.run(step, first, eagerly=eagerly)
            if self._vocabulary != logits.shape[-1]:
                logits, best = of_width(logits, self._vocabulary), None
            raw.append(logits)
            token, score = self._choice.choose(texts, ids, logits, best)
            scores.append(score)  # greedy rules too may compare the draft with the target
            ids.append(token)
            step, first = self._readable(token), first + (2 if i == 0 else 1)
        self._n_read = [length + n_tokens - 1 for length in lengths]
        drafted, device = torch.cat(ids, dim=1), texts[0].device
        useful = self._choice.n_useful(drafted)
        logits = torch.stack(scores, dim=1).to(device)
        raw_logits = torch.stack(raw, dim=1).to(device) if self._choice.processes else logits
        return drafted.to(device), useful.to(device), logits, raw_logits

    def accept(self, lengths: list[int]) -> None:
        """Forget what was drafted after the first `lengths[i]` tokens of each text."""
        self._n_read = [min(n, length) for n, length in zip(self._n_read, lengths, strict=True)]

    def keep(self, kept: list[int]) -> None:
        """Drop the prompts that have finished: go on with those at the places `kept`."""
        self.model.keep(kept)
        self._n_read = [self._n_read[i] for i in kept]
        self._choice.keep(kept)

    def _catch_up(self, unpadded: list[torch.LongTensor], lengths: list[int]) -> None:
        """Read what rounds without a draft have added."""
        gap = max(length - 2 - n for length, n in zip(lengths, self._n_read, strict=True))
        if gap <= 0:
            return
        starts = [max(0, min(n, length - 2)) for n, length in zip(self._n_read, lengths, strict=True)]
        # each prompt reads as many tokens as the one that lacks most; what is read twice is written to its old place
        starts = [max(0, min(start, length - gap)) for start, length in zip(starts, lengths, strict=True)]
        pieces = [text[:, start : start + gap] for text, start in zip(unpadded, starts, strict=True)]
        ids = torch.cat([torch.nn.functional.pad(piece, (0, gap - piece.shape[1])) for piece in pieces])
        self.model.run(self._readable(ids).to(self.model.device), sent(starts, self.model.device), eagerly=True)

    def _readable(self, ids: torch.LongTensor) -> torch.LongTensor:
        """Replace ids that the draft's vocabulary lacks by its last one: this lowers acceptance, not quality."""
        return ids.clamp(max=self._last_id) if self._vocabulary > self._last_id + 1 else ids
