"""Every candidate source with every option of generate(): equal to plain greedy under a never-judge, or refused.

The expected outcome of each cell stands in OPTIONS and EXCEPTIONS; a cell that is not named there is `equal`.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from tiny_models import EOS, VOCAB, WIDTH, always_head, noisy_copy, prompt, random_head, randomize, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_layers import MtpModel
from transformers.models.muse_glimmer_assistant import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

from hf_judge import JudgeCandidateVerifier, StrictVerifier, VerdictCode, judged

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix

N_NEW = 14
SPECIAL = ["<pad>", "<bos>", "<unk>", "<eos>"]
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567"
PAIRS = [a + b for a, b in zip(ALPHABET[:16:2], ALPHABET[1:16:2], strict=True)] + ["aa", "bb", "cc", "dd"]


def tiny_tokenizer(*, pairs: bool) -> PreTrainedTokenizerFast:
    """Single letters (64 tokens), or the alphabet backwards and some pairs of letters (76 tokens)."""
    letters = list(ALPHABET[::-1] if pairs else ALPHABET) + (PAIRS if pairs else [])
    vocabulary = {token: i for i, token in enumerate(SPECIAL + letters)}
    merges = [(pair[0], pair[1]) for pair in PAIRS] if pairs else []
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated") if not pairs else None
    backend.decoder = decoders.Fuse()
    tokens = dict(zip(["pad_token", "bos_token", "unk_token", "eos_token"], SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


@dataclass
class Setting:
    """One source: the stock target, its Judge class, what generate() needs to draft, and the models to leave alone."""

    stock: object
    target: object
    drafting: dict
    models: list = field(default_factory=list)
    tokenizer: object = None

    def __post_init__(self):
        self.models = [self.stock, *self.models]


CONSTANT = {
    "num_assistant_tokens": 4,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0,
    "judge_engine": "upstream",
}
STOCK_SETTINGS = {"num_hidden_layers": 3, "eos_token_id": None, "pad_token_id": 0}


def other_vocabulary_draft(stock, noise: float):
    """The target with another tokenizer's vocabulary: its own rows for the letters they share, noise on all."""
    draft = tiny_model(**STOCK_SETTINGS | {"vocab_size": 4 + len(ALPHABET) + len(PAIRS)})
    state = noisy_copy(stock, noise=noise).state_dict()
    ours, theirs = tiny_tokenizer(pairs=False).get_vocab(), tiny_tokenizer(pairs=True).get_vocab()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = draft.state_dict()[name].clone() * (0.05 if name == "lm_head.weight" else 1.0)
        for token in ours:
            rows[theirs[token]] = state[name][ours[token]]
        state[name] = rows
    draft.load_state_dict(state)
    return draft


MTP_SETTINGS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 8,
    "num_mtp_layers": 1,
}


