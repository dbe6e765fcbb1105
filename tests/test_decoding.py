"""The loop against a naive loop, plain decoding, its own statistics, threads and failures."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from naive import NaiveModel, naive_judged
from tiny_models import EOS, VOCAB, always_head, noisy_copy, prompt, random_head, repetitive_prompt, tiny_model
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from hf_judge import (
    JudgeCandidateVerifier,
    JudgeDecoderOnlyOutput,
    JudgeStats,
    StrictVerifier,
    VerdictCode,
    VerdictStreamer,
    judged,
)

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix

# a draft that always has its full length: what the naive loop does
# upstream's caches: tests/test_ragged.py compares the other engine with them
FIXED = {
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
    "do_sample": False,
    "judge_engine": "upstream",
}
KINDS = {code.name.lower(): int(code) for code in VerdictCode}
N_PROMPTS = 200  # times five thresholds


def judge_generate(target, ids, draft=None, judge=None, *, n=4, **kwargs) -> JudgeDecoderOnlyOutput:
    """A judged generation with everything recorded about the judge."""
    if draft is not None:
        kwargs = {"assistant_model": draft, "num_assistant_tokens": n} | FIXED | kwargs
    return target.generate(ids, judge=judge, return_dict_in_generate=True, **{"do_sample": False} | kwargs)


def plain_generate(target, ids, **kwargs):
    return target.generate(ids, judge=False, **{"do_sample": False} | kwargs)


@pytest.fixture(scope="module")
def head():
    """Spread out so that each threshold of the corpus rescues another share."""
    return random_head(scale=2.0)


def never(head) -> JudgeCandidateVerifier:
    return JudgeCandidateVerifier(head, 1.0)


class TestNaiveLoop:
    @pytest.fixture(scope="class")
    @classmethod
    def corpus(cls, target, draft, head):
        """Every prompt at every threshold: ours and the naive loop's."""
        naive_target, naive_draft = NaiveModel(tiny_model()), NaiveModel(noisy_copy(tiny_model()))
        runs = []
        for threshold in (0.0, 0.3, 0.5, 0.9, 1.0):
            for seed in range(N_PROMPTS):
                ids, n = prompt(seed, length=4 + seed % 9), 1 + seed % 5
                ours = judge_generate(
                    target, ids, draft, JudgeCandidateVerifier(head, threshold), n=n, max_new_tokens=8
                )
                reference = naive_judged(
                    naive_target,
                    naive_draft,
                    ids[0].tolist(),
                    weight=head.weight,
                    bias=head.bias,
                    threshold=threshold,
                    n_draft=n,
                    max_new_tokens=8,
                    eos=(EOS,),
                )
                runs.append((threshold, ids.shape[1], ours, reference))
        return runs

    def test_same_tokens(self, corpus):
        assert len(corpus) == 5 * N_PROMPTS
        different = [
            (threshold, ours.sequences[0, n:].tolist(), reference.new_tokens)
            for threshold, n, ours, reference in corpus
            if ours.sequences[0, n:].tolist() != reference.new_tokens
        ]
        assert different == []

    def test_same_verdicts_and_counts(self, corpus):
        for _, _, ours, reference in corpus:
            assert ours.verdicts.tolist() == [[KINDS[kind] for kind in reference.kinds]]
            assert ours.judge_stats.drafted == reference.n_drafted
            assert ours.judge_stats.target_forwards == ours.judge_stats.rounds == reference.n_forwards

    def test_the_comparison_is_not_empty(self, corpus):
        stats = {}
        for threshold, _, ours, _ in corpus:
            stats[threshold] = stats.get(threshold, JudgeStats()) + ours.judge_stats
        assert 0.2 <= stats[1.0].accepted / stats[1.0].drafted <= 0.8
        assert stats[1.0].rescued == 0
        assert all(stats[threshold].rescued_fraction >= 0.1 for threshold in (0.0, 0.3, 0.5))
        assert stats[0.3].rescued > stats[0.5].rescued > stats[0.9].rescued > 0
        assert any(ours.sequences[0, -1] == EOS for _, _, ours, _ in corpus)

    def test_never_judge_is_plain_greedy(self, corpus, target):
        for seed in range(0, N_PROMPTS, 4):
            _, n, ours, _ = corpus[4 * N_PROMPTS + seed]
            plain = plain_generate(target, ours.sequences[:, :n], max_new_tokens=8)
            assert ours.sequences.tolist() == plain.tolist()


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_always_judge_gives_the_drafts_blocks(target, draft, n):
    """Every block is the draft's greedy continuation of its prefix and one token of the target."""
    always = JudgeCandidateVerifier(always_head(), 0.5, rescue_stop_tokens=True)
    for seed in range(5):
        ids = prompt(seed)
        out = judge_generate(target, ids, draft, always, n=n, max_new_tokens=24)
        assert not (out.verdicts == VerdictCode.CORRECTED).any()
        position = ids.shape[1]
        blocks = (out.verdicts[0] == VerdictCode.BONUS).nonzero().flatten().tolist()
        for last in blocks:
            before, end = out.sequences[:, :position], ids.shape[1] + last
            if end > position:
                drafted = draft.generate(before, max_new_tokens=end - position, do_sample=False)
                assert out.sequences[0, :end].tolist() == drafted[0].tolist()
                stopped_early = drafted[0, -1] == EOS
                assert end - position == min(n, ids.shape[1] + 24 - position - 1) or stopped_early
            by_target = plain_generate(target, out.sequences[:, :end], max_new_tokens=1)
            assert out.sequences[0, end] == by_target[0, -1]
            position = end + 1
        assert position == out.sequences.shape[1] or out.sequences[0, -1] == EOS


