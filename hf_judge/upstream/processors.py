"""Runs the logits processors over a round's rows and tells which drafted tokens a hard constraint forbids.

A rescue may go beyond the target's nucleus, so built-in warpers (top-k, top-p, ...) must not block it; it must never
break a constraint, built in or a user's own. Knows nothing about rules or models.
"""

from __future__ import annotations

import copy

import torch
import transformers as upstream
from transformers import LogitsProcessorList

from hf_judge.upstream.versions import private

# They shape the distribution to sample from. The exact type counts: a user's subclass may well forbid tokens.
WARPERS = frozenset(
    {
        upstream.TemperatureLogitsWarper,
        upstream.TopKLogitsWarper,
        upstream.TopPLogitsWarper,
        upstream.TopHLogitsWarper,
        upstream.MinPLogitsWarper,
        upstream.TypicalLogitsWarper,
        upstream.EpsilonLogitsWarper,
        upstream.EtaLogitsWarper,
    }
)
# They rule no token out. InfNanRemove must not come between a constraint and the question whether it forbids a token:
# it turns -inf into the dtype's minimum, which a processor behind it may scale to something that looks allowed.
NEVER_FORBID = WARPERS | {
    upstream.InfNanRemoveLogitsProcessor,
    upstream.LogitNormalization,
    upstream.WatermarkLogitsProcessor,
}


class RowProcessor:
    """The logits processors of one prompt of the batch, applied to every position of a round.

    Args:
        logits_processor: the prepared list, in upstream's order.
        row: which prompt of the batch this is.
        n_rows: prompts of the batch. A processor of the caller's own is called with that many rows, as upstream calls
            it, all of them this prompt's; of transformers' own ones with this row alone.

    Raises:
        ValueError: a processor of the list keeps state from token to token.
    """

    def __init__(self, logits_processor: LogitsProcessorList, row: int = 0, n_rows: int = 1):
        processors = [_for_row(processor, row, n_rows) for processor in logits_processor]
        for processor in processors:
            if isinstance(processor, upstream.SynthIDTextWatermarkLogitsProcessor):
                raise ValueError(
                    "SynthID watermarking keeps state from token to token and cannot follow drafts that are "
                    "rolled back: use WatermarkingConfig instead, or generate without judge"
                )
        n_constraints = next((i for i, p in enumerate(processors) if type(p) in NEVER_FORBID), len(processors))
        self._before = LogitsProcessorList(processors[:n_constraints])
        self._after = LogitsProcessorList(processors[n_constraints:])
        # Constraints behind a warper (a user's own list) must be asked without it: what a warper removed looks
        # forbidden.
        constraints = [p for p in processors if type(p) not in NEVER_FORBID]
        self._alone = None if constraints == processors[:n_constraints] else LogitsProcessorList(constraints)

    def __call__(
        self, input_ids: torch.LongTensor, logits: torch.Tensor, candidate_ids: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Process the rows one after the other, each with the ids that lead to it.

        Args:
            input_ids: (batch, n) long, everything before the draft.
            logits: (batch, k+1, V) float32, the target's raw logits.
            candidate_ids: (batch, k) long, the draft.

        Returns:
            scores (batch, k+1, V) float32 after all processors, and forbidden (batch, k) bool: drafted tokens whose
            score the constraints put at the dtype's minimum or below (or at NaN).
        """
        sequence = torch.cat([input_ids, candidate_ids], dim=1)
        n, k = input_ids.shape[1], candidate_ids.shape[1]
        constrained = self._over_rows(self._before, sequence, n, logits)
        alone = constrained if self._alone is None else self._over_rows(self._alone, sequence, n, logits)
        drafted = alone[:, :k].gather(-1, candidate_ids.unsqueeze(-1)).squeeze(-1)
        forbidden = ~(drafted > torch.finfo(drafted.dtype).min)
        return self._over_rows(self._after, sequence, n, constrained), forbidden

    @staticmethod
    def _over_rows(processors: LogitsProcessorList, sequence, n: int, logits):
        if not processors:
            return logits
        # clone: some processors write into the scores they are given
        rows = [processors(sequence[:, : n + i], logits[:, i].clone()) for i in range(logits.shape[1])]
        return torch.stack(rows, dim=1)


class AtRow:
    """A processor or criterion of the caller's own, which may tell prompts apart by their place in the batch.

    Args:
        function: takes ids (n_rows, n) and what belongs to them, and gives one row for each.
        row: the place of the prompt.
        n_rows: prompts of the batch.
    """

    def __init__(self, function, row: int, n_rows: int):
        self._function, self._row, self._n_rows = function, row, n_rows

    def __call__(self, input_ids: torch.LongTensor, scores) -> torch.Tensor:
        """The function's answer about this prompt, (1, ...): it stands at its own place, and in all others too."""
        many = None if scores is None else self._spread(scores)
        found = self._function(input_ids.repeat(self._n_rows, 1), many)
        is_per_row = isinstance(found, torch.Tensor) and found.dim() > 0
        return found[self._row : self._row + 1] if is_per_row else found

    def _spread(self, scores):
        if isinstance(scores, tuple):
            return tuple(self._spread(step) for step in scores)
        return scores.repeat(self._n_rows, *[1] * (scores.dim() - 1))


def is_upstreams_own(one: object) -> bool:
    """Whether a processor or criterion is one of transformers' own, which look at each prompt on its own."""
    return getattr(upstream, type(one).__name__, None) is type(one)


def _for_row(processor, row: int, n_rows: int):
    """A processor that is made for a whole batch, for one row of it."""
    if n_rows > 1 and not is_upstreams_own(processor):
        return AtRow(processor, row, n_rows)
    if row and type(processor) is upstream.PrefixConstrainedLogitsProcessor:
        allowed = private(processor, "_prefix_allowed_tokens_fn")
        return upstream.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    if type(processor) is upstream.EncoderRepetitionPenaltyLogitsProcessor:
        processor = copy.copy(processor)
        processor.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
    if type(processor) is upstream.EncoderNoRepeatNGramLogitsProcessor:
        processor = copy.copy(processor)
        processor.batch_size, processor.generated_ngrams = 1, processor.generated_ngrams[row : row + 1]
    if type(processor) is upstream.RepetitionPenaltyLogitsProcessor:
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, torch.Tensor):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = ignored[row : row + 1]
    return processor
