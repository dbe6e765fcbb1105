"""EAGLE-3 drafts in generate(): greedy answers are the target's, samples follow its distribution, caches stay right."""

from __future__ import annotations

import pytest
import torch
from eagle3 import bigram_target, imitating_draft, random_draft
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny_models import always_head, prompt, random_head, tiny_model
from transformers import LogitsProcessor, LogitsProcessorList

from hf_judge import StrictVerifier, judged
from hf_judge.upstream.forward import cache_of, with_cache

ENGINES = ("ragged", "upstream")


@pytest.fixture(scope="module")
def target():
    return bigram_target()


@pytest.fixture(scope="module")
def draft(target):
    return imitating_draft(target)


def generate(target, ids, **options):
    settings = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True, "num_assistant_tokens": 4}
    return target.generate(ids, **settings | options)


@pytest.mark.parametrize("engine", ENGINES)
def test_some_drafted_tokens_are_accepted_and_some_are_not(target, draft, engine):
    stats = [generate(target, prompt(i), assistant_model=draft, judge_engine=engine).judge_stats for i in range(6)]
    accepted, drafted = sum(one.accepted for one in stats), sum(one.drafted for one in stats)
    assert 0.1 * drafted < accepted < 0.9 * drafted


@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 20),
    n_tokens=st.integers(1, 7),
    engine=st.sampled_from(ENGINES),
    judge=st.sampled_from([False, StrictVerifier(), random_head()]),
    penalty=st.sampled_from([None, 1.3]),
)
@settings(max_examples=25, deadline=None)
def test_greedy_answers_are_the_targets(target, draft, seed, length, n_tokens, engine, judge, penalty):
    ids = prompt(seed, length)
    options = {"repetition_penalty": penalty, "max_new_tokens": 16}
    expected = generate(target, ids, **options).sequences
    if not isinstance(judge, (bool, StrictVerifier)):
        options["judge_threshold"] = 1.0  # never rescues
    found = generate(
        target,
        ids,
        assistant_model=draft,
        judge=judge,
        judge_engine=engine,
        **options | {"num_assistant_tokens": n_tokens},
    )
    assert torch.equal(found.sequences, expected)


@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 16), min_size=2, max_size=5))
@settings(max_examples=12, deadline=None)
def test_greedy_batches_are_the_targets(target, draft, seed, lengths):
    width, rows = max(lengths), [prompt(seed + i, length) for i, length in enumerate(lengths)]
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(r), (width - r.shape[1], 0)) for r in rows])
    options = {"attention_mask": mask, "pad_token_id": 0, "max_new_tokens": 14}
    expected = generate(target, ids, **options).sequences
    found = generate(target, ids, assistant_model=draft, judge=StrictVerifier(), **options).sequences
    assert torch.equal(found, expected)


