"""The ragged backend: any batch, an assistant model of the same vocabulary, full attention."""

from __future__ import annotations

import inspect

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel

from hf_judge.constraints import RowProcessor
from hf_judge.decoding import Draft, Forward
from hf_judge.ragged.drafting import Drafter
from hf_judge.ragged.rows import ModelRows
from hf_judge.sources import DraftingOptions
from hf_judge.states import StateReader

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
    ):
        batch, end = input_ids.shape[0], generation_config._eos_token_tensor
        self._reader = reader
        self._pads = [0] * batch if attention_mask is None else (attention_mask == 0).sum(dim=1).tolist()
        self._n_cached = 0 if batch == 1 else None  # tokens of a single row that its cache holds
        own = draft.generation_config
        self._n_tokens = options.num_assistant_tokens or own.num_assistant_tokens or DEFAULT_TOKENS
        schedule = options.num_assistant_tokens_schedule or own.num_assistant_tokens_schedule or "constant"
        self._heuristic = schedule.startswith("heuristic")
        self._target = ModelRows(model, batch)
        self._drafter = Drafter(
            draft,
            batch,
            processors=[RowProcessor(logits_processor, row) for row in range(batch)] if logits_processor else [],
            do_sample=bool(generation_config.do_sample),
            end_ids=input_ids.new_zeros(0) if end is None else end,
            confidence=options.assistant_confidence_threshold or 0.0,
        )
        lengths = [input_ids.shape[1] - pad for pad in self._pads]
        packed = torch.stack([torch.roll(ids, -pad) for ids, pad in zip(input_ids, self._pads, strict=True)])
        self._target.prefill(packed, lengths)
        self._drafter.prefill(packed, lengths)

    def propose(self, answers: list[torch.LongTensor], budgets: list[int]) -> Draft:
        """See [`hf_judge.decoding.Backend`]."""
        n_tokens = min(self._n_tokens, max(budgets))
        if n_tokens <= 0:
            none = answers[0].new_zeros(len(answers), 0)
            return Draft(none, none.new_zeros(len(answers)), None)
        tails, starts = self._tails(answers)
        ids, lengths, logits, raw_logits = self._drafter.propose(answers, tails, starts, n_tokens)
        return Draft(ids, lengths.clamp(max=lengths.new_tensor(budgets)), logits, raw_logits)

    def forward(self, answers: list[torch.LongTensor], draft: Draft) -> Forward:
        """See [`hf_judge.decoding.Backend`]."""
        last = torch.cat([answer[:, -1:] for answer in answers])
        starts = [answer.shape[1] - pad - 1 for answer, pad in zip(answers, self._pads, strict=True)]
        n_rows = draft.ids.shape[1] + 1
        outputs = self._target.forward(
            torch.cat([last, draft.ids], dim=1).to(self._target.device),
            starts,
            n_logits=n_rows,
            **self._reader.request({}, {}),
        )
        logits = outputs.logits[:, -n_rows:].to(device=draft.ids.device, dtype=torch.float32)
        return Forward(logits, self._reader.read(outputs, n_rows), None)

    def commit(self, answers: list[torch.LongTensor], grown: list[tuple[int, int]], scores: torch.Tensor) -> None:
        """See [`hf_judge.decoding.Backend`]: nothing to roll back, the next round's starts say it all."""
        if self._heuristic:
            # upstream's rule: two more after a wholly accepted draft, one fewer otherwise
            whole = all(n_accepted == scores.shape[1] - 1 for _, n_accepted in grown)
            self._n_tokens = max(1, self._n_tokens + (2 if whole else -1))
        if self._n_cached is not None:
            self._n_cached = answers[0].shape[1] - self._pads[0] - 1

    def keep(self, rows: list[int]) -> None:
        """See [`hf_judge.decoding.Backend`]."""
        self._pads = [self._pads[r] for r in rows]
        self._target.cache.keep(rows)
        self._drafter.keep(rows)

    def idle(self) -> None:
        """See [`hf_judge.decoding.Backend`]."""
        raise NotImplementedError("the ragged engine does not run under synced_gpus")

    def cache(self) -> DynamicCache | None:
        """The target's cache for a later turn; None for a batch, whose rows have different lengths."""
        if self._n_cached is None:
            return None
        cache = DynamicCache(config=self._target.model.config.get_text_config(decoder=True))
        for i, layer in enumerate(self._target.cache.layers):
            cache.update(layer.keys[:, :, : self._n_cached], layer.values[:, :, : self._n_cached], i)
        return cache

    def _tails(self, answers: list[torch.LongTensor]) -> tuple[torch.LongTensor, list[int]]:
        """The last two tokens of every row and the first one's position; a one-token row counts its token twice."""
        lengths = [answer.shape[1] - pad for answer, pad in zip(answers, self._pads, strict=True)]
        tails = [answer[:, -2:] if n > 1 else answer[:, [-1, -1]] for answer, n in zip(answers, lengths, strict=True)]
        return torch.cat(tails), [n - 2 for n in lengths]


def why_not_ragged(
    model: PreTrainedModel,
    draft: PreTrainedModel | None,
    input_ids: torch.LongTensor,
    generation_config: GenerationConfig,
    model_kwargs: dict,
    *,
    other_tokenizer: bool,
    synced_gpus: bool,
) -> str | None:
    """Why the ragged engine cannot serve this call, or None when it can.

    Args:
        model, draft: target and assistant model; None without one.
        input_ids: (batch, n) long, the prompts.
        generation_config, model_kwargs: as `generate()` prepared them.
        other_tokenizer: the assistant has a tokenizer of its own.
        synced_gpus: ranks wait for each other.
    """
    config = generation_config
    others = (
        config.prompt_lookup_num_tokens,
        config.assistant_early_exit,
        config.speculation_type,
        config.use_mtp or None,
    )
    if draft is None or any(source is not None for source in others):
        return "drafts do not come from an assistant model's own forward"
    if other_tokenizer or _text(model).vocab_size != _text(draft).vocab_size:
        return "the assistant has another vocabulary"
    for name, one in (("target", model), ("assistant", draft)):
        if (reason := _unfit(one)) is not None:
            return f"the {name} {reason}"
    if synced_gpus:
        return "ranks wait for each other (synced_gpus)"
    if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
        return "the prompt is given as embeddings"
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        return "past_key_values holds an earlier turn"
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states):
        return "attentions or hidden states were asked for"
    if unknown := sorted(key for key, value in model_kwargs.items() if value is not None and key not in _KNOWN_KWARGS):
        return f"the target's forward is given {', '.join(unknown)}"
    mask = model_kwargs.get("attention_mask")
    if mask is not None and bool((mask[:, 1:] < mask[:, :-1]).any()):
        return "attention_mask hides more than padding on the left"
    return None


# what generate() prepares for a plain decoder; the engine makes its own of each
_KNOWN_KWARGS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def _text(model: PreTrainedModel):
    return model.config.get_text_config()


def _unfit(model: PreTrainedModel) -> str | None:
    if not isinstance(model, PreTrainedModel):
        return f"is a {type(model).__name__}, not a transformers model"
    config = _text(model)
    if model.config.is_encoder_decoder or model._is_stateful:
        return "is not a decoder whose cache can be rolled back"
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"uses {config._attn_implementation}, which takes no 4-D mask"
    if model.get_input_embeddings().weight.device.type == "meta":
        return "has its embeddings offloaded"
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters or "logits_to_keep" not in parameters:
        return "takes no position_ids or no logits_to_keep"
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return "has layers that do not attend fully"
    return None
