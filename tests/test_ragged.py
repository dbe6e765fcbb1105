"""The ragged engine: the same tokens as upstream's caches, the naive loop and plain greedy, for any batch mix."""

from __future__ import annotations

import collections
import functools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveModel, naive_judged
from tiny_models import EOS, VOCAB, always_head, noisy_copy, prompt, random_head, tiny_model
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, StoppingCriteria, TextStreamer, pipeline
from transformers.generation.streamers import BaseStreamer

from hf_judge import JudgeCandidateVerifier, JudgeHead, StrictVerifier, judged
from hf_judge.ragged.cache import STEP, RaggedCache, bucket
from hf_judge.ragged.model import run_ragged
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import problems

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix

SCHEDULE = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
FULL_ATTENTION = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi3", "olmo2", "mixtral", "cohere", "granite")


@pytest.fixture(scope="module")
def head():
    return random_head(scale=2.0)


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Prompts of these lengths, padded on the left."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, max(lengths) - length :] = prompt(row, length)[0]
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def with_attention(name: str):
    """A model that says so: what it computes with is not there on every machine."""
    model = tiny_model()
    model.config._attn_implementation = name
    return model


@functools.cache
def model_pair(architecture: str):
    stock = tiny_model(architecture)
    return judged(stock), noisy_copy(stock)


def answers(sequences: torch.Tensor, width: int, end: int | None = EOS) -> list[list[int]]:
    """New tokens of each row, up to and with the end token."""
    rows = []
    for row in sequences[:, width:].tolist():
        rows.append(row[: row.index(end) + 1] if end in row else row)
    return rows


def ragged(model, inputs, draft, judge, *, m=4, n_new=24, **kwargs):
    kwargs = {"do_sample": False, "pad_token_id": 0, "judge_engine": "ragged"} | SCHEDULE | kwargs
    return model.generate(
        **inputs, assistant_model=draft, judge=judge, num_assistant_tokens=m, max_new_tokens=n_new, **kwargs
    )


class TestCache:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_ragged_rows_and_rollback(self, attention):
        """Rows at lengths of their own, some rolled back, across growths: the same logits as without a cache."""
        model = tiny_model(attention=attention)
        ids = torch.randint(4, VOCAB, (3, 3 * STEP), generator=torch.Generator().manual_seed(0))
        expected = model(input_ids=ids).logits
        cache = RaggedCache(model.config.num_hidden_layers, 3)

        def run(starts, n):
            rows = torch.stack([ids[r, start : start + n] for r, start in enumerate(starts)])
            cache.reserve(max(starts) + n)
            logits = run_ragged(model, cache, rows, torch.tensor(starts)).logits
            for r, start in enumerate(starts):
                torch.testing.assert_close(logits[r], expected[r, start : start + n], atol=2e-5, rtol=1e-4)

        starts = [0, 0, 0]
        for n, kept in ((10, (10, 4, 1)), (7, (0, 7, 3)), (STEP, (60, 64, 5)), (33, (33, 1, 33)), (STEP, (9, 9, 9))):
            run(starts, n)
            starts = [start + k for start, k in zip(starts, kept, strict=True)]
        assert cache.length > 2 * STEP

    def test_a_layer_on_another_device_than_the_ids(self):
        """torch's own check of devices, on keys that hold no numbers."""
        for n_rows in (1, 2):
            cache = RaggedCache(1, n_rows)
            cache.reserve(7)
            cache.positions = torch.tensor([[3, 4, 5, 6]] * n_rows)
            states = torch.zeros(n_rows, 2, 4, 8, device="meta")
            keys, values = cache.layers[0].update(states, states)
            assert keys.device == values.device == states.device

    def test_length_follows_need(self):
        model, cache = tiny_model(), RaggedCache(2, 1)
        cache.reserve(3)
        run_ragged(model, cache, prompt(0, 3), torch.tensor([0]))
        assert cache.nbytes() == 2 * 2 * 2 * STEP * 8 * 4  # layers x (keys, values) x heads x keys x head_dim x float32

    def test_buckets_waste_little(self):
        lengths = [bucket(n) for n in range(1, 9000)]
        assert lengths == sorted(lengths)
        assert len(set(lengths)) < 30
        assert all(n <= length <= max(STEP + n, 1.25 * n) for n, length in enumerate(lengths, 1))

    def test_no_longer_than_there_will_be_keys(self):
        cache = RaggedCache(1, 1, limit=1100)
        cache.reserve(1030)
        assert cache.length == 1100 < bucket(1030)
        cache.reserve(1200)  # it was not known better
        assert cache.length >= 1200
        coarse = RaggedCache(1, 1, coarse=True, limit=1100)
        coarse.reserve(1030)
        assert coarse.length == 2048

    def test_a_forward_attends_over_what_is_filled(self):
        cache = RaggedCache(1, 1, limit=4096)
        cache.reserve(4000)
        for n, seen in ((3, STEP), (STEP, STEP), (STEP + 1, 2 * STEP)):
            cache.reserve(n)
            cache.positions = torch.tensor([[n - 1]])
            keys, values = cache.layers[0].update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8))
            assert keys.shape == values.shape == (1, 2, seen, 8)
            assert cache.mask(torch.float32).shape == (1, 1, 1, seen)


