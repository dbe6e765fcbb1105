"""Takes drafts from every candidate generator of upstream, without its side effects on the user's models.

Upstream facts are those of transformers 5.19 to 5.24.
"""

from __future__ import annotations

import copy
import logging
import sys
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hf_judge.upstream.forward import max_positions, of_length, of_width, vocabulary_rows
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.modules import shared_view
from hf_judge.upstream.private_names import (
    AssistantToTargetTranslator,
    AssistedCandidateGenerator,
    AssistedCandidateGeneratorDifferentTokenizers,
    CandidateGenerator,
    ModelOutput,
    PromptLookupCandidateGenerator,
    SinglePositionMultiTokenCandidateGenerator,
    UniversalSpeculativeDecodingGenerator,
    private,
)
from hf_judge.upstream.versions import CACHE

# kwargs of the target that mean nothing to a generator: it makes its own cache, and drafts from token ids
_TARGET_ONLY = ("inputs_embeds", CACHE, "output_attentions", "output_hidden_states")
# settings that name ids of the target's vocabulary
_ID_SETTINGS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "suppress_tokens",
    "watermarking_config",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DraftingOptions:
    """Drafting settings passed to ``generate()``; ``None`` leaves the draft's own generation_config in charge."""

    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None

    def __post_init__(self):
        n = self.num_assistant_tokens
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"num_assistant_tokens must be an integer of at least 1, got {n!r}")
        schedules = ("heuristic", "heuristic_transient", "constant", "adaptive")
        if self.num_assistant_tokens_schedule not in (None, *schedules):
            raise ValueError(
                f"num_assistant_tokens_schedule must be one of {schedules}, got {self.num_assistant_tokens_schedule!r}"
            )


class Proposal(NamedTuple):
    """What a source drafted in one round."""

    ids: torch.LongTensor  # (1, k)
    logits: torch.Tensor | None  # (1, k, V), the scores the ids were drawn from; None: no random draw
    raw_logits: torch.Tensor | None  # (1, k, V), the draft's own, before processors; None: not asked for, or none


