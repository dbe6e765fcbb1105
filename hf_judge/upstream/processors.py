"""Runs the logits processors over a round's positions, and finds the drafted tokens that a hard constraint forbids.

A rescue may go beyond the target's nucleus, so built-in warpers (top-k, top-p, ...) must not block it. A rescue must
never break a constraint, built in or a user's own.
"""

from __future__ import annotations

import copy

import torch
import transformers as upstream
from transformers import LogitsProcessorList

from hf_judge.upstream.private_names import private

# Warpers shape the distribution to sample from. The exact type counts: a user's subclass may well forbid tokens.
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
# These forbid no token. Forbidden tokens are looked for without InfNanRemove: it replaces -inf by the dtype's minimum,
# a later processor may scale this value, and then the token looks allowed.
NEVER_FORBID = WARPERS | {
    upstream.InfNanRemoveLogitsProcessor,
    upstream.LogitNormalization,
    upstream.WatermarkLogitsProcessor,
}


N_CALLS = 16  # of a caller's own processor that counts its calls, to see whether its scores stay


class PromptProcessor:
    """The logits processors of one prompt of the batch, applied to every position of a round.

    Args:
        logits_processor: the prepared list, in upstream's order.
        place: place of the prompt in the batch.
        n_prompts: size of the batch. A caller's own processor is called with a batch of that size, as upstream calls
            it, which holds this prompt at every place; processors of transformers are called with this prompt alone.
    """

    def __init__(self, logits_processor: LogitsProcessorList, place: int = 0, n_prompts: int = 1):
        processors = [_at_place(processor, place, n_prompts) for processor in logits_processor]
        n_constraints = next((i for i, p in enumerate(processors) if type(p) in NEVER_FORBID), len(processors))
        self._before = LogitsProcessorList(processors[:n_constraints])
        self._after = LogitsProcessorList(processors[n_constraints:])
        # Constraints after a warper (a user's own list) must run without it: what a warper removed looks forbidden.
        constraints = [p for p in processors if type(p) not in NEVER_FORBID]
        self._constraints = None if constraints == processors[:n_constraints] else LogitsProcessorList(constraints)

    def __call__(
        self, input_ids: torch.LongTensor, logits: torch.Tensor, candidate_ids: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Process the positions one after the other, each with the ids that lead to it.

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
        constrained = self._over_positions(self._before, sequence, n, logits)
        unwarped = (
            constrained if self._constraints is None else self._over_positions(self._constraints, sequence, n, logits)
        )
        drafted = unwarped[:, :k].gather(-1, candidate_ids.unsqueeze(-1)).squeeze(-1)
        forbidden = ~(drafted > torch.finfo(drafted.dtype).min)
        return self._over_positions(self._after, sequence, n, constrained), forbidden

    @staticmethod
    def _over_positions(processors: LogitsProcessorList, sequence, n: int, logits):
        if not processors:
            return logits
        # clone: some processors write into the scores they are given
        processed = [processors(sequence[:, : n + i], logits[:, i].clone()) for i in range(logits.shape[1])]
        return torch.stack(processed, dim=1)


class AtPlace:
    """A caller's own processor or criterion, which may tell prompts apart by their place in the batch.

    Args:
        function: takes ids (n_prompts, n) and what belongs to them; returns one entry for each prompt.
        place: place of the prompt in the batch.
        n_prompts: size of the batch.
    """

    def __init__(self, function, place: int, n_prompts: int):
        self._function, self._place, self._n_prompts = function, place, n_prompts

    def __call__(self, input_ids: torch.LongTensor, scores) -> torch.Tensor:
        """Return the function's answer about this prompt, (1, ...); the prompt stands at every place of the batch."""
        many = None if scores is None else self._spread(scores)
        found = self._function(input_ids.repeat(self._n_prompts, 1), many)
        # one entry stands for all prompts, as upstream broadcasts it
        is_per_prompt = isinstance(found, torch.Tensor) and found.dim() > 0 and found.shape[0] > 1
        return found[self._place : self._place + 1] if is_per_prompt else found

    def _spread(self, scores):
        if isinstance(scores, tuple):
            return tuple(self._spread(step) for step in scores)
        return scores.repeat(self._n_prompts, *[1] * (scores.dim() - 1))


def check_own_processors(
    logits_processor: LogitsProcessorList, input_ids: torch.LongTensor, logits: torch.Tensor
) -> None:
    """Refuse processors of the caller's own that cannot follow drafts, as far as the first token shows it.

    Such a processor must depend on its arguments alone, since drafts that are rolled back are processed too, and on no
    other prompt of the batch, since prompts do not advance in step.

    Args:
        logits_processor: the prepared list.
        input_ids: (batch, n) long, the prompts.
        logits: (batch, V) float32, the target's raw logits after them.

    Raises:
        ValueError: a processor gives other scores when it is called again, or when the other prompts are others.
    """
    if all(map(is_upstreams_own, logits_processor)):
        return
    scores, n_prompts = logits, input_ids.shape[0]
    for processor in logits_processor:
        before, counts = scores, _counts(processor)
        scores = processor(input_ids, scores.clone())
        if is_upstreams_own(processor):
            continue
        name = type(processor).__name__
        n_calls = 1 if _counts(processor) == counts else N_CALLS
        if not all(_same(processor(input_ids, before.clone()), scores) for _ in range(n_calls)):
            raise ValueError(
                f"the logits processor {name} gives other scores when it is called again with the same arguments: it "
                "keeps a state, which cannot follow drafts that are rolled back. Make it depend on its arguments "
                "alone, or pass judge=False"
            )
        for place in range(n_prompts if n_prompts > 1 else 0):
            own = slice(place, place + 1)
            alone = AtPlace(processor, place, n_prompts)(input_ids[own], before[own].clone())
            if not _same(alone, scores[own]):
                raise ValueError(
                    f"the logits processor {name} makes the scores of one prompt depend on other prompts of the batch, "
                    "and drafted prompts do not advance in step: call generate() per prompt, or pass judge=False"
                )


def _counts(function: object) -> dict[str, int]:
    """Return the whole numbers that an object keeps: one that counts its calls may change its mind at some count."""
    return {name: value for name, value in getattr(function, "__dict__", {}).items() if isinstance(value, int)}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), equal_nan=True)


def is_upstreams_own(one: object) -> bool:
    """Tell whether a processor or criterion is one of transformers' own, which treat each prompt on its own."""
    return getattr(upstream, type(one).__name__, None) is type(one)


def _at_place(processor, place: int, n_prompts: int):
    """Return a processor that was made for a whole batch, for one place of it."""
    if n_prompts > 1 and not is_upstreams_own(processor):
        return AtPlace(processor, place, n_prompts)
    if place and type(processor) is upstream.PrefixConstrainedLogitsProcessor:
        allowed = private(processor, "_prefix_allowed_tokens_fn")
        return upstream.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(place, ids), 1)
    if type(processor) is upstream.EncoderRepetitionPenaltyLogitsProcessor:
        processor = copy.copy(processor)
        processor.encoder_input_ids = processor.encoder_input_ids[place : place + 1]
    if type(processor) is upstream.EncoderNoRepeatNGramLogitsProcessor:
        processor = copy.copy(processor)
        processor.batch_size, processor.generated_ngrams = 1, processor.generated_ngrams[place : place + 1]
    if type(processor) is upstream.RepetitionPenaltyLogitsProcessor:
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, torch.Tensor):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = ignored[place : place + 1]
    return processor
