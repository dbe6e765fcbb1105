"""The speed bench: its formula, its measurements on a random pair, its advice."""

from __future__ import annotations

import itertools
import json

import measured_pair
import pytest

from hf_judge.bench.formula import break_even, expected_accepted, predicted_speedup
from hf_judge.bench.forwards import measure_costs
from hf_judge.bench.methods import TimedMethod, UpstreamSetting
from hf_judge.bench.run import BenchOptions, bench, recommend
from hf_judge.cli import bench as cli_bench
from hf_judge.cli import commands as cli
from hf_judge.evaluation.evaluate import Pair

ENGINE_KEYS = (
    "plain", "plain_static", "assisted", "judged_upstream", "judged_ragged", "strict_ragged", "judged_ragged_batch8",
)  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    return measured_pair.pair()


class TestFormula:
    def test_by_hand(self):
        assert predicted_speedup(19.7, 25, 0.02) == pytest.approx(20.7 / 1.5)
        assert predicted_speedup(0, 5, 0.1) == pytest.approx(1 / 1.5)  # nothing accepted: slower than plain
        assert predicted_speedup(3, 4, 0.25, verify_cost=2.0) == pytest.approx(4 / 3)

    @pytest.mark.parametrize(("m", "c", "v"), [(4, 0.1, 1.0), (16, 0.05, 1.5), (32, 0.01, 2.0)])
    def test_break_even_is_where_nothing_is_gained(self, m, c, v):
        rate = break_even(m, c, v)
        assert predicted_speedup(expected_accepted(rate, m), m, c, v) == pytest.approx(1, abs=1e-6)

    def test_a_draft_as_dear_as_the_target_never_pays(self):
        assert break_even(8, 1.0, 1.0) is None


class TestBench:
    def test_costs(self, pair):
        costs = measure_costs(pair, pair.encode("Hello there"), (4, 8), repeats=3)
        assert costs["cost_ratio"] == costs["draft_seconds"] / costs["target_seconds"] > 0
        assert costs["verify_cost"].keys() == {"4", "8"}

    def test_every_way_is_measured(self, pair):
        before = pair.draft.generation_config.to_dict()
        steps = []
        found = bench(
            pair, measured_pair.task(1),
            BenchOptions(lengths=(4,), thresholds=(0.9,), repeats=2, max_new_tokens=8, quick=True),
            on_step=steps.append,
        )  # fmt: skip
        strict_m = found["upstream_setting"]["num_assistant_tokens"]
        assert [way["way"] for way in found["ways"]] == [
            "plain", "plain, static cache", "assisted", "judged upstream, M=4", "judged ragged, M=4",
            f"strict ragged, M={strict_m}", "judged ragged batch8, M=4", "judged, M=4, threshold=0.5",
            "judged, M=4, threshold=0.9",
        ]  # fmt: skip
        for key in ENGINE_KEYS:
            assert found[key]["tokens_per_second"] > 0
            assert 0 <= found[key]["accuracy"] <= 1
            assert found[key]["accepted_per_forward"] >= 0
        assert found["judged_ragged"]["accepted_per_forward"] == found["judged_upstream"]["accepted_per_forward"]
        assert found["floor"].keys() == {"4", str(strict_m)}
        for floor in (*found["floor"].values(), found["floor_batch8"]):
            assert floor["seconds_per_round"] == floor["eager_seconds_per_round"] > 0
            assert floor["compiled_seconds_per_round"] is None
        assert found["ways"][0]["ratio_to_plain"] == 1
        for way in found["ways"][3:]:
            assert way["seconds_per_round"] > 0
            assert sum(way["share_of_time"].values()) == pytest.approx(1)
            assert way["predicted"] == pytest.approx(
                predicted_speedup(way["accepted_per_forward"], way["drafted_per_round"], found["costs"]["cost_ratio"])
            )
        assert found["upstream_setting"].keys() == {"num_assistant_tokens", "schedule", "confidence"}
        assert len(steps) == 3 + 9 + 3 + 2 * 9
        assert pair.draft.generation_config.to_dict() == before
        json.dumps(found, allow_nan=False)

    def test_short_work_is_repeated(self, pair, monkeypatch):
        """A clock that shows a second more whenever it is read: rates and forwards are of one time through the work."""
        seconds = itertools.count(1.0)
        monkeypatch.setattr("hf_judge.bench.methods.time.perf_counter", lambda: next(seconds))
        work = [(pair.encode("Hello there"), example) for example in measured_pair.task(1).examples]
        found = []
        for min_seconds in (0.0, 3.0):
            kwargs = {"judge": False, "assistant_model": pair.draft}
            method = TimedMethod("assisted", kwargs, upstream=UpstreamSetting(4, "constant", 0.0))
            method.repeat(pair, work, 8, min_seconds)
            found.append((method.rates, method.seconds, method.answers, method.forwards))
        assert found[0] == found[1]
        assert next(seconds) == 1 + (1 + 1) + (1 + 3)

    def test_advice(self, pair):
        def row(way, rate, m=None, threshold=None):
            return {
                "way": way, "tokens_per_second": rate, "num_assistant_tokens": m, "threshold": threshold,
                "ratio_to_plain": rate / 10,
            }  # fmt: skip

        rows = [row("plain", 10), row("assisted", 12)]
        judged = [row("judged, a", 30, 8, 0.3), row("judged, b", 20, 16, 0.5), row("judged, c", 19.7, 8, 0.9)]
        advice = recommend(rows + judged, pair)
        assert (advice["pays"], advice["num_assistant_tokens"], advice["threshold"]) == (True, 8, 0.9)
        assert "Thresholds below the head's own are faster still" in advice["text"]
        slow = recommend([*rows, row("judged, b", 11, 16, 0.5)], pair)
        assert not slow["pays"]
        assert "does not pay" in slow["text"]
        assert recommend(rows, pair)["text"] == "No judge was given; fastest: assisted."

    def test_bad_numbers(self, pair):
        for arguments in ({"lengths": ()}, {"lengths": (0,)}, {"repeats": 0}):
            with pytest.raises(ValueError, match="at least one repeat"):
                BenchOptions(**arguments)
        judgeless = Pair(pair.target, pair.draft, pair.tokenizer)
        with pytest.raises(ValueError, match="are of a judge, and none is given"):
            bench(judgeless, measured_pair.task(1), BenchOptions(thresholds=(0.5,)))


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--problems", "0"], "at least 1"),
            (["--repeats", "0"], "at least one repeat"),
            (["--lengths", "0"], "draft lengths from 1 on"),
            (["--thresholds", "2"], "threshold must be between 0 and 1"),
            (["--task", "nonsense"], "no task 'nonsense'"),
        ],
    )
    def test_bad_input_is_one_line(self, pair, monkeypatch, arguments, message, capsys):
        monkeypatch.setattr(cli_bench, "load_models", lambda *args, **kwargs: pair)
        assert cli.main(["bench", "--max-new-tokens", "4", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    def test_measuring(self, pair, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(cli_bench, "load_models", lambda *args, **kwargs: pair)
        path = tmp_path / "b.json"
        arguments = ["--lengths", "4", "--repeats", "1", "--problems", "1", "--max-new-tokens", "6"]
        assert cli.main(["bench", "--quick", *arguments, "--json", str(path)]) == 0
        assert "Recommended:" in capsys.readouterr().out
        assert json.loads(path.read_text())["setup"]["command"].startswith("hf-judge bench --quick")