class CandidateSource:
    """The drafts of one generation.

    Args:
        call: the call as `generate()` prepared it.
        options: drafting settings of this call.
        raw_logits: whether to return unprocessed draft logits too (None for sources without logits).
    """

    def __init__(self, call: PreparedCall, options: DraftingOptions, *, raw_logits: bool = False):
        # Embeddings of the prompt and drafted ids cannot share a forward: the first round only reads the prompt.
        self._skip_first = call.model_kwargs.get("inputs_embeds") is not None
        self._generator = _build_generator(call)
        self._vocabulary = vocabulary_rows(call.model)
        self._last_id = None  # of a draft whose vocabulary has fewer entries
        self._raw_logits = None  # where the generator's last raw logits are found
        if isinstance(self._generator, AssistedCandidateGenerator):
            _own_settings(self._generator)
            _apply_options(self._generator, options)
            if not isinstance(self._generator, AssistedCandidateGeneratorDifferentTokenizers):
                self._share_vocabulary(call.assistant_model)
                self._raw_logits = _keep_raw_logits(self._generator) if raw_logits else None
        elif isinstance(self._generator, SinglePositionMultiTokenCandidateGenerator) and options.num_assistant_tokens:
            self._generator.num_assistant_tokens = options.num_assistant_tokens
        # a draft with fewer positions than the target stops drafting where they end
        drafts_itself = type(self._generator) is AssistedCandidateGenerator and call.assistant_model is not None
        self._positions = max_positions(call.assistant_model) if drafts_itself else sys.maxsize
        # MTP and DFlash draft by argmax whatever do_sample says: not a draw from their logits (5.19 to 5.24)
        self._logits_are_proposals = not isinstance(self._generator, SinglePositionMultiTokenCandidateGenerator)

    def _share_vocabulary(self, assistant: PreTrainedModel | None) -> None:
        """Give the draft's scores the width of the target's vocabulary, whose padding may differ."""
        n_entries = self._vocabulary if assistant is None else vocabulary_rows(assistant)
        if n_entries == self._vocabulary:
            return
        # first of all: the other processors and the rule then work on the target's vocabulary
        processors = [_OfWidth(self._vocabulary), *self._generator.logits_processor]
        self._generator.logits_processor = LogitsProcessorList(processors)
        self._last_id = n_entries - 1 if n_entries < self._vocabulary else None

    @property
    def reads_target_states(self) -> bool:
        """Whether it drafts from the target's own hidden states, as MTP and DFlash do."""
        return self._generator.requires_model_outputs

    @property
    def model_kwargs_overrides(self) -> dict:
        """Arguments of the target's forward that make it return what the generator needs."""
        return self._generator.model_kwargs_overrides if self.reads_target_states else {}

    def propose(
        self,
        input_ids: torch.LongTensor,
        *,
        budget: int,
        model_kwargs: dict,
        outputs: ModelOutput | None,
        n_last_accepted: int,
    ) -> Proposal:
        """Draft the next tokens.

        Args:
            input_ids: (1, n) long, prompt and answer so far.
            budget: the largest number of drafted tokens that is of use.
            model_kwargs: the target's, as of this round.
            outputs: the target's outputs of the round before; None in the first round.
            n_last_accepted: drafted tokens that the round before accepted.

        Returns:
            Proposal: 0 <= k <= budget, on the device of `input_ids`.
        """
        is_first = outputs is None
        n_tokens = self._generator.num_assistant_tokens if self._positions < sys.maxsize else 0
        beyond = input_ids.shape[1] + n_tokens > self._positions
        if budget <= 0 or (is_first and self._skip_first) or input_ids.shape[1] == 0 or beyond:
            return Proposal(input_ids[:, :0], None, None)
        if self._skip_first and isinstance(self._generator, AssistedCandidateGenerator):
            self._skip_first = False
            self._generator.assistant_kwargs = of_length(self._generator.assistant_kwargs, input_ids.shape[1])
        if self.reads_target_states:
            sequence, logits = self._generator.get_candidates(
                input_ids,
                model_kwargs=model_kwargs,
                model_outputs=outputs,
                is_first_iteration=is_first,
                n_last_matches=n_last_accepted,
            )
        else:
            # the draft reads its last id in place of one that it lacks: it drafts less well
            known = input_ids if self._last_id is None else input_ids.clamp(max=self._last_id)
            sequence, logits = self._generator.get_candidates(known)
        ids = sequence[:, input_ids.shape[1] :][:, :budget].to(input_ids.device)
        k = ids.shape[1]
        if logits is None or k == 0 or not self._logits_are_proposals:
            return Proposal(ids, None, None)
        raw = None
        if self._raw_logits is not None:
            raw = of_width(self._raw_logits[0][:, :k].to(input_ids.device), self._vocabulary)
        return Proposal(ids, logits[:, :k].to(input_ids.device), raw)

    def update(self, input_ids: torch.LongTensor, scores: torch.Tensor, n_accepted: int) -> None:
        """Let the generator follow its schedule: report how many drafted tokens were accepted.

        Args:
            input_ids: (1, n) long, with the new tokens.
            scores: (1, k+1, V), the target's processed scores of the round.
            n_accepted: accepted drafted tokens.
        """
        if scores.shape[1] > 1:  # a round without a draft says nothing about drafts
            self._generator.update_candidate_strategy(input_ids, scores, n_accepted)