def dflash_draft() -> MuseGlimmerAssistantModel:
    """A DFlash draft for a tiny target of two layers."""
    return randomize(
        MuseGlimmerAssistantModel(
            MuseGlimmerAssistantConfig(
                hidden_size=WIDTH,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=256,
                sliding_window=64,
                block_size=4,
                mask_token_id=VOCAB - 1,
                target_layer_ids=[0, 1],
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        ).eval(),
        5,
    )


@pytest.fixture(scope="module")
def settings():
    stock = tiny_model(**STOCK_SETTINGS)
    target, tokenizer = judged(stock), tiny_tokenizer(pairs=False)
    draft, other = noisy_copy(stock), other_vocabulary_draft(stock, 0.06)
    dflash = dflash_draft()
    with_mtp = tiny_model("glm4_moe", **STOCK_SETTINGS, **MTP_SETTINGS)
    for model in (stock, with_mtp, draft, other):
        # upstream puts its listeners on a model the first time that any hidden state is asked for, and leaves them
        model(prompt(0), output_hidden_states=True)
    return {
        "assistant": Setting(stock, target, {"assistant_model": draft} | CONSTANT, [draft], tokenizer),
        "other_tokenizer": Setting(
            stock,
            target,
            {
                "assistant_model": other,
                "tokenizer": tokenizer,
                "assistant_tokenizer": tiny_tokenizer(pairs=True),
            }
            | CONSTANT,
            [other],
            tokenizer,
        ),
        "lookup": Setting(stock, target, {"prompt_lookup_num_tokens": 4}, [], tokenizer),
        "early_exit": Setting(stock, target, {"assistant_early_exit": 2} | CONSTANT, [], tokenizer),
        "dflash": Setting(
            stock, target, {"assistant_model": dflash, "speculation_type": "dflash"}, [dflash], tokenizer
        ),
        "mtp": Setting(with_mtp, judged(with_mtp), {"use_mtp": True}, [], tokenizer),
    }


def mtp_from_config(cls, main_model, device_map=None):
    """MTP layers without a checkpoint: upstream reads them from that of the target, and a tiny model has none."""
    mtp = cls(main_model, main_model.config.num_mtp_layers).eval()
    randomize(mtp.layers, 3)
    return mtp


@pytest.fixture(autouse=True)
def mtp_layers_without_a_checkpoint(monkeypatch):
    monkeypatch.setattr(MtpModel, "from_pretrained", classmethod(mtp_from_config))


SOURCES = ["assistant", "other_tokenizer", "lookup", "early_exit", "dflash", "mtp"]


# --- options: functions of (setting, ids) that give the kwargs ------------------------------------------------------


class Case(NamedTuple):
    """What one option does to a call."""

    kwargs: dict = {}  # for plain and judged
    ids: torch.Tensor | None = None  # instead of the prompt; kwargs may bring inputs_embeds
    plain: dict | None = None  # plain's kwargs where they differ
    plain_ids: torch.Tensor | None = None  # plain's ids where they differ
    tail: int | None = None  # compare the last tokens only


def plain_tokens(setting, ids, n=N_NEW) -> list[int]:
    return setting.stock.generate(ids, max_new_tokens=n, do_sample=False)[0, ids.shape[1] :].tolist()


class Shift(LogitsProcessor):
    """Moves one score by something that depends on the sequence."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, (int(input_ids.sum()) * 7) % VOCAB] += 4
        return scores


class InPlace(LogitsProcessor):
    """Writes into the tensor that it is given, as some users' processors do."""

    def __call__(self, input_ids, scores):
        scores[:, int(input_ids[0, -1])] = -float("inf")
        return scores


class AtLength(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.reshape(-1).tolist()

    def end(self):
        self.tokens.append("end")


def stop_string(setting, ids):
    letters = [token for token in plain_tokens(setting, ids) if token >= len(SPECIAL)]
    return Case({"stop_strings": setting.tokenizer.decode(letters[5:6]), "tokenizer": setting.tokenizer})


def left_padded(setting, ids):
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], dim=1)
    return Case({"attention_mask": mask}, padded)


def embeds_alone(setting, ids):
    embeds = setting.stock.get_input_embeddings()(ids) * 1.5
    # always the same token: something that prompt lookup can find, where the prompt has no ids
    return Case({"inputs_embeds": embeds, "sequence_bias": [[[10], 30.0]]}, torch.empty(0))


def embeds_and_ids(setting, ids):
    return Case({"inputs_embeds": setting.stock.get_input_embeddings()(ids) * 1.5}, ids)


def earlier_turn(setting, ids):
    """A cache that lacks the last token of what it belongs to, and the ids of the next turn."""
    first = setting.stock.generate(
        prompt(90), max_new_tokens=6, do_sample=False, return_dict_in_generate=True, eos_token_id=None
    )
    return first.past_key_values, first.sequences, torch.cat([first.sequences, ids], dim=1)


def past_full_ids(setting, ids):
    cache, _, full = earlier_turn(setting, ids)
    return Case({"past_key_values": cache}, full, plain={}, plain_ids=full)


