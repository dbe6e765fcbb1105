"""The compiled engine: the same tokens, no compiling in steady state, few shapes; schedules of draft lengths."""

from __future__ import annotations

import contextlib
import gc
import random
import shutil
import weakref

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ragged import answers, batch, ragged
from tiny_models import noisy_copy, prompt, random_head, tiny_model
from torch._inductor import compile_fx
from transformers import CompileConfig, StoppingCriteria

from hf_judge import JudgeCandidateVerifier, StrictVerifier, judged
from hf_judge.ragged.cache import Buffers, RaggedLayer
from hf_judge.ragged.compiling import _buffers
from hf_judge.ragged.drafting import Drafter
from hf_judge.ragged.schedule import AdaptiveLength, ConstantLength, HeuristicLength, length_schedule

# the tracer alone, without a code generator: what is compiled when, and what it computes, is the same
TRACED = {"compile_config": CompileConfig(backend="eager", mode=None)}


@pytest.fixture(scope="module")
def pair():
    stock = tiny_model(num_hidden_layers=1)  # half the time to trace
    return judged(stock), noisy_copy(stock)


class TestCompiled:
    def test_same_tokens_and_no_compiling_in_steady_state(self, pair):
        (target, draft), m = pair, 4
        mixes = ([12, 5, 1, 9, 3], [7, 7, 2, 16, 1])
        expected = [ragged(target, batch(lengths), draft, StrictVerifier(), m=m).tolist() for lengths in mixes]
        found = [ragged(target, batch(mixes[0]), draft, StrictVerifier(), m=m, **TRACED).tolist()]
        stats = torch._dynamo.utils.counters["stats"]
        n_graphs = stats["unique_graphs"]
        assert n_graphs > 0
        with torch.compiler.set_stance("fail_on_recompile"):
            for lengths in mixes:
                found.append(ragged(target, batch(lengths), draft, StrictVerifier(), m=m, **TRACED).tolist())
        assert found == [expected[0], *expected]
        assert stats["unique_graphs"] == n_graphs

    @pytest.mark.parametrize("m", [1, 2, 7, 32])
    def test_same_tokens_as_eager_and_upstream(self, pair, m):
        """Thresholds x batch mixes, the length limit in the middle of a draft, drafts longer than the room left."""
        target, draft = pair
        head = random_head(scale=2.0)
        for lengths in ([12], [5, 12, 1, 9]):
            for threshold in (0.0, 0.5, 1.0):
                inputs, judge = batch(lengths), JudgeCandidateVerifier(head, threshold)
                found = ragged(target, inputs, draft, judge, m=m, n_new=11, **TRACED)
                expected = ragged(target, inputs, draft, JudgeCandidateVerifier(head, threshold), m=m, n_new=11)
                assert found.tolist() == expected.tolist()
                assert judge.stats.drafted > 0
            if len(lengths) == 1:
                upstream = {"judge_engine": "upstream", "m": m, "n_new": 11}
                other = ragged(target, inputs, draft, JudgeCandidateVerifier(head, 1.0), **upstream)
                assert found.tolist() == other.tolist()

    @pytest.mark.parametrize(("schedule", "n_drafted"), [("constant", 5), ("heuristic", 6)])
    def test_a_constant_length_is_compiled_as_it_is(self, pair, schedule, n_drafted, monkeypatch):
        target, draft = pair
        propose, widths = Drafter.propose, []

        def watched(drafter, answers, texts, n_tokens, **kwargs):
            widths.append(n_tokens)
            return propose(drafter, answers, texts, n_tokens, **kwargs)

        monkeypatch.setattr(Drafter, "propose", watched)
        more = TRACED | {"num_assistant_tokens_schedule": schedule}
        ragged(target, {"input_ids": prompt(0, 9)}, draft, StrictVerifier(), m=5, n_new=6, **more)
        assert widths[0] == n_drafted

    def test_finished_rows_retire(self, pair):
        """Rows end at different times by criteria of their own; what is left goes on in caches of fewer rows."""
        inputs, ends = batch([9, 4, 12, 7, 6, 3]), {}
        target, draft = judged(tiny_model()), noisy_copy(tiny_model())  # two layers: the state of one is not asked for
        judge = JudgeCandidateVerifier(random_head(scale=2.0), 0.9)
        plain = ragged(target, inputs, draft, StrictVerifier(), n_new=40, eos_token_id=None)
        for row, tokens in enumerate(answers(plain, 12, None)):
            ends[row] = tokens[4 * row + 2]
        end_ids = sorted(set(ends.values()))
        options = {"n_new": 40, "eos_token_id": end_ids}
        eager = ragged(target, inputs, draft, JudgeCandidateVerifier(judge.head, 0.9), **options)
        traced = ragged(target, inputs, draft, judge, **options, **TRACED)
        assert traced.tolist() == eager.tolist()
        assert 0 < judge.stats.row_forwards < 6 * judge.stats.target_forwards

    def test_longer_than_a_bucket_and_a_prefill_chunk(self):
        target, draft = judged(tiny_model(max_position_embeddings=1024)), noisy_copy(tiny_model())
        inputs = {"input_ids": prompt(0, 600)}
        expected = ragged(target, inputs, draft, StrictVerifier(), m=8, n_new=40)
        assert ragged(target, inputs, draft, StrictVerifier(), m=8, n_new=40, **TRACED).tolist() == expected.tolist()

    def test_learned_positions_run_out(self):
        """A compiled width that does not fit into the model's positions any more goes on as it is."""
        stock = tiny_model("gpt2")
        target, draft = judged(stock), noisy_copy(stock)
        room = stock.config.max_position_embeddings
        inputs = {"input_ids": prompt(0, room - 12)}
        expected = ragged(target, inputs, draft, StrictVerifier(), m=7, n_new=12)
        assert ragged(target, inputs, draft, StrictVerifier(), m=7, n_new=12, **TRACED).tolist() == expected.tolist()

    def test_sampling_and_scores(self, pair):
        target, draft = pair
        options = {"do_sample": True, "return_dict_in_generate": True, "output_scores": True, "m": 4}
        outputs = []
        for more in ({}, TRACED):
            torch.manual_seed(3)
            outputs.append(ragged(target, batch([9, 4, 6]), draft, StrictVerifier(), **options, **more))
        assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()
        for one, other in zip(outputs[0].scores, outputs[1].scores, strict=True):
            torch.testing.assert_close(one, other)

    def test_static_cache_is_served(self, pair):
        target, draft = pair
        inputs = batch([9, 4])
        expected = ragged(target, inputs, draft, StrictVerifier())
        found = ragged(target, inputs, draft, StrictVerifier(), cache_implementation="static")
        assert found.tolist() == expected.tolist()

    def test_asked_not_to(self, pair):
        target, draft = pair
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        ragged(target, batch([33, 2]), draft, StrictVerifier(), m=3, disable_compile=True, **TRACED)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before

    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
    def test_generated_code(self):
        stock, head = tiny_model(num_hidden_layers=1), random_head(scale=2.0)
        target, draft = judged(stock), noisy_copy(stock)
        expected = ragged(target, batch([9, 4]), draft, JudgeCandidateVerifier(head, 0.5))
        config = CompileConfig(mode=None)
        found = ragged(target, batch([9, 4]), draft, JudgeCandidateVerifier(head, 0.5), compile_config=config)
        assert found.tolist() == expected.tolist()


