"""Drafting without ``generate()``: the draft's own forward, step after step, over the rows of a ragged cache.

Greedy drafts stay on the device until the round's verdict is read. Knows nothing about the target.
"""

from __future__ import annotations

import sys

import torch
from transformers import PreTrainedModel

from hf_judge.ragged.compiling import Compiled
from hf_judge.ragged.rows import ModelRows, draft_step
from hf_judge.upstream.devices import sent
from hf_judge.upstream.forward import of_width, vocabulary_rows
from hf_judge.upstream.processors import RowProcessor


class Drafter:
    """Proposes tokens for every row.

    Args:
        draft: the draft model.
        n_rows: rows of the batch.
        processors: one [`RowProcessor`] per row: drafts obey the target's processors. Empty: no processors.
        do_sample: draw from the draft's distribution, and keep it for the strict rule; else take its argmax.
        end_ids: (n,) long, tokens that end an answer: nothing behind them is of use.
        confidence: a draft ends before the first token whose probability is below this; 0: never.
        compiled: compiles the draft's step.
        limit: tokens that no row will have more of, as far as is known.
        last_position: of any token that counts.
        vocabulary: rows of the target's vocabulary; the draft's own may be padded to another size.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        n_rows: int,
        *,
        processors: list[RowProcessor],
        do_sample: bool,
        end_ids: torch.LongTensor,
        confidence: float = 0.0,
        compiled: Compiled | None = None,
        limit: int = sys.maxsize,
        last_position: int = sys.maxsize,
        vocabulary: int | None = None,
    ):
        self.rows = ModelRows(draft, n_rows, draft_step, compiled, limit=limit, last_position=last_position)
        self._vocabulary = vocabulary
        self._last_id = vocabulary_rows(draft) - 1
        self._processors, self._do_sample = processors, do_sample
        self._end_ids, self._confidence = end_ids.to(self.rows.device), confidence
        self._n_read = [0] * n_rows  # tokens of every row that the cache holds

    def prefill(self, ids: torch.LongTensor, lengths: list[int], *, n_more: int = 0) -> None:
        """Read the prompts, (n_rows, n) long, packed to the left; the last token of each waits for the first draft."""
        self.rows.prefill(self._readable(ids), lengths, n_more=n_more)
        self._n_read = [length - 1 for length in lengths]

    def propose(
        self, answers: list[torch.LongTensor], texts: list[torch.LongTensor], n_tokens: int, *, eagerly: bool = False
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Draft `n_tokens` after every row.

        Args:
            answers: the rows so far with their padding, (1, n_r) long, for the processors.
            texts: the same rows without it, (1, t_r) long.
            n_tokens: per row, from 1 on.
            eagerly: at a width that was not compiled for.

        Returns:
            ids (n_rows, n_tokens) long, lengths (n_rows,) long, and logits (n_rows, n_tokens, V): as drawn from, and
            as the model gave them.
        """
        # A wholly accepted draft leaves two tokens unread, so two are read at once; a one-token row reads its twice.
        lengths = [text.shape[1] for text in texts]
        self.rows.cache.reserve(max(lengths) + n_tokens)
        self._catch_up(texts, lengths)
        tails = [text[:, -2:] if text.shape[1] > 1 else text[:, [-1, -1]] for text in texts]
        step = self._readable(torch.cat(tails)).to(self.rows.device)
        first = sent([length - 2 for length in lengths], self.rows.device)
        ids, scores, raw, confidences = [], [], [], []
        for i in range(n_tokens):
            logits, token = self.rows.run(step, first, eagerly=eagerly)
            if self._vocabulary not in (None, logits.shape[-1]):
                logits = of_width(logits, self._vocabulary)
                token = logits.argmax(dim=-1, keepdim=True)
            raw.append(logits)
            if self._processors:
                logits = self._process(answers, ids, logits)
                token = logits.argmax(dim=-1, keepdim=True)
            scores.append(logits)  # greedy rules too may compare the draft with the target
            if self._do_sample:
                token = torch.multinomial(logits.float().softmax(dim=-1), num_samples=1)
            if self._confidence > 0:
                confidences.append(logits.float().softmax(dim=-1).gather(-1, token))
            ids.append(token)
            step, first = self._readable(token), first + (2 if i == 0 else 1)
        self._n_read = [length + n_tokens - 1 for length in lengths]
        drafted, device = torch.cat(ids, dim=1), answers[0].device
        useful = self._useful(drafted, confidences)
        logits = torch.stack(scores, dim=1).to(device)
        raw_logits = torch.stack(raw, dim=1).to(device) if self._processors else logits
        return drafted.to(device), useful.to(device), logits, raw_logits

    def accept(self, lengths: list[int]) -> None:
        """Forget what was drafted behind the first `lengths[r]` tokens of every row."""
        self._n_read = [min(n, length) for n, length in zip(self._n_read, lengths, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.rows.keep(rows)
        self._n_read = [self._n_read[r] for r in rows]
        if self._processors:
            self._processors = [self._processors[r] for r in rows]

    def _catch_up(self, texts: list[torch.LongTensor], lengths: list[int]) -> None:
        """Read what rounds without a draft have added."""
        gap = max(length - 2 - n for length, n in zip(lengths, self._n_read, strict=True))
        if gap <= 0:
            return
        starts = [max(0, min(n, length - 2)) for n, length in zip(self._n_read, lengths, strict=True)]
        # every row reads as many tokens as the one that lacks most; what is read twice is written to its old place
        starts = [max(0, min(start, length - gap)) for start, length in zip(starts, lengths, strict=True)]
        ids = [
            torch.nn.functional.pad(t[:, s : s + gap], (0, gap))[:, :gap] for t, s in zip(texts, starts, strict=True)
        ]
        first = sent(starts, self.rows.device)
        self.rows.run(self._readable(torch.cat(ids)).to(self.rows.device), first, eagerly=True)

    def _readable(self, ids: torch.LongTensor) -> torch.LongTensor:
        """The ids with its own last one in place of those that a draft with fewer rows lacks: it drafts less well."""
        return ids.clamp(max=self._last_id) if (self._vocabulary or 0) > self._last_id + 1 else ids

    def _process(self, answers, ids: list[torch.LongTensor], logits: torch.Tensor) -> torch.Tensor:
        rows = []
        for r, answer in enumerate(answers):
            so_far = torch.cat([answer.to(logits.device), *(token[r : r + 1] for token in ids)], dim=1)
            scores, _ = self._processors[r](so_far, logits[r : r + 1, None].float(), so_far[:, :0])
            rows.append(scores[:, 0])
        return torch.cat(rows)

    def _useful(self, ids: torch.LongTensor, confidences: list[torch.Tensor]) -> torch.LongTensor:
        """(n_rows,) long: up to and with the first end token, and before the first token drafted without confidence."""
        ended = torch.isin(ids, self._end_ids)
        useless = ended.cumsum(dim=1) - ended.long() > 0
        if confidences:
            useless = useless | ((torch.cat(confidences, dim=1) < self._confidence).cumsum(dim=1) > 0)
        return (~useless).long().cumprod(dim=1).sum(dim=1)