def past_new_ids(setting, ids):
    """Nothing says that these are not all ids, but there are fewer of them than the cache holds."""
    cache, before, full = earlier_turn(setting, ids[:, :9])
    return Case({"past_key_values": cache}, full[:, before.shape[1] - 1 :], {}, full, tail=N_NEW)


def past_new_ids_and_mask(setting, ids):
    case = past_new_ids(setting, ids[:, :9])
    return case._replace(kwargs=case.kwargs | {"attention_mask": torch.ones_like(case.plain_ids)})


def past_left_padded(setting, ids):
    """The earlier turn was padded: the mask is not all ones and must be kept over both turns."""
    case = left_padded(setting, ids)
    mask = case.kwargs["attention_mask"]
    cache = setting.stock.generate(
        case.ids[:, :-3], attention_mask=mask[:, :-3], max_new_tokens=1, return_dict_in_generate=True
    ).past_key_values
    return Case({"past_key_values": cache, "attention_mask": mask}, case.ids, case.kwargs, case.ids)


OPTIONS = {
    "nothing": lambda s, ids: Case(),
    "inputs_keyword": lambda s, ids: Case({"inputs": ids}, torch.empty(0)),
    "max_new_tokens_1": lambda s, ids: Case({"max_new_tokens": 1}),
    "max_new_tokens_2": lambda s, ids: Case({"max_new_tokens": 2}),
    "max_length_mid_draft": lambda s, ids: Case({"max_length": ids.shape[1] + 7, "max_new_tokens": None}),
    "streamer": lambda s, ids: Case({"streamer": Collect()}),
    "stopping_criteria": lambda s, ids: Case({"stopping_criteria": StoppingCriteriaList([AtLength(len(ids[0]) + 6)])}),
    "max_time": lambda s, ids: Case({"max_time": 1e-6}),
    "stop_strings": stop_string,
    "eos_list": lambda s, ids: Case({"eos_token_id": [plain_tokens(s, ids)[i] for i in (6, 9)]}),
    "scores": lambda s, ids: Case({"return_dict_in_generate": True, "output_scores": True, "output_logits": True}),
    "hidden_states": lambda s, ids: Case({"return_dict_in_generate": True, "output_hidden_states": True}),
    "user_processor": lambda s, ids: Case({"logits_processor": LogitsProcessorList([Shift()])}),
    "in_place_processor": lambda s, ids: Case({"logits_processor": LogitsProcessorList([InPlace()])}),
    "bad_words_ids": lambda s, ids: Case(
        {"bad_words_ids": [[plain_tokens(s, ids)[2]], plain_tokens(s, ids)[4:6], [5, 6]]}
    ),
    "prefix_allowed_tokens_fn": lambda s, ids: Case(
        {"prefix_allowed_tokens_fn": lambda batch, seen: list(range(4 + len(seen) % 3, VOCAB, 3))}
    ),
    "min_new_tokens": lambda s, ids: Case({"min_new_tokens": 9, "eos_token_id": plain_tokens(s, ids)[3:6]}),
    "min_length": lambda s, ids: Case({"min_length": len(ids[0]) + 9, "eos_token_id": plain_tokens(s, ids)[3:6]}),
    "repetition_penalty": lambda s, ids: Case({"repetition_penalty": 1.5}),
    "no_repeat_ngram_size": lambda s, ids: Case({"no_repeat_ngram_size": 2}),
    "watermarking_config": lambda s, ids: Case({"watermarking_config": WatermarkingConfig(bias=3.0, context_width=1)}),
    "suppress_tokens": lambda s, ids: Case({"suppress_tokens": plain_tokens(s, ids)[2:4]}),
    "begin_suppress_tokens": lambda s, ids: Case({"begin_suppress_tokens": plain_tokens(s, ids)[:1]}),
    "forced_eos_token_id": lambda s, ids: Case({"forced_eos_token_id": 9, "eos_token_id": 9}),
    "exponential_decay": lambda s, ids: Case({"exponential_decay_length_penalty": (3, 1.9), "eos_token_id": EOS}),
    "renormalize_logits": lambda s, ids: Case({"renormalize_logits": True}),
    "remove_invalid_values": lambda s, ids: Case({"remove_invalid_values": True, "suppress_tokens": [5, 6]}),
    "sequence_bias": lambda s, ids: Case({"sequence_bias": [[[plain_tokens(s, ids)[1]], -9.0], [[7, 8], 4.0]]}),
    "left_padded": left_padded,
    "mask_of_ones": lambda s, ids: Case({"attention_mask": torch.ones_like(ids)}),
    "position_ids": lambda s, ids: Case({"position_ids": torch.arange(3, 3 + ids.shape[1]).unsqueeze(0)}),
    "inputs_embeds_alone": embeds_alone,
    "inputs_embeds_and_ids": embeds_and_ids,
    "empty_cache": lambda s, ids: Case({"past_key_values": DynamicCache()}, plain={}),
    "past_full_ids": past_full_ids,
    "past_new_ids": past_new_ids,
    "past_new_ids_and_mask": past_new_ids_and_mask,
    "past_left_padded": past_left_padded,
    "dynamic_cache": lambda s, ids: Case({"cache_implementation": "dynamic"}),
    "prefill_chunk_size": lambda s, ids: Case({"prefill_chunk_size": 4}),
    "num_assistant_tokens_1": lambda s, ids: Case({"num_assistant_tokens": 1}, plain={}),
    "num_assistant_tokens_32": lambda s, ids: Case({"num_assistant_tokens": 32}, plain={}),
    "heuristic": lambda s, ids: Case({"num_assistant_tokens_schedule": "heuristic"}, plain={}),
    "heuristic_transient": lambda s, ids: Case({"num_assistant_tokens_schedule": "heuristic_transient"}, plain={}),
    "confidence_threshold": lambda s, ids: Case({"assistant_confidence_threshold": 0.3}, plain={}),
    "generation_config": lambda s, ids: Case(
        {
            "generation_config": GenerationConfig(max_new_tokens=N_NEW, do_sample=False, suppress_tokens=[3, 17]),
            "max_new_tokens": None,
            "do_sample": None,
        }
    ),
}

