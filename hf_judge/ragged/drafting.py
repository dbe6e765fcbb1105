"""Drafting without ``generate()``: the draft's own forward, step after step, over the rows of a ragged cache.

Greedy drafts stay on the device until the round's verdict is read. Knows nothing about the target.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hf_judge.constraints import RowProcessor
from hf_judge.ragged.rows import ModelRows


class Drafter:
    """Proposes tokens for every row.

    Args:
        draft: the draft model.
        n_rows: rows of the batch.
        processors: one [`RowProcessor`] per row: drafts obey the target's processors. Empty: no processors.
        do_sample: draw from the draft's distribution, and keep it for the strict rule; else take its argmax.
        end_ids: (n,) long, tokens that end an answer: nothing behind them is of use.
        confidence: a draft ends before the first token whose probability is below this; 0: never.
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
    ):
        self._rows = ModelRows(draft, n_rows)
        self._processors, self._do_sample = processors, do_sample
        self._end_ids, self._confidence = end_ids.to(self._rows.device), confidence

    def prefill(self, ids: torch.LongTensor, lengths: list[int]) -> None:
        """Read the prompts, (n_rows, n) long, packed to the left; the last token of each waits for the first draft."""
        self._rows.prefill(ids, lengths)

    def propose(
        self, answers: list[torch.LongTensor], tails: torch.LongTensor, starts: list[int], n_tokens: int
    ) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor, torch.Tensor]:
        """Draft `n_tokens` after every row.

        Args:
            answers: the rows so far, (1, n_r) long, for the processors.
            tails: (n_rows, 2) long, the last two tokens of every row: a wholly accepted draft leaves two unread.
            starts: the position of the first of them.

        Returns:
            ids (n_rows, n_tokens) long, lengths (n_rows,) long, and logits (n_rows, n_tokens, V): as drawn from, and
            as the model gave them.
        """
        device = tails.device
        ids, scores, raw, confidences = [], [], [], []
        step = tails.to(self._rows.device)
        for i in range(n_tokens):
            at = starts if i == 0 else [start + 1 + i for start in starts]
            logits = self._rows.forward(step, at, n_logits=1).logits[:, -1]
            raw.append(logits)
            if self._processors:
                logits = self._process(answers, ids, logits)
            scores.append(logits)  # greedy rules too may compare the draft with the target
            if self._do_sample:
                token = torch.multinomial(logits.float().softmax(dim=-1), num_samples=1)
            else:
                token = logits.argmax(dim=-1, keepdim=True)
            if self._confidence > 0:
                confidences.append(logits.float().softmax(dim=-1).gather(-1, token))
            ids.append(token)
            step = token
        drafted = torch.cat(ids, dim=1)
        lengths = self._useful(drafted, confidences)
        logits = torch.stack(scores, dim=1).to(device)
        raw_logits = torch.stack(raw, dim=1).to(device) if self._processors else logits
        return drafted.to(device), lengths.to(device), logits, raw_logits

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self._rows.cache.keep(rows)
        if self._processors:
            self._processors = [self._processors[r] for r in rows]

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
        behind_end = ended.cumsum(dim=1) - ended.long() > 0
        useless = behind_end
        if confidences:
            useless = useless | ((torch.cat(confidences, dim=1) < self._confidence).cumsum(dim=1) > 0)
        return (~useless).long().cumprod(dim=1).sum(dim=1)