class TestCachesOfCompiledCalls:
    """A CUDA graph reads and writes at fixed addresses: what torch asks of a forward before it records one."""

    def test_what_a_forward_writes_to_is_told_to_stay_where_it_is(self):
        seen = []

        def look(graph, inputs, **options):
            places = [node for node in graph.graph.nodes if node.op == "placeholder"]
            copies = [node for node in graph.graph.nodes if node.target is torch.ops.aten.copy_.default]
            seen.append(({places.index(node.args[0]) for node in copies}, set(options["static_input_idxs"])))
            return graph.forward

        def backend(graph, inputs):
            return compile_fx.compile_fx(graph, inputs, inner_compile=look)

        target, draft = judged(tiny_model()), noisy_copy(tiny_model())
        config = CompileConfig(backend=backend, mode=None)
        ragged(target, batch([9]), draft, StrictVerifier(), n_new=8, compile_config=config)
        assert len(seen) == 3  # two widths of the draft, one of the target
        for written, told in seen:
            assert len(written) == 2 * 2  # keys and values of two layers
            assert written <= told

    def test_they_stay_where_they_are(self, pair, monkeypatch):
        """From call to call, for fewer rows, and after rows have retired."""
        target, draft = pair
        places, hold = [], RaggedLayer._hold

        def watched(layer, keys, values):
            hold(layer, keys, values)
            if layer._cache.coarse:
                places.append((keys.data_ptr(), values.data_ptr()))

        ragged(target, batch([12, 4, 9, 7]), draft, StrictVerifier(), **TRACED)
        monkeypatch.setattr(RaggedLayer, "_hold", watched)
        ragged(target, batch([5]), draft, StrictVerifier(), **TRACED)
        ragged(target, batch([3, 11, 6, 2]), draft, StrictVerifier(), n_new=60, **TRACED)
        assert len(places) > 2 * 2
        assert len(set(places)) == 2  # one layer of the target, one of the draft

    def test_a_call_within_a_call_and_later_ones_do_not_touch_it(self, pair):
        """A model may be its own draft, and a stopping criterion may generate: each call has memory of its own."""
        target, _ = pair
        inputs = {"input_ids": prompt(0, 9)}
        options = {"m": 4, "eos_token_id": None} | TRACED
        expected = ragged(target, inputs, target, StrictVerifier(), m=4, eos_token_id=None)

        class Asks(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                ragged(target, {"input_ids": prompt(1, 30)}, target, StrictVerifier(), **options)
                return torch.zeros(1, dtype=torch.bool)

        found = ragged(target, inputs, target, StrictVerifier(), stopping_criteria=[Asks()], **options)
        assert found.tolist() == expected.tolist()

        first = ragged(target, inputs, target, StrictVerifier(), return_dict_in_generate=True, **options)
        kept = [layer.keys.clone() for layer in first.past_key_values.layers]
        ragged(target, {"input_ids": prompt(2, 30)}, target, StrictVerifier(), **options)
        for layer, keys in zip(first.past_key_values.layers, kept, strict=True):
            assert torch.equal(layer.keys, keys)

    def test_what_a_call_leaves_behind_does_not_matter(self, pair):
        """Not even NaN."""
        target, draft = pair
        expected = ragged(target, batch([9, 4]), draft, StrictVerifier(), **TRACED)
        left = [buffers for model in pair for free in _buffers[model].values() for buffers in free]
        assert len(left) >= 2
        for buffers in left:
            for memory in buffers._flat.values():
                memory.fill_(float("nan"))
        assert ragged(target, batch([9, 4]), draft, StrictVerifier(), **TRACED).tolist() == expected.tolist()

    def test_in_inference_mode_and_out_of_it(self):
        """The same memory serves both."""
        target, draft = judged(tiny_model(num_hidden_layers=1)), noisy_copy(tiny_model(num_hidden_layers=1))
        expected = ragged(target, batch([9, 4]), draft, StrictVerifier()).tolist()
        for inside in (True, False, True):
            with torch.inference_mode(inside):
                assert ragged(target, batch([9, 4]), draft, StrictVerifier(), **TRACED).tolist() == expected

    @pytest.mark.parametrize(("where", "more"), [("verify", {}), ("verify", TRACED), ("prefill", {})])
    def test_failed_calls_leave_nothing(self, where, more, monkeypatch):
        target, draft = judged(tiny_model(num_hidden_layers=1)), noisy_copy(tiny_model(num_hidden_layers=1))
        expected = ragged(target, batch([9, 4]), draft, StrictVerifier()).tolist()
        with monkeypatch.context() as patch:
            place = StrictVerifier if where == "verify" else Drafter
            patch.setattr(place, where, lambda *args, **kwargs: 1 / 0)
            held = self.held(lambda: ragged(target, batch([9, 4]), draft, StrictVerifier(), **more))
            assert held == 0
        assert ragged(target, batch([9, 4]), draft, StrictVerifier(), **more).tolist() == expected

    def test_eager_calls_leave_nothing(self, target, draft):
        assert self.held(lambda: ragged(target, batch([9, 4]), draft, StrictVerifier())) == 0
        assert self.held(lambda: ragged(target, batch([9, 4]), draft, StrictVerifier(), **TRACED)) > 0

    @staticmethod
    def held(call) -> int:
        """Bytes of keys and values that are still there after a call, without waiting for the garbage collector."""
        seen, take = [], Buffers.take

        def watched(buffers, *args):
            tensor = take(buffers, *args)
            seen.append(weakref.ref(tensor.untyped_storage()))
            return tensor

        gc.disable()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Buffers, "take", watched)
                with contextlib.suppress(ZeroDivisionError):
                    call()
            assert seen
            return sum(storage().nbytes() for storage in seen if storage() is not None)
        finally:
            gc.enable()