# refused whatever drafts, and what the error says
REFUSED = {
    "use_cache": (
        lambda s, ids: Case({"use_cache": False}),
        r"needs the key-value cache to verify drafts: pass use_cache=True",
    ),
    "static_cache_implementation": (
        lambda s, ids: Case({"cache_implementation": "static"}),
        r"needs a dynamic cache, got static",
    ),
    "static_cache": (
        lambda s, ids: Case({"past_key_values": StaticCache(s.stock.config, max_cache_len=64)}),
        r"needs a dynamic cache, got StaticCache",
    ),
    "guidance_scale": (lambda s, ids: Case({"guidance_scale": 1.5}), r"does not work with guidance_scale"),
    "num_beams": (lambda s, ids: Case({"num_beams": 2}), r"does not work with beam search \(num_beams=2\)"),
    "num_return_sequences": (
        lambda s, ids: Case({"num_return_sequences": 2, "do_sample": True}),
        r"one prompt at a time, got a batch of 2",
    ),
    "assistant_ensemble_weight": (
        lambda s, ids: Case({"assistant_ensemble_weight": 0.5}),
        r"two acceptance rules: pass one of them",
    ),
    "batch": (lambda s, ids: Case({}, ids.expand(2, -1)), r"one prompt at a time, got a batch of 2"),
    "synthid": (
        lambda s, ids: Case({"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2)}),
        r"SynthID watermarking keeps state",
    ),
}

# cells that do not follow their row: the error they raise
EXCEPTIONS = {
    (source, "inputs_embeds_alone"): r"needs the prompt's token ids, but only inputs_embeds was passed"
    for source in SOURCES
    if source != "lookup"
}
EXCEPTIONS |= {
    (source, "past_new_ids"): r"holds 17 tokens, but input_ids and attention_mask have 10" for source in SOURCES
}
EXCEPTIONS |= {
    (source, option): r"draft from the target's states of the whole prompt, but the cache already holds"
    for source in ("dflash", "mtp")
    for option in ("past_full_ids", "past_new_ids", "past_new_ids_and_mask", "past_left_padded")
}

# cells in which nothing can be drafted
NO_DRAFT = {(source, "max_new_tokens_1") for source in SOURCES} | {
    (source, "max_new_tokens_2") for source in ("dflash", "mtp")
}
NO_DRAFT |= {(source, "max_time") for source in ("dflash", "mtp")}


def generate(model, ids, kwargs):
    kwargs = {"max_new_tokens": N_NEW, "do_sample": False} | kwargs
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    return model.generate(*([ids] if ids.numel() else []), **kwargs)


def merged(setting, case):
    """The judged call's kwargs; the option wins over the source's usual drafting settings."""
    drafting = dict(setting.drafting)
    if not {"assistant_model", "assistant_early_exit"} & set(drafting):
        # these settings are for assistants: the other sources have their own
        return drafting | {name: value for name, value in case.kwargs.items() if name not in CONSTANT}
    return drafting | case.kwargs


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("source", SOURCES)
def test_cell(settings, source, option):
    """Equal to plain greedy under a never-judge, or the refusal that EXCEPTIONS names."""
    setting = settings[source]
    ids = torch.cat([prompt(7, 6), prompt(8, 5), prompt(7, 6)], dim=1)  # prompt lookup finds its own beginning
    never = JudgeCandidateVerifier(random_head(), 1.0)
    case = OPTIONS[option](setting, ids)
    judged_ids = ids if case.ids is None else case.ids
    before = [snapshot(model) for model in setting.models]
    if (source, option) in EXCEPTIONS:
        with pytest.raises(ValueError, match=EXCEPTIONS[source, option]):
            generate(setting.target, judged_ids, merged(setting, case) | {"judge": never})
    else:
        plain_kwargs = case.kwargs if case.plain is None else case.plain
        plain = generate(
            setting.stock, judged_ids if case.plain_ids is None else case.plain_ids, copy.deepcopy(plain_kwargs)
        )
        ours = generate(setting.target, judged_ids, merged(setting, case) | {"judge": never})
        plain_sequences = getattr(plain, "sequences", plain)
        our_sequences = getattr(ours, "sequences", ours)
        if case.tail is None:
            assert our_sequences.tolist() == plain_sequences.tolist()
        else:
            assert our_sequences[0, -case.tail :].tolist() == plain_sequences[0, -case.tail :].tolist()
            assert our_sequences.shape[1] == judged_ids.shape[1] + case.tail
        for name in ("scores", "logits", "hidden_states"):
            expected = getattr(plain, name, None)
            if expected is not None:
                torch.testing.assert_close(getattr(ours, name), expected, rtol=1e-4, atol=1e-4)
        if option == "streamer":
            assert case.kwargs["streamer"].tokens == [*our_sequences[0].tolist(), "end"]
        assert (never.stats.drafted > 0) == ((source, option) not in NO_DRAFT)
        assert never.stats.rescued == 0
    assert [snapshot(model) for model in setting.models] == before


def snapshot(model):
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    generation = getattr(model, "generation_config", None)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    return model.config.to_dict(), generation and generation.to_dict(), hooks, shapes, type(model)


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("source", SOURCES)
def test_refused(settings, source, option):
    setting = settings[source]
    make, message = REFUSED[option]
    case = make(setting, prompt(7))
    with pytest.raises(ValueError, match=message):
        generate(
            setting.target,
            prompt(7) if case.ids is None else case.ids,
            merged(setting, case) | {"judge": random_head()},
        )


@pytest.mark.parametrize("source", SOURCES)
def test_drafts_are_used(settings, source):
    """Every source has drafts that an always-judge keeps: the cells above compare something."""
    setting, judge = settings[source], JudgeCandidateVerifier(always_head(), 0.5)
    ids = torch.cat([prompt(7, 6), prompt(8, 5), prompt(7, 6)], dim=1)
    out = generate(
        setting.target, ids, setting.drafting | {"judge": judge, "return_dict_in_generate": True, "max_new_tokens": 20}
    )
    assert out.judge_stats.accepted >= 4
    assert out.judge_stats.target_forwards < 20 - 3
    assert (out.verdicts == VerdictCode.RESCUED).any()


@pytest.mark.parametrize("source", ["assistant", "other_tokenizer", "early_exit"])
def test_strict_acceptance_is_partial(settings, source):
    setting, judge = settings[source], StrictVerifier()
    for seed in range(6):
        generate(setting.target, prompt(seed), setting.drafting | {"judge": judge})
    assert 0.05 < judge.stats.accepted / judge.stats.drafted < 0.95


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("options", [{}, {"top_k": 0, "temperature": 0.7}, {"top_p": 0.9, "suppress_tokens": [5, 9]}])
def test_sampling_runs_and_leaves_the_models_alone(settings, source, options):
    """Sampling from every source: valid, counted, and no LM head pruned (upstream prunes the other tokenizer's)."""
    setting = settings[source]
    before = [snapshot(model) for model in setting.models]
    for seed, judge in itertools.product(range(2), (random_head(scale=2.0), StrictVerifier())):
        torch.manual_seed(seed)
        out = generate(
            setting.target,
            prompt(seed),
            setting.drafting | options | {"judge": judge, "do_sample": True, "return_dict_in_generate": True},
        )
        assert out.sequences.shape[1] == 12 + N_NEW == 12 + out.judge_stats.new_tokens
        assert not torch.isin(out.sequences[0, 12:], torch.tensor(options.get("suppress_tokens", []))).any()
    assert [snapshot(model) for model in setting.models] == before


class TestDraftingOptions:
    """generate(num_assistant_tokens=...) and its kin count, for this call only."""

    @staticmethod
    def drafted(setting, **kwargs):
        judge = StrictVerifier()
        generate(setting.target, prompt(3), setting.drafting | kwargs | {"judge": judge, "max_new_tokens": 33})
        return judge.stats

    @pytest.mark.parametrize("source", ["assistant", "early_exit"])
    @pytest.mark.parametrize("n", [1, 3, 20])
    def test_number_of_drafted_tokens(self, settings, source, n):
        setting, judge = settings[source], JudgeCandidateVerifier(always_head(), 0.5)
        kwargs = setting.drafting | {"num_assistant_tokens": n, "max_new_tokens": 2 * (n + 1), "judge": judge}
        generate(setting.target, prompt(3), kwargs)
        assert (judge.stats.rounds, judge.stats.drafted) == (2, 2 * n)

    def test_in_a_generation_config_too(self, settings):
        setting, judge = settings["assistant"], JudgeCandidateVerifier(always_head(), 0.5)
        config = GenerationConfig(
            max_new_tokens=8, num_assistant_tokens=3, assistant_confidence_threshold=0.0, do_sample=False
        )
        setting.target.generate(prompt(3), generation_config=config, assistant_model=setting.models[1], judge=judge)
        assert (judge.stats.rounds, judge.stats.drafted) == (2, 6)

    def test_schedules(self, settings):
        """Heuristic: two more after a whole draft, one fewer otherwise."""
        setting, judge = settings["assistant"], JudgeCandidateVerifier(always_head(), 0.5)
        kwargs = {"num_assistant_tokens_schedule": "heuristic", "num_assistant_tokens": 2, "max_new_tokens": 3 + 5 + 7}
        generate(setting.target, prompt(3), setting.drafting | kwargs | {"judge": judge})
        assert (judge.stats.rounds, judge.stats.drafted) == (3, 2 + 4 + 6)
        generate(setting.target, prompt(3), setting.drafting | kwargs | {"judge": judge})
        assert (judge.stats.rounds, judge.stats.drafted) == (6, 2 * 12)  # not carried over to the next call

    def test_a_round_without_a_draft_moves_no_schedule(self, settings):
        """The first round over embeddings only reads the prompt: nothing there was accepted as a whole."""
        setting, judge = settings["assistant"], JudgeCandidateVerifier(always_head(), 0.5)
        kwargs = {"num_assistant_tokens_schedule": "heuristic", "num_assistant_tokens": 2, "max_new_tokens": 1 + 3 + 1}
        embeds = setting.stock.get_input_embeddings()(prompt(3))
        generate(setting.target, prompt(3), setting.drafting | kwargs | {"judge": judge, "inputs_embeds": embeds})
        assert (judge.stats.rounds, judge.stats.drafted) == (3, 2)  # not one round of 3, from a schedule at 4

    def test_confidence_threshold(self, settings):
        assert (
            self.drafted(settings["assistant"], assistant_confidence_threshold=0.9).drafted
            < self.drafted(settings["assistant"], assistant_confidence_threshold=0.0).drafted
        )

    def test_the_drafts_own_config_counts_where_the_call_says_nothing(self, settings):
        setting, judge = settings["assistant"], JudgeCandidateVerifier(always_head(), 0.5)
        draft = copy.deepcopy(setting.models[1])
        draft.generation_config.num_assistant_tokens = 2
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        generate(setting.target, prompt(3), {"assistant_model": draft, "judge": judge, "max_new_tokens": 6})
        assert (judge.stats.rounds, judge.stats.drafted) == (2, 4)

    @pytest.mark.parametrize("n", [0, -1, 1.5, True, "4"])
    def test_bad_number(self, settings, n):
        with pytest.raises(ValueError, match="num_assistant_tokens must be an integer of at least 1, got"):
            self.drafted(settings["assistant"], num_assistant_tokens=n)

    def test_bad_schedule(self, settings):
        with pytest.raises(ValueError, match="num_assistant_tokens_schedule must be one of"):
            self.drafted(settings["assistant"], num_assistant_tokens_schedule="sometimes")


def test_padding_tokens_in_the_text_do_not_blind_the_draft(settings):
    """The target was told that every token counts; the draft must not take the pad token's id for padding."""
    setting, judge = settings["assistant"], StrictVerifier()
    ids = torch.cat([prompt(3, 5), torch.zeros(1, 3, dtype=torch.long), prompt(4, 5)], dim=1)
    generate(
        setting.target,
        ids,
        {"assistant_model": setting.stock, "attention_mask": torch.ones_like(ids), "judge": judge} | CONSTANT,
    )
    assert judge.stats.matched == judge.stats.drafted > 0


def test_other_vocabulary_without_tokenizers(settings):
    setting = settings["other_tokenizer"]
    with pytest.raises(ValueError, match="have different tokenizers. Please provide `tokenizer`"):
        generate(setting.target, prompt(0), {"assistant_model": setting.models[1], "judge": random_head()})


def test_no_candidate_source(settings):
    with pytest.raises(ValueError, match="needs something that drafts tokens: pass assistant_model="):
        generate(settings["assistant"].target, prompt(0), {"judge": random_head()})


def test_early_exit_after_an_exception(settings, monkeypatch):
    """Upstream leaves config.num_hidden_layers truncated for good."""
    setting = settings["early_exit"]
    expected = plain_tokens(setting, prompt(0))
    layer, calls = setting.stock.model.layers[1], []
    forward = layer.forward

    def fail_later(*args, **kwargs):
        calls.append(setting.stock.config.num_hidden_layers)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", fail_later)
        with pytest.raises(KeyboardInterrupt):
            generate(setting.target, prompt(0), setting.drafting | {"judge": random_head()})
    assert calls == [3] * 4  # not even while it drafts: other threads use the same config
    assert plain_tokens(setting, prompt(0)) == expected