class TestSameTokens:
    @pytest.mark.parametrize("m", [1, 2, 7, 32])
    @pytest.mark.parametrize("lengths", [[12], [5, 12, 1, 9], [2, 2], [70, 3, 66]])
    def test_strict_equals_plain(self, target, draft, lengths, m):
        inputs = batch(lengths)
        plain = target.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)
        judge = StrictVerifier()
        out = ragged(target, inputs, draft, judge, m=m)
        assert out.tolist() == plain.tolist()
        assert judge.stats.accepted > 0 or m == 1

    @pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
    def test_batch_equals_single_and_upstream_and_naive(self, target, draft, head, threshold):
        """Each row of a mixed batch: what the prompt gives alone, on upstream's caches, and in the naive loop."""
        naive = [NaiveModel(tiny_model()), NaiveModel(noisy_copy(tiny_model()))]
        lengths, n_new, rescued = [12, 4, 9, 1, 17], 20, 0
        inputs = batch(lengths)
        for m in (2, 7):
            judge = JudgeCandidateVerifier(head, threshold)
            rows = answers(ragged(target, inputs, draft, judge, m=m, n_new=n_new), max(lengths))
            rescued += judge.stats.rescued
            for row, length in enumerate(lengths):
                ids = prompt(row, length)
                for engine in ("ragged", "upstream"):
                    alone = ragged(
                        target, {"input_ids": ids}, draft, JudgeCandidateVerifier(head, threshold),
                        m=m, n_new=n_new, judge_engine=engine,
                    )  # fmt: skip
                    assert answers(alone, length)[0] == rows[row], (m, row, engine)
                expected = naive_judged(
                    *naive, ids[0].tolist(), weight=head.weight, bias=head.bias, threshold=threshold, n_draft=m,
                    max_new_tokens=n_new, eos=(EOS,),
                )  # fmt: skip
                assert rows[row] == expected.new_tokens, (m, row)
        assert (rescued > 0) == (threshold < 1)

    @pytest.mark.parametrize("architecture", FULL_ATTENTION)
    def test_architectures(self, architecture):
        model, draft = model_pair(architecture)
        inputs = batch([9, 4, 12])
        plain = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=0)
        assert ragged(model, inputs, draft, StrictVerifier(), n_new=16).tolist() == plain.tolist()

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_any_mix_is_each_prompt_alone_on_upstreams_caches(self, data):
        """Architectures x thresholds x mixes x draft lengths x answer lengths x options that look at a row's past."""
        architecture = data.draw(st.sampled_from(FULL_ATTENTION))
        lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=5))
        m, n_new = data.draw(st.sampled_from([1, 2, 7, 32])), data.draw(st.integers(1, 40))
        more = data.draw(
            st.sampled_from(
                [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3},
                 {"num_assistant_tokens_schedule": "heuristic"}, {"assistant_confidence_threshold": 0.02}]
            )
        )  # fmt: skip
        # the heuristic looks at the whole batch: drafts of other lengths than alone, which only strict ones do not show
        thresholds = [1.0] if "num_assistant_tokens_schedule" in more else [0.0, 0.3, 0.5, 0.9, 1.0]
        threshold = data.draw(st.sampled_from(thresholds))
        (target, draft), head = model_pair(architecture), random_head(scale=2.0)
        judge = JudgeCandidateVerifier(head, threshold)
        inputs, width = batch(lengths), max(lengths)
        rows = answers(ragged(target, inputs, draft, judge, m=m, n_new=n_new, **more), width)
        for row in range(len(lengths)):
            # with its padding, which some processors look at
            alone = ragged(
                target, {name: tensor[row : row + 1] for name, tensor in inputs.items()}, draft,
                JudgeCandidateVerifier(head, threshold), m=m, n_new=n_new, judge_engine="upstream", **more,
            )  # fmt: skip
            assert answers(alone, width)[0] == rows[row], row

    def test_chosen_by_itself(self, target, draft, head):
        """Without judge_engine an assistant is served by the ragged engine, a batch too."""
        inputs = batch([9, 4])
        forced = ragged(target, inputs, draft, head)
        assert ragged(target, inputs, draft, head, judge_engine="auto").tolist() == forced.tolist()