class _OfWidth(LogitsProcessor):
    """Gives a draft's scores the width of the target's vocabulary (see [`hf_judge.upstream.forward.of_width`])."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        return of_width(scores, self._vocabulary)


def _build_generator(call: PreparedCall) -> CandidateGenerator:
    config, ids, model = call.generation_config, call.input_ids, call.model
    arguments = {
        "generation_config": config,
        "logits_processor": call.logits_processor,  # drafts obey the target's processors too
        "model_kwargs": _draft_kwargs(call.model_kwargs, ids),
        "assistant_model": call.assistant_model,
        "target_tokenizer": call.tokenizer if call.has_other_vocabulary else None,
        "assistant_tokenizer": call.assistant_tokenizer if call.has_other_vocabulary else None,
    }
    tokenizers = arguments["target_tokenizer"], arguments["assistant_tokenizer"]
    translates = config.do_sample and call.assistant_model is not None and None not in tokenizers
    if config.assistant_early_exit is not None:
        # Upstream truncates config.num_hidden_layers while it drafts: on a view, other threads and exceptions do not
        # meet the truncated config.
        model = _early_exit_view(model)
    elif translates and config.prompt_lookup_num_tokens is None:
        translator = _translator(*tokenizers, vocabulary_rows(model), call.assistant_model)
        return UniversalSpeculativeDecodingGenerator(input_ids=ids, atm_translator=translator, **arguments)
    inputs = ids if call.model_kwargs.get("inputs_embeds") is not None else call.inputs_tensor
    generator = private(model, "_get_candidate_generator")(input_ids=ids, inputs_tensor=inputs, **arguments)
    if isinstance(generator, PromptLookupCandidateGenerator) and generator.logits_processor is not None:
        # Upstream probes the processors with made-up logits to filter forbidden tokens; the rule does that with the
        # real scores.
        generator.logits_processor = None
    return generator


# target tokenizer -> assistant tokenizer -> translator: comparing two vocabularies of 100,000 words takes a while
_translators = weakref.WeakKeyDictionary()


def _translator(target_tokenizer, assistant_tokenizer, vocab_size: int, assistant_model) -> AssistantToTargetTranslator:
    known = _translators.setdefault(target_tokenizer, weakref.WeakKeyDictionary())
    found = known.get(assistant_tokenizer)
    if found is None or (found.target_vocab_size, found._assistant_model_device) != (
        vocab_size,
        assistant_model.device,
    ):
        # Upstream's own cache prunes the assistant's LM head for good. This mode masks what the target lacks instead.
        found = known[assistant_tokenizer] = AssistantToTargetTranslator(
            target_tokenizer, assistant_tokenizer, vocab_size, assistant_model=assistant_model
        )
    return found


def _early_exit_view(model: PreTrainedModel) -> PreTrainedModel:
    view = shared_view(model)
    base = shared_view(getattr(model, model.base_model_prefix))
    base.config = view.config = copy.deepcopy(base.config)
    setattr(view, model.base_model_prefix, base)
    return view


def _draft_kwargs(model_kwargs: dict, input_ids: torch.LongTensor) -> dict:
    """Return the target's kwargs for a generator: without those of the target alone, and as long as `input_ids`."""
    kwargs = {key: value for key, value in model_kwargs.items() if key not in _TARGET_ONLY}
    n = input_ids.shape[1]
    for key in ("attention_mask", "position_ids", "token_type_ids"):
        value = kwargs.get(key)
        if value is not None and value.shape[-1] != n:
            # an earlier turn lives in the target's cache only: the draft starts at the new ids
            kwargs[key] = value[..., value.shape[-1] - n :] if key != "position_ids" else None
    if kwargs.get("attention_mask") is None:
        # upstream drops a mask of ones; without one a draft would take the pad token's id for padding wherever it is
        kwargs["attention_mask"] = torch.ones_like(input_ids)
    return kwargs


def _own_settings(generator: AssistedCandidateGenerator) -> None:
    # The draft generates with a copy of the target's config, some of whose settings are wrong for the draft.
    config = generator.generation_config
    config.stop_strings = None  # they need the target's tokenizer; the loop checks them
    config.cache_implementation = None  # the draft gets its own cache back from the second round on
    config.output_logits = config.output_attentions = config.output_hidden_states = False
    if isinstance(generator, AssistedCandidateGeneratorDifferentTokenizers):
        generator.logits_processor = LogitsProcessorList()
        for name in _ID_SETTINGS:
            setattr(config, name, None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(generator.assistant_model.generation_config, name))


def _keep_raw_logits(generator: AssistedCandidateGenerator) -> list[torch.Tensor]:
    """Return a list in which the generator leaves the raw logits (1, k, V) of its last draft.

    The generator keeps the processed scores of `generate()` alone (5.19 to 5.24). So it drafts with a view of the
    model, whose `generate` keeps the logits as well.
    """
    kept, model = [], generator.assistant_model

    def generate(*args, **kwargs):
        output = model.generate(*args, **kwargs)
        kept[:] = [torch.stack(output.logits, dim=1)]
        return output

    generator.assistant_model = shared_view(model)
    generator.assistant_model.generate = generate
    generator.generation_config.output_logits = True
    return kept


def _apply_options(generator: AssistedCandidateGenerator, options: DraftingOptions) -> None:
    # Upstream reads these from the draft's generation_config alone; the generator holds copies of that config.
    config = generator.assistant_generation_config
    if options.num_assistant_tokens is not None:
        generator.num_assistant_tokens = options.num_assistant_tokens
    if options.num_assistant_tokens_schedule == "adaptive":
        logger.info(
            "num_assistant_tokens_schedule: 'adaptive' is the ragged engine's; upstream's drafting stays constant"
        )
        config.num_assistant_tokens_schedule = "constant"
    elif options.num_assistant_tokens_schedule is not None:
        config.num_assistant_tokens_schedule = options.num_assistant_tokens_schedule
    if options.assistant_confidence_threshold is not None:
        config.assistant_confidence_threshold = options.assistant_confidence_threshold
        generator.generation_config.assistant_confidence_threshold = options.assistant_confidence_threshold
        generator.assistant_confidence_threshold = options.assistant_confidence_threshold
