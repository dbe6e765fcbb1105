"""The speed bench: its formula, its measurements on a random pair, its advice."""

from __future__ import annotations

import itertools
import json

import measured_pair
import pytest

from hf_judge.bench.formula import (
    acceptance_rate,
    expected_accepted,
    implied_cost_ratio,
    paper_check,
    predicted_speedup,
    simulate,
)
from hf_judge.bench.run import BenchWay, bench, measure_costs, recommend
from hf_judge.cli import bench as cli_bench
from hf_judge.cli import commands as cli

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

    def test_implied_cost_is_the_inverse(self):
        c = implied_cost_ratio(9.7, 19.7, 25)
        assert predicted_speedup(19.7, 25, c) == pytest.approx(9.7)

    @pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 0.999, 1.0])
    def test_acceptance_rate_is_the_inverse(self, rate):
        assert acceptance_rate(expected_accepted(rate, 12), 12) == pytest.approx(rate, abs=1e-6)

    def test_simulation_finds_the_best_length(self):
        found = simulate(6.0, 10, 0.05)
        rate = found["acceptance_rate"]
        around = [predicted_speedup(expected_accepted(rate, m), m, 0.05) for m in range(1, 60)]
        assert found["best_speedup"] == max(around)
        assert found["best_M"] == 1 + around.index(max(around))

    @pytest.mark.parametrize(("m", "c", "match"), [(11, 0.1, "between 0 and M"), (5, 0, "above 0"), (-1, 0.1, "m,")])
    def test_impossible_numbers(self, m, c, match):
        with pytest.raises(ValueError, match=match):
            simulate(m, 10, c)

    def test_paper(self):
        rows = {(row["figure"], row["M"]): row for row in paper_check()}
        hugging_face = rows["judged, Hugging Face", 25]
        assert hugging_face["published"] == 9.7
        assert hugging_face["predicted"] == pytest.approx(20.7 / (25 * 8 / 405 + 1))
        # parameters alone promise more than the paper measured: its draft cost more than 8/405 of the target
        assert all(row["predicted"] > row["published"] for row in rows.values())
        assert hugging_face["implied_c"] == pytest.approx(0.0454, abs=1e-4)


class TestBench:
    def test_costs(self, pair):
        costs = measure_costs(pair, pair.encode("Hello there"), (4, 8), repeats=3)
        assert costs["cost_ratio"] == costs["draft_seconds"] / costs["target_seconds"] > 0
        assert costs["verify_cost"].keys() == {"4", "8"}

    def test_every_way_is_measured(self, pair):
        before = pair.draft.generation_config.to_dict()
        steps = []
        found = bench(
            pair, measured_pair.task(1), lengths=(4,), thresholds=(0.9,), repeats=2, max_new_tokens=8, quick=True,
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
        monkeypatch.setattr("hf_judge.bench.run.time.perf_counter", lambda: next(seconds))
        work = [(pair.encode("Hello there"), example) for example in measured_pair.task(1).examples]
        found = []
        for min_seconds in (0.0, 3.0):
            way = BenchWay("assisted", {"judge": False, "assistant_model": pair.draft}, upstream=(4, "constant", 0.0))
            way.repeat(pair, work, 8, min_seconds)
            found.append((way.rates, way.seconds, way.answers, way.forwards))
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
                bench(pair, measured_pair.task(1), **arguments)


class TestCommand:
    def test_simulation(self, tmp_path, capsys):
        path = tmp_path / "s.json"
        assert cli.main(["bench", "--simulate", "m=19.7", "M=25", "draft=8", "target=405", "--json", str(path)]) == 0
        assert json.loads(path.read_text())["simulation"]["speedup"] == pytest.approx(20.7 / (25 * 8 / 405 + 1))
        assert "9.7x" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["m=1"], "missing: M, c"),
            (["m=1", "M=2.5", "c=1"], "whole number"),
            (["m=x", "M=2", "c=1"], "no number"),
            (["k=1"], "takes m=, M=, c="),
            (["m=9", "M=2", "c=1"], "between 0 and M"),
        ],
    )
    def test_bad_simulation(self, words, message, capsys):
        assert cli.main(["bench", "--simulate", *words]) == 2
        assert message in capsys.readouterr().err

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