class World:
    """A pair with costs and an acceptance rate of its own."""

    def __init__(self, cost_ratio: float, acceptance: float, *, verify: float = 0.0, seed: int = 0):
        self.cost_ratio, self.acceptance, self.verify = cost_ratio, acceptance, verify
        self.random, self.seconds, self.tokens = random.Random(seed), 0.0, 0

    def round(self, schedule) -> None:
        n = schedule.next()
        accepted = 0
        while accepted < n and self.random.random() < self.acceptance:
            accepted += 1
        seconds = (1 + n * (self.cost_ratio + self.verify)) * self.random.uniform(0.95, 1.1)
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + accepted + 1
        schedule.observe([n], [accepted], seconds)

    def rate(self, schedule, n_tokens: int) -> float:
        """Tokens per target forward's time."""
        while self.tokens < n_tokens:
            self.round(schedule)
        return self.tokens / self.seconds


class TestSchedules:
    @settings(max_examples=25, deadline=None)
    @given(st.floats(0.01, 1.5), st.floats(0.0, 1.0), st.floats(0.0, 0.1), st.integers(0, 1000))
    def test_adaptive_is_never_much_slower_than_plain(self, cost_ratio, acceptance, verify, seed):
        world = World(cost_ratio, acceptance, verify=verify, seed=seed)
        plain = 1 / 1.025  # the mean of the noise
        assert world.rate(AdaptiveLength(), 2000) >= 0.95 * plain

    @pytest.mark.parametrize(("cost_ratio", "acceptance"), [(0.05, 0.95), (0.05, 0.6), (0.2, 0.8), (0.02, 0.98)])
    def test_adaptive_comes_near_the_best_constant(self, cost_ratio, acceptance):
        def rate(schedule):
            return World(cost_ratio, acceptance).rate(schedule, 4000)

        best = max(rate(ConstantLength(n)) for n in (1, 2, 4, 8, 16, 24, 32))
        assert rate(AdaptiveLength()) >= 0.9 * best

    def test_adaptive_tries_again(self):
        """Acceptance was hopeless, then becomes good: drafting starts again by itself."""
        schedule, world = AdaptiveLength(), World(0.1, 0.0)
        world.rate(schedule, 300)
        assert schedule.next() == 0 or schedule.acceptance_rate < 0.3
        world.acceptance = 0.95
        before = world.tokens, world.seconds
        world.rate(schedule, 3000)
        assert (world.tokens - before[0]) / (world.seconds - before[1]) > 2.5

    def test_heuristic_is_upstreams(self):
        schedule = HeuristicLength(5)
        schedule.observe([5], [5], 1.0)
        assert schedule.next() == 7
        schedule.observe([7, 7], [7, 3], 1.0)
        assert schedule.next() == 6
        for _ in range(9):
            schedule.observe([1], [0], 1.0)
        assert schedule.next() == 1

    def test_by_name(self):
        assert type(length_schedule(5, "constant", is_maximum=True)) is ConstantLength
        assert type(length_schedule(5, "heuristic_transient", is_maximum=True)) is HeuristicLength
        assert max(length_schedule(5, "adaptive", is_maximum=True)._lengths) == 5

    @pytest.mark.parametrize("more", [{}, TRACED], ids=["eager", "traced"])
    def test_adaptive_generation_is_right_whatever_it_chooses(self, pair, more, monkeypatch):
        """Strict tokens do not depend on lengths, also where the draft must catch up after rounds without it."""
        target, draft = pair
        inputs = batch([9, 4, 12])
        expected = ragged(target, inputs, draft, StrictVerifier(), n_new=40)
        lengths = iter([4, 0, 0, 0, 8, 0, 2, 2, 0, 0, 0, 0, 0, 4] * 10)
        monkeypatch.setattr(AdaptiveLength, "_choose", lambda self: next(lengths))
        judge = StrictVerifier()
        schedule = {"num_assistant_tokens_schedule": "adaptive"}
        found = ragged(target, inputs, draft, judge, m=8, n_new=40, **schedule, **more)
        assert found.tolist() == expected.tolist()
        assert judge.stats.accepted > 0


def test_adaptive_lengths_on_upstreams_caches_are_constant(pair, caplog):
    target, draft = pair
    inputs = {"input_ids": prompt(0, 9)}
    options = {"judge_engine": "upstream", "m": 4, "num_assistant_tokens_schedule": "adaptive"}
    with caplog.at_level("INFO", logger="hf_judge.upstream.candidates"):
        judge = StrictVerifier()
        found = ragged(target, inputs, draft, judge, **options)
    assert "'adaptive' is the ragged engine's" in caplog.text
    constant = StrictVerifier()
    expected = ragged(target, inputs, draft, constant, **options | {"num_assistant_tokens_schedule": "constant"})
    assert found.tolist() == expected.tolist()
    assert judge.stats.drafted == constant.stats.drafted