def test_stop_token_rescue_is_a_choice(target, draft):
    """A drafted EOS that the target does not want ends the answer only where the judge may do that."""
    eager_draft = copy.deepcopy(draft)
    ids = prompt(0)
    # a draft that says nothing but EOS: a bias that its LM head gets from a hook
    eager_draft.lm_head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([EOS]), 50.0))
    plain = plain_generate(target, ids, max_new_tokens=8)
    assert EOS not in plain[0, ids.shape[1] :]
    kept = judge_generate(target, ids, eager_draft, always_head(), max_new_tokens=8)
    assert kept.sequences.tolist() == plain.tolist()
    assert kept.judge_stats.refused_by_constraint == kept.judge_stats.rounds - 1  # the last round has room for no draft
    ended = judge_generate(
        target, ids, eager_draft, JudgeCandidateVerifier(always_head(), rescue_stop_tokens=True), max_new_tokens=8
    )
    assert ended.sequences[0, ids.shape[1] :].tolist() == [EOS]
    assert ended.verdicts.tolist() == [[VerdictCode.RESCUED]]


class TestEndings:
    @pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 5, 6])
    @pytest.mark.parametrize("n", [1, 2, 7, 32])
    def test_length_reached_inside_a_draft(self, target, draft, head, max_new_tokens, n):
        for judge in (never(head), always_head()):
            ids = prompt(n)
            out = judge_generate(target, ids, draft, judge, n=n, max_new_tokens=max_new_tokens, eos_token_id=None)
            assert out.sequences.shape[1] == ids.shape[1] + max_new_tokens
            assert out.verdicts.shape == (1, max_new_tokens)
            assert out.judge_stats.new_tokens == max_new_tokens
        plain = plain_generate(target, ids, max_new_tokens=max_new_tokens, eos_token_id=None)
        out = judge_generate(
            target, ids, draft, never(head), n=n, max_length=ids.shape[1] + max_new_tokens, eos_token_id=None
        )
        assert out.sequences.tolist() == plain.tolist()

    def test_one_of_many_eos_tokens_ends_the_answer(self, target, draft, head):
        for seed in range(8):
            ids = prompt(seed)
            full = plain_generate(target, ids, max_new_tokens=12, eos_token_id=None)[0, ids.shape[1] :].tolist()
            ends = [full[5], full[8], 1]
            out = judge_generate(target, ids, draft, never(head), n=7, max_new_tokens=12, eos_token_id=ends)
            plain = plain_generate(target, ids, max_new_tokens=12, eos_token_id=ends)
            assert out.sequences.tolist() == plain.tolist()
            assert out.sequences[0, -1] in torch.tensor(ends)
            assert out.sequences.shape[1] <= ids.shape[1] + 6

    def test_criterion_met_inside_a_block(self, target, head):
        """The answer is cut at the token where a criterion first holds, whatever the round had accepted."""
        ids = prompt(1)
        n_stop = ids.shape[1] + 3

        class AtLength(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                return torch.full((input_ids.shape[0],), input_ids.shape[1] >= n_stop)

        for judge in (never(head), always_head()):
            out = judge_generate(
                target,
                ids,
                tiny_model(),  # drafts all that the target would say
                judge,
                n=7,
                max_new_tokens=20,
                stopping_criteria=StoppingCriteriaList([AtLength()]),
            )
            assert out.sequences.shape[1] == n_stop
            assert out.judge_stats.new_tokens == 3 == out.verdicts.shape[1]
            assert out.judge_stats.rounds == 1

    def test_length_criterion_below_the_prompt(self, target, draft, head):
        """A user's own limit that the prompt already exceeds: one token, as in plain decoding."""
        limit = {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(5)]), "max_new_tokens": 8}
        plain = plain_generate(target, prompt(0), **limit)
        out = judge_generate(target, prompt(0), draft, never(head), **limit)
        assert out.sequences.tolist() == plain.tolist()
        assert out.judge_stats.new_tokens == 1

    def test_criterion_sees_the_scores_of_its_token(self, target, draft, head):
        ids, seen = prompt(1), []

        class Look(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                seen.append((input_ids.shape[1], len(scores), int(scores[-1].argmax()), int(input_ids[0, -1])))
                return torch.zeros(1, dtype=torch.bool)

        judge_generate(
            target,
            ids,
            draft,
            never(head),
            max_new_tokens=8,
            output_scores=True,
            stopping_criteria=StoppingCriteriaList([Look()]),
        )
        assert [entry[:2] for entry in seen] == [(ids.shape[1] + i + 1, i + 1) for i in range(8)]
        assert all(best == token for _, _, best, token in seen)


class TestStats:
    @pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_invariants(self, target, draft, head, threshold, do_sample):
        torch.manual_seed(0)
        judge = JudgeCandidateVerifier(head, threshold)
        total, n_calls = 0, 6
        for seed in range(n_calls):
            ids = prompt(seed)
            out = judge_generate(target, ids, draft, judge, n=1 + seed, max_new_tokens=11, do_sample=do_sample)
            stats, n_new = out.judge_stats, out.sequences.shape[1] - ids.shape[1]
            assert stats.new_tokens == n_new == stats.matched + stats.rescued + stats.corrected + stats.bonus
            assert stats.accepted == stats.matched + stats.rescued <= stats.drafted
            assert out.verdicts.dtype == torch.int8
            counts = torch.bincount(out.verdicts[0].long(), minlength=5).tolist()
            assert counts == [stats.matched, stats.rescued, stats.corrected, stats.bonus, 0]
            assert stats.target_forwards == stats.rounds
            assert min(stats.seconds_drafting, stats.seconds_verifying, stats.seconds_judging, stats.seconds_rest) > 0
            total += n_new
        assert judge.stats.new_tokens == total
        assert judge.stats.target_forwards < total

    def test_sum_and_dict(self):
        a = JudgeStats(target_forwards=1, rounds=1, drafted=4, accepted=2, matched=1, rescued=1, corrected=1)
        b = JudgeStats(target_forwards=3, rounds=3, bonus=3, seconds_rest=0.5)
        assert sum([a, b]) == a + b
        assert (a + b).new_tokens == 6
        assert (a + b).to_dict()["tokens_per_forward"] == 6 / 4
        assert "\n" not in repr(a + b)
        with pytest.raises(TypeError):
            a + 1

    def test_no_budget_of_rescues_is_exceeded(self, target, draft):
        for fraction in (0.0, 0.1, 0.25, 0.5, 1.0):
            judge = JudgeCandidateVerifier(always_head(), max_rescue_fraction=fraction)
            out = judge_generate(target, prompt(2), draft, judge, n=7, max_new_tokens=40, eos_token_id=None)
            rescued = (out.verdicts[0] == VerdictCode.RESCUED).cumsum(0)
            share = rescued / torch.arange(1, 41)
            assert (share <= fraction + 1e-6).all()
            assert rescued[-1] >= min(0.7 * fraction, 0.3) * 40  # and the budget is used


class TestOutputs:
    """Everything that return_dict_in_generate brings equals plain generate's, entry by entry."""

    SOURCES = ["assistant", "lookup", "lookup_drafts_at_once", "perfect_assistant"]

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
    def test_equal_plain(self, architecture, source, head):
        stock = tiny_model(architecture, attention="eager", eos_token_id=None)
        target = judged(stock)
        ids = repetitive_prompt() if source == "lookup_drafts_at_once" else prompt(0)
        motif = ids[0, -4:].tolist()
        wanted = {
            "max_new_tokens": 14,
            "return_dict_in_generate": True,
            "output_scores": True,
            "output_logits": True,
            "output_hidden_states": True,
            "output_attentions": True,
            # makes scores differ from logits, and the answer go round in the motif that prompt lookup finds
            "sequence_bias": {(a, b): 9.0 for a, b in zip(motif, motif[1:] + motif[:1], strict=True)},
        }
        drafting = {"prompt_lookup_num_tokens": 4}
        if source == "assistant":
            drafting = {"assistant_model": noisy_copy(stock), "num_assistant_tokens": 3} | FIXED
        elif source == "perfect_assistant":
            drafting = {"assistant_model": stock, "num_assistant_tokens": 3} | FIXED
        plain = stock.generate(ids, **wanted | {"do_sample": False})
        ours = target.generate(ids, judge=never(head), **wanted | {"do_sample": False} | drafting)

        assert ours.sequences.tolist() == plain.sequences.tolist()
        assert ours.judge_stats.drafted > 0
        assert ours.judge_stats.accepted > 0
        if source == "lookup_drafts_at_once":
            assert ours.verdicts[0, 0] == VerdictCode.MATCHED
        for name in ("scores", "logits"):
            assert len(getattr(ours, name)) == 14
            for got, expected in zip(getattr(ours, name), getattr(plain, name), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for name in ("hidden_states", "attentions"):
            assert len(getattr(ours, name)) == 14
            for got_layers, expected_layers in zip(getattr(ours, name), getattr(plain, name), strict=True):
                for got, expected in zip(got_layers, expected_layers, strict=True):
                    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert ours.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()

    def test_nothing_that_was_not_asked_for(self, target, draft, head):
        out = judge_generate(target, prompt(0), draft, head, max_new_tokens=4)
        assert out.scores is out.logits is out.hidden_states is out.attentions is None
        assert isinstance(target.generate(prompt(0), assistant_model=draft, judge=head, max_new_tokens=2), torch.Tensor)

    def test_scores_are_the_targets_even_of_rescued_tokens(self, target, draft):
        ids = prompt(0)
        out = judge_generate(target, ids, draft, always_head(), max_new_tokens=9, output_scores=True, eos_token_id=None)
        assert out.judge_stats.rescued > 0
        with torch.no_grad():
            logits = target(out.sequences).logits[0, ids.shape[1] - 1 : -1]
        torch.testing.assert_close(torch.cat(out.scores), logits, rtol=1e-4, atol=1e-4)

    def test_the_cache_that_comes_back_can_be_used(self, target, draft, head):
        """A second turn on the returned cache equals one long prompt."""
        first = judge_generate(target, prompt(0), draft, head, max_new_tokens=9, eos_token_id=None)
        longer = torch.cat([first.sequences, prompt(50, 5)], dim=1)
        plain = plain_generate(target, longer, max_new_tokens=9)
        again = judge_generate(
            target, longer, draft, never(head), max_new_tokens=9, past_key_values=first.past_key_values
        )
        assert again.sequences.tolist() == plain.tolist()


class TestStreamers:
    class Collect(BaseStreamer):
        def __init__(self):
            self.puts, self.ended = [], 0

        def put(self, value):
            self.puts.append(value.reshape(-1).tolist())

        def end(self):
            self.ended += 1

    class CollectVerdicts(VerdictStreamer, Collect):
        def __init__(self):
            super().__init__()
            self.codes = []

        def put_verdicts(self, codes):
            self.codes.append((len(self.puts), codes.tolist()))

    @pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
    def test_every_token_exactly_once(self, target, draft, head, threshold):
        for seed in range(6):
            ids, streamer = prompt(seed), self.CollectVerdicts()
            judge = JudgeCandidateVerifier(head, threshold)
            out = judge_generate(target, ids, draft, judge, n=7, max_new_tokens=13, streamer=streamer)
            assert streamer.puts[0] == ids[0].tolist()
            assert sum(streamer.puts, []) == out.sequences[0].tolist()
            assert streamer.ended == 1
            # put_verdicts number i came right before put number i + 1 (0 is the prompt), as long as that put
            assert [at for at, _ in streamer.codes] == list(range(1, len(streamer.puts)))
            assert [len(codes) for _, codes in streamer.codes] == [len(put) for put in streamer.puts[1:]]
            assert sum((codes for _, codes in streamer.codes), []) == out.verdicts[0].tolist()

    def test_a_plain_streamer_gets_tokens_only(self, target, draft, head):
        streamer = self.Collect()
        out = judge_generate(target, prompt(0), draft, head, max_new_tokens=9, streamer=streamer)
        assert sum(streamer.puts, []) == out.sequences[0].tolist()
        assert streamer.ended == 1


class TestThreads:
    @pytest.mark.parametrize("case", ["post_norm", "pre_norm", "early_exit", "hooked_post_norm"])
    def test_two_threads_equal_one(self, case):
        """One model object, many generations at once: the tokens of one after the other."""
        stock = tiny_model("gpt2" if case == "hooked_post_norm" else "llama", eos_token_id=None)
        target = judged(stock)
        drafting = {"assistant_model": noisy_copy(stock), "num_assistant_tokens": 3} | FIXED
        if case == "early_exit":
            drafting = {"assistant_early_exit": 1, "num_assistant_tokens": 3} | FIXED
        head = random_head(scale=2.0, hidden_state="pre_norm" if case == "pre_norm" else "post_norm")
        jobs = [(prompt(i, 5 + i % 7), i % 3 / 2) for i in range(24)]

        def run(job):
            ids, threshold = job
            return target.generate(ids, judge=head, judge_threshold=threshold, max_new_tokens=8, **drafting).tolist()

        expected = [run(job) for job in jobs]
        results, errors = [None] * len(jobs), []

        def work(start):
            try:
                for i in range(start, len(jobs), 3):
                    results[i] = run(jobs[i])
            except BaseException as error:  # noqa: BLE001 - a thread's failure must fail the test
                errors.append(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert results == expected

    def test_one_judge_for_all_threads(self, target, draft, head):
        """The judge's own sums lose no call."""
        judge = JudgeCandidateVerifier(head, 0.5)
        totals = []

        def work(start):
            for seed in range(start, 24, 4):
                out = judge_generate(target, prompt(seed), draft, judge, max_new_tokens=6)
                totals.append(out.judge_stats)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(totals) == 24
        assert judge.stats.new_tokens == sum(totals).new_tokens
        assert judge.stats.target_forwards == sum(totals).target_forwards


class TestSyncedGpus:
    """Another rank goes on: take part in its forwards, change nothing (upstream goes on appending after EOS)."""

    @pytest.mark.parametrize("n_idle", [1, 3])
    def test_a_finished_rank_is_frozen(self, target, draft, head, n_idle, monkeypatch):
        ids = prompt(0)
        expected = judge_generate(target, ids, draft, head, max_new_tokens=7, output_scores=True)
        left = [n_idle]

        def others_go_on(self, this_peer_finished, synced_gpus, device):
            if not this_peer_finished:
                return True
            left[0] -= 1
            return synced_gpus and left[0] >= 0

        monkeypatch.setattr(type(target), "_has_unfinished_sequences", others_go_on)
        streamer = TestStreamers.Collect()
        out = judge_generate(
            target, ids, draft, head, max_new_tokens=7, output_scores=True, synced_gpus=True, streamer=streamer
        )
        assert out.sequences.tolist() == expected.sequences.tolist()
        assert out.verdicts.tolist() == expected.verdicts.tolist()
        assert len(out.scores) == 7
        assert sum(streamer.puts, []) == out.sequences[0].tolist()
        assert out.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
        assert out.judge_stats.rounds == expected.judge_stats.rounds
        assert out.judge_stats.target_forwards == expected.judge_stats.target_forwards + n_idle


class Boom(Exception):
    """Raised by the parts of a generation below."""


class TestFailures:
    """After an exception at any step the models are as before, and generate again."""

    PLACES = ["draft", "processor", "criterion", "verifier", "streamer", "target"]

    @staticmethod
    def snapshot(model):
        hooks = {
            name: (len(module._forward_pre_hooks), len(module._forward_hooks))
            for name, module in model.named_modules(remove_duplicate=False)
        }
        keys = sorted(key for key in model.__dict__ if key != "_modules")
        return model.config.to_dict(), model.generation_config.to_dict(), hooks, keys, type(model)

    @pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("hidden_state", ["post_norm", "pre_norm"])
    @pytest.mark.parametrize("source", ["assistant", "early_exit"])
    def test_left_as_before(self, place, error, hidden_state, source, monkeypatch):
        stock = tiny_model(eos_token_id=None)
        target, draft = judged(stock), noisy_copy(stock)
        judge = JudgeCandidateVerifier(random_head(scale=2.0, hidden_state=hidden_state), 0.5)
        drafting = {"assistant_model": draft} if source == "assistant" else {"assistant_early_exit": 1}
        drafting |= {"num_assistant_tokens": 3} | FIXED
        calls = {"n": 0}

        def fail(*args, **kwargs):
            calls["n"] += 1
            if calls["n"] >= 3:
                raise error("on purpose")

        extra = {}
        if place == "processor":

            class Processor(LogitsProcessor):
                def __call__(self, input_ids, scores):
                    fail()
                    return scores

            extra["logits_processor"] = LogitsProcessorList([Processor()])
        elif place == "criterion":

            class Criterion(StoppingCriteria):
                def __call__(self, input_ids, scores, **kwargs):
                    fail()
                    return torch.zeros(1, dtype=torch.bool)

            extra["stopping_criteria"] = StoppingCriteriaList([Criterion()])
        elif place == "streamer":

            class Streamer(BaseStreamer):
                def put(self, value):
                    fail()

                def end(self):
                    pass

            extra["streamer"] = Streamer()

        ids = prompt(0)
        expected = target.generate(ids, judge=judge, max_new_tokens=12, **drafting)
        models = [stock, target, draft]
        before = [self.snapshot(model) for model in models]
        stats_before = judge.stats
        with monkeypatch.context() as patch:
            if place == "verifier":
                patch.setattr(judge, "judged", fail)
            elif place in ("draft", "target"):
                layer = (draft if place == "draft" and source == "assistant" else stock).model.layers[0].mlp
                forward = layer.forward
                patch.setattr(layer, "forward", lambda hidden: fail() or forward(hidden))
            with pytest.raises(error):
                target.generate(ids, judge=judge, max_new_tokens=12, **drafting, **extra)
        assert calls["n"] == 3
        assert [self.snapshot(model) for model in models] == before
        assert judge.stats == stats_before
        assert target.generate(ids, judge=judge, max_new_tokens=12, **drafting).tolist() == expected.tolist()
        assert stock.generate(ids, max_new_tokens=12).shape[1] == ids.shape[1] + 12


class TestOwnVerifiers:
    """Any object with `verify` and `stats` is a judge."""

    def test_protocol(self, target, draft):
        class Everything:
            def __init__(self):
                self.stats = JudgeStats()

            def verify(self, candidates, rows):
                from hf_judge.verify.decide import decide

                assert rows.hidden.shape == (1, candidates.ids.shape[1] + 1, 32)
                return decide(candidates, rows, torch.ones_like(candidates.ids, dtype=torch.bool))

        ours = judge_generate(target, prompt(0), draft, Everything(), max_new_tokens=12)
        always = judge_generate(target, prompt(0), draft, always_head(), max_new_tokens=12)
        assert ours.sequences.tolist() == always.sequences.tolist()

    def test_strict_verifier_is_plain_greedy(self, target, draft):
        for seed in range(10):
            out = judge_generate(target, prompt(seed), draft, StrictVerifier(), max_new_tokens=10)
            assert out.sequences.tolist() == plain_generate(target, prompt(seed), max_new_tokens=10).tolist()
            assert out.judge_stats.rescued == 0


class TestSampling:
    def test_first_tokens_keep_the_targets_distribution(self):
        """Strict sampling through the whole loop: the joint law of two tokens, false alarm 1e-6.

        The second token may come from the draft or the target, after an accepted or a corrected first one.
        """
        stock = tiny_model(vocab_size=6, eos_token_id=None, pad_token_id=None, bos_token_id=None)
        target, draft, ids = judged(stock), noisy_copy(stock, noise=0.3), torch.tensor([[5, 1, 4, 2]])
        torch.manual_seed(0)
        n, counts = 1200, torch.zeros(6, 6)
        judge = StrictVerifier()
        sampling = {"assistant_model": draft, "num_assistant_tokens": 2, "top_k": 0} | FIXED | {"do_sample": True}
        for _ in range(n):
            new = target.generate(ids, judge=judge, max_new_tokens=2, **sampling)[0, 4:]
            counts[new[0], new[1]] += 1
        with torch.no_grad():
            first = target(ids).logits[0, -1].softmax(-1)
            after = torch.cat([ids.expand(6, 4), torch.arange(6).unsqueeze(1)], dim=1)
            second = target(after).logits[:, -1].softmax(-1)
        expected = n * first.unsqueeze(1) * second
        rare = expected < 5
        observed = torch.cat([counts[~rare], counts[rare].sum().view(1)])
        expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
        assert chi_square_survival(observed, expected) > 1e-6
        assert 0.2 < judge.stats.accepted / judge.stats.drafted < 0.95

    def test_never_judge_samples_like_strict(self, target, draft, head):
        """The same seed gives the same draws: threshold 1 changes nothing about sampling."""
        for seed in range(4):
            torch.manual_seed(seed)
            strict = judge_generate(target, prompt(seed), draft, StrictVerifier(), max_new_tokens=12, do_sample=True)
            torch.manual_seed(seed)
            ours = judge_generate(target, prompt(seed), draft, never(head), max_new_tokens=12, do_sample=True)
            assert ours.sequences.tolist() == strict.sequences.tolist()


def chi_square_survival(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """P(chi-square >= the statistic) with one degree of freedom less than cells."""
    statistic = ((observed - expected) ** 2 / expected).sum().double()
    freedom = torch.tensor(observed.numel() - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def test_prompt_ids_stay_in_the_vocabulary():
    assert int(torch.cat([prompt(i) for i in range(50)]).max()) < VOCAB