def test_a_draft_far_longer_than_the_room_left_reserves_no_more_than_that(target, draft, monkeypatch):
    reserve, asked = RaggedCache.reserve, []
    monkeypatch.setattr(RaggedCache, "reserve", lambda cache, n: (asked.append(n), reserve(cache, n))[1])
    ragged(target, {"input_ids": prompt(0, 9)}, draft, StrictVerifier(), m=10_000, n_new=10)
    assert max(asked) <= 9 + 10


class TestOptions:
    def test_processors_and_criteria_see_their_own_row(self, target, draft, head):
        """Ids, positions and rows are plain generate's: processors that count, a prefix function, stop criteria."""

        class StopAtMultiple(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                return input_ids[:, -1] % 13 == 0

        def allowed(row, ids):
            return [token for token in range(4, VOCAB) if (token + row + len(ids)) % 5]

        inputs = batch([9, 4, 12])
        options = {
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "min_new_tokens": 5,
            "prefix_allowed_tokens_fn": allowed,
            "stopping_criteria": [StopAtMultiple()],
        }
        plain = target.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0, **options)
        assert len({row.count(0) for row in plain[:, 12:].tolist()}) > 1  # rows end at different times
        judge = StrictVerifier()
        assert ragged(target, inputs, draft, judge, **options).tolist() == plain.tolist()
        assert judge.stats.matched > 0

    def test_scores_and_verdicts_of_a_batch(self, target, draft):
        inputs = batch([9, 4, 12])
        options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        plain = target.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0, **options)
        out = ragged(target, inputs, draft, StrictVerifier(), **options)
        assert out.sequences.tolist() == plain.sequences.tolist()
        assert len(out.scores) == len(out.logits) == len(plain.scores) == out.verdicts.shape[1]
        lengths = [len(row) for row in answers(out.sequences, 12)]
        for row, length in enumerate(lengths):
            for i in range(length):
                torch.testing.assert_close(out.scores[i][row], plain.scores[i][row], atol=1e-4, rtol=1e-4)
            assert (out.verdicts[row, length:] == 4).all()
            assert (out.verdicts[row, :length] < 4).all()

    def test_several_sequences_when_sampling(self, target, draft, head):
        options = {"do_sample": True, "num_return_sequences": 3, "top_k": 0}
        torch.manual_seed(0)
        first = ragged(target, batch([9, 4]), draft, head, **options)
        torch.manual_seed(0)
        assert ragged(target, batch([9, 4]), draft, head, **options).tolist() == first.tolist()
        assert first.shape[0] == 6
        assert first[0].tolist() != first[1].tolist()

    def test_cache_of_a_single_row_serves_a_later_turn(self, target, draft, head):
        out = ragged(target, {"input_ids": prompt(0)}, draft, head, return_dict_in_generate=True, eos_token_id=None)
        assert isinstance(out.past_key_values, DynamicCache)
        longer = torch.cat([out.sequences, prompt(5, 3)], dim=1)
        again = target.generate(longer, past_key_values=out.past_key_values, max_new_tokens=8, do_sample=False)
        assert again.tolist() == target.generate(longer, max_new_tokens=8, do_sample=False).tolist()

    def test_heuristic_schedule(self, target):
        """Two more after a whole draft, as upstream: an always-judge accepts all."""
        stock = tiny_model(eos_token_id=None)
        judge = JudgeCandidateVerifier(always_head(), 0.5)
        options = {"num_assistant_tokens_schedule": "heuristic", "eos_token_id": None}
        ragged(judged(stock), {"input_ids": prompt(3)}, noisy_copy(stock), judge, m=2, n_new=3 + 5 + 7, **options)
        assert (judge.stats.rounds, judge.stats.drafted) == (3, 2 + 4 + 6)