@pytest.mark.parametrize("flags", [{}, {"norm_before_fc": True}, {"fc_norm": True, "norm_output": True}])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_rejected_tokens_leave_nothing_in_the_cache(target, kind, flags):
    """What a round drafts is what a fresh draft would, which reads the whole text at once."""
    draft, drafted = random_draft(kind, n_layers=2, **flags), []

    class Keeps(StrictVerifier):
        def verify(self, candidates, outputs):
            drafted.append((candidates.texts[0], candidates.ids))
            return super().verify(candidates, outputs)

    for engine in ENGINES:
        generate(target, prompt(3), assistant_model=draft, judge=Keeps(), judge_engine=engine)
    rounds = [(text, ids) for text, ids in drafted if ids.shape[1] == 4]
    assert len(rounds) > 10
    for text, ids in rounds[:: len(rounds) // 5]:
        states = target(text, output_hidden_states=True).hidden_states
        after_last = _before_the_norm(target, text)
        joined = torch.cat([states[0], states[1], after_last], dim=-1)[:, :-1]
        state, tokens = draft.fuse(joined), text[:, 1:]
        for i in range(4):
            positions = torch.arange(state.shape[1])[None]
            out = draft(tokens, state, positions)[:, -1:]
            token = draft.of_target(draft.logits(out)).argmax(dim=-1)
            assert token.item() == ids[0, i]
            state, tokens = torch.cat([state, out], dim=1), torch.cat([tokens, token], dim=1)


def _before_the_norm(model, ids):
    kept = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    model(ids)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_follow_the_targets_distribution(target, draft, engine):
    """False alarms: one in 10,000 for each engine, under fixed seeds none."""
    torch.manual_seed(5)
    ids, n = prompt(11), 1200
    logits = target(ids).logits[0, -1]
    first = int(logits.argmax())
    options = {"do_sample": True, "max_new_tokens": 3, "temperature": 0.7, "top_k": 6, "num_assistant_tokens": 2}
    ids = torch.cat([ids, torch.tensor([[first]])], dim=1)
    if engine == "ragged":
        out = generate(target, ids.repeat(n, 1), assistant_model=draft, **options)
    else:
        n = 200
        outs = [generate(target, ids, assistant_model=draft, judge_engine=engine, **options) for _ in range(n)]
    sequences = out.sequences if engine == "ragged" else torch.cat([one.sequences for one in outs])
    # the second new token, given the first: drafted in the first round on one engine, in the second on the other
    at = ids.shape[1]
    likely = sequences[:, at].mode().values
    seconds = sequences[sequences[:, at] == likely][:, at + 1]
    scores = target(torch.cat([ids, likely.view(1, 1)], dim=1)).logits[0, -1] / 0.7
    kept = scores.topk(6)
    expected = kept.values.softmax(dim=-1) * len(seconds)
    counts = torch.stack([(seconds == token).sum() for token in kept.indices]).float()
    assert counts.sum() == len(seconds) > 60
    large = expected >= 5
    if bool((~large).any()):  # small ones together
        expected = torch.cat([expected[large], expected[~large].sum()[None]])
        counts = torch.cat([counts[large], counts[~large].sum()[None]])
    counts, expected = counts.double(), expected.double()
    assert chisquare(counts.numpy(), (expected / expected.sum() * counts.sum()).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_judge_rescues_tokens_of_such_drafts(target, draft, engine):
    out = generate(
        target, prompt(2), assistant_model=draft, judge=always_head(), judge_threshold=0.5, judge_engine=engine
    )
    assert out.judge_stats.rescued > 0


def test_a_callers_processor_binds_drafts(target, draft):
    class Even(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, 1::2] = -torch.inf
            return scores

    processors = LogitsProcessorList([Even()])
    out = generate(target, prompt(4), assistant_model=draft, judge=always_head(), logits_processor=processors)
    assert bool((out.sequences[:, 12:] % 2 == 0).all())
    assert out.judge_stats.refused_by_constraint == 0


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gemma3_text", "gpt_neox", "bloom", "olmo2"])
def test_targets_of_other_architectures(architecture):
    """On the engine that serves each: windows, learned scales, layers under other names."""
    target, draft = judged(tiny_model(architecture)), random_draft()
    expected = generate(target, prompt(1)).sequences
    assert torch.equal(generate(target, prompt(1), assistant_model=draft).sequences, expected)


def test_a_draft_of_another_target_is_refused(draft):
    with pytest.raises(ValueError, match="choose the draft of this"):
        generate(judged(tiny_model(hidden_size=64)), prompt(1), assistant_model=draft)


def test_a_cache_of_an_earlier_turn_is_refused(target, draft):
    first = generate(target, prompt(1))
    ids = torch.cat([first.sequences, prompt(2)], dim=1)
    with pytest.raises(ValueError, match="EAGLE-3"):
        generate(target, ids, assistant_model=draft, **with_cache(cache_of(first)))


def test_a_compiled_target_is_refused_by_name(target, draft):
    model = judged(tiny_model())
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(ValueError, match="without torch.compile"):
        generate(model, prompt(1), assistant_model=draft)


def test_the_calls_leave_no_hook_and_no_state_behind(target, draft):
    generate(target, prompt(1), assistant_model=draft)
    assert not any(module._forward_pre_hooks for module in target.modules())