def test_strict_sampling_keeps_the_targets_distribution():
    """Every row of a batch: chi-square of the first two sampled tokens; false alarms with probability 1e-6."""
    from scipy.stats import chi2

    stock = tiny_model(vocab_size=12, eos_token_id=None, seed=4)
    model, draft = judged(stock), noisy_copy(stock, noise=0.4)
    lengths, n_draws = [5, 3], 4000
    rows = [torch.arange(4, 4 + length).unsqueeze(0) for length in lengths]
    ids = torch.zeros(2, 5, dtype=torch.long)
    for row, one in enumerate(rows):
        ids[row, 5 - one.shape[1] :] = one
    mask = (ids != 0).long().repeat_interleave(n_draws, 0)
    torch.manual_seed(0)
    out = ragged(
        model, {"input_ids": ids.repeat_interleave(n_draws, 0), "attention_mask": mask}, draft, StrictVerifier(),
        m=3, n_new=2, do_sample=True, top_k=0,
    )  # fmt: skip
    for row, one in enumerate(rows):
        first = stock(one).logits[0, -1].softmax(-1)
        joint = torch.zeros(12, 12, dtype=torch.double)
        for token in range(12):
            second = stock(torch.cat([one, torch.tensor([[token]])], 1)).logits[0, -1].softmax(-1)
            joint[token] = (first[token] * second).double()
        new = out[row * n_draws : (row + 1) * n_draws, 5:]
        seen = torch.bincount(new[:, 0] * 12 + new[:, 1], minlength=144).double()
        expected = joint.flatten() * n_draws
        common = expected >= 5  # chi-square needs counts; the rest is one cell
        seen = torch.cat([seen[common], seen[~common].sum(0, keepdim=True)])
        expected = torch.cat([expected[common], expected[~common].sum(0, keepdim=True)])
        statistic = ((seen - expected) ** 2 / expected).sum().item()
        assert statistic < chi2.isf(1e-6, len(seen) - 1), row


class Reads(TorchFunctionMode):
    """Counts the calls that bring a tensor's values to the host, which wait for the device."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("item", "tolist", "numpy", "nonzero", "cpu", "__bool__", "__int__", "__float__", "__index__"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def test_a_round_reads_from_the_device_once(target, draft, head):
    """However many tokens are drafted: the verdict is all that is read. The float is the host's own clock."""
    found = []
    for m, n_new in ((4, 8), (4, 40), (16, 40)):
        judge = JudgeCandidateVerifier(head, 0.5)
        with Reads() as reads:
            ragged(target, batch([12, 5]), draft, judge, m=m, n_new=n_new, eos_token_id=None)
        rounds = judge.stats.rounds
        found.append(reads.counts - collections.Counter({"tolist": rounds, "__float__": rounds}))
        assert rounds > 1
        assert reads.counts["tolist"] >= rounds
    assert found[0] == found[1] == found[2]  # what a call reads before its first round


class TestRefused:
    @pytest.mark.parametrize(
        ("kwargs", "reason"),
        [
            ({"prompt_lookup_num_tokens": 3, "assistant_model": None}, "drafts do not come from an assistant model"),
            (
                {"output_attentions": True, "return_dict_in_generate": True},
                "attentions or hidden states were asked for",
            ),
            ({"attention_mask": torch.tensor([[1] * 5 + [0] + [1] * 6])}, "hides more than padding on the left"),
            ({"assistant_model": with_attention("flash_attention_2")}, "the assistant uses flash_attention_2, which"),
        ],
    )
    def test_forced_where_it_cannot_serve(self, target, draft, head, kwargs, reason):
        options = {"assistant_model": draft, "judge": head, "judge_engine": "ragged", "max_new_tokens": 4} | kwargs
        with pytest.raises(ValueError, match=reason):
            target.generate(prompt(0), **options)

    @pytest.mark.parametrize(
        ("architecture", "reason"), [("mistral", "do not attend fully"), ("bloom", "position_ids")]
    )
    def test_architectures_it_cannot_serve(self, architecture, reason, caplog):
        stock = tiny_model(architecture)
        model, draft = judged(stock), noisy_copy(stock)
        with pytest.raises(ValueError, match=reason):
            ragged(model, {"input_ids": prompt(0)}, draft, StrictVerifier())
        with caplog.at_level(logging.INFO, logger="hf_judge"):
            ragged(model, {"input_ids": prompt(0)}, draft, StrictVerifier(), judge_engine="auto")
        assert [reason in r.message for r in caplog.records if r.name == "hf_judge.modeling.engines"] == [True]

    def test_streamers_and_returned_sequences_keep_upstreams_rules(self, target, draft, head):
        class Prints(BaseStreamer):
            """Does not look at what it gets."""

            def put(self, value):
                pass

            def end(self):
                pass

        for streamer in (TextStreamer(None), Prints()):
            with pytest.raises(ValueError, match="batch size 1"):
                ragged(target, batch([9, 4]), draft, head, streamer=streamer)
        with pytest.raises(ValueError, match="num_return_sequences"):
            ragged(target, batch([9, 4]), draft, head, num_return_sequences=2)

    def test_unknown_engine(self, target, draft, head):
        with pytest.raises(ValueError, match="judge_engine must be one of"):
            ragged(target, {"input_ids": prompt(0)}, draft, head, judge_engine="fast")


def test_exceptions_leave_everything_usable(target, draft, head):
    inputs = batch([9, 4])
    expected = ragged(target, inputs, draft, head)

    class Fails(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids, scores, **kwargs):
            Fails.calls += 1
            if Fails.calls == 5:
                raise KeyboardInterrupt
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    before = target.generation_config.to_dict(), target.config.to_dict(), draft.generation_config.to_dict()
    with pytest.raises(KeyboardInterrupt):
        ragged(target, inputs, draft, head, stopping_criteria=[Fails()])
    assert before == (target.generation_config.to_dict(), target.config.to_dict(), draft.generation_config.to_dict())
    assert ragged(target, inputs, draft, head).tolist() == expected.tolist()


def test_pipeline_in_batches():
    """The texts of pipeline(batch_size=8) are those of one prompt after the other, in far fewer forwards."""
    pair = load_pair(4)
    chats = [[{"role": "user", "content": problem.question}] for problem in problems(10, seed=3)]
    judge = JudgeCandidateVerifier(JudgeHead.from_pretrained(pair.judge))
    pipe = pipeline(
        "text-generation", model=pair.target, tokenizer=pair.tokenizer, assistant_model=pair.draft, judge=judge,
        num_assistant_tokens=16, max_new_tokens=60, do_sample=False, return_full_text=False,
    )  # fmt: skip
    texts, forwards = [], []
    for options in ({}, {"batch_size": 8}):
        judge.stats = type(judge.stats)()
        texts.append([answer[0]["generated_text"] for answer in pipe(chats, **options)])
        forwards.append(judge.stats.target_forwards)
    assert texts[0] == texts[1]
    assert forwards[1] < forwards[0] / 2
