"""Values chosen on calibration problems, and the command that measures them on others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import measured_pair
import pytest

from hf_judge import cli
from hf_judge.cli import evaluate as cli_evaluate
from hf_judge.evaluation.calibrated import values
from hf_judge.evaluation.calibrated.findings import calibration_sentences
from hf_judge.evaluation.calibrated.values import choose, choose_values, too_few
from hf_judge.evaluation.compare import Work
from hf_judge.evaluation.evaluate import Answer, Decoding
from hf_judge.rules.by_name import Setting, lenient_first, needs_head

DECODING = Decoding(num_assistant_tokens=3, max_new_tokens=6, batch_size=5)


@pytest.fixture(scope="module")
def pair():
    return measured_pair.pair()


@pytest.fixture
def scripted(monkeypatch):
    """Answers by rule: {setting's name: numbers of the wrong problems}; notes who was asked what."""
    asked, wrong = [], {}

    class Scripted:
        def __init__(self, pair, setting, decoding):
            self.setting = setting

        def answer(self, examples):
            asked.extend((self.setting.name, example.name) for example in examples)
            wrongs = wrong.get(self.setting.name, set())
            return [Answer([1], None, int(e.name) not in wrongs, 1.0, 4) for e in examples]

    monkeypatch.setattr(values, "Method", Scripted)
    return SimpleNamespace(asked=asked, wrong=wrong)


class TestChoice:
    SETTINGS = [Setting("plain"), Setting("strict"), *(Setting("kl", v) for v in (1.0, 4.0, 2.0))]

    def choose(self, pair, scripted, points, n=20, **options):
        found = choose_values(pair, measured_pair.task(n), self.SETTINGS, DECODING, points, **options)
        return {choice.setting.rule: choice for choice in found}

    def test_the_most_lenient_value_within_the_loss(self, pair, scripted):
        scripted.wrong |= {"kl=4": {0, 1, 2}, "kl=2": {7}, "kl=1": set()}
        assert self.choose(pair, scripted, 5.0)["kl"].setting == Setting("kl", 2.0)
        assert self.choose(pair, scripted, 15.0)["kl"].setting == Setting("kl", 4.0)
        assert self.choose(pair, scripted, 4.9)["kl"].setting == Setting("kl", 1.0)

    def test_gains_count(self, pair, scripted):
        scripted.wrong |= {"plain": {0, 1}, "kl=4": {5, 6, 7}}
        found = self.choose(pair, scripted, 5.0)["kl"]
        assert (found.setting.value, found.within) == (4.0, True)
        assert found.tried[0] == {"value": 4.0, "n": 20, "lost": 3, "gained": 2, "forwards_per_answer": 4.0}

    def test_no_value_is_within(self, pair, scripted):
        scripted.wrong |= {f"kl={v}": set(range(10)) for v in (1, 2, 4)}
        found = self.choose(pair, scripted, 5.0)["kl"]
        assert (found.setting.value, found.within) == (1.0, False)
        assert [row["value"] for row in found.tried] == [4.0, 2.0, 1.0]

    def test_a_hopeless_value_is_given_up_early(self, pair, scripted):
        scripted.wrong |= {"kl=4": {0, 1}}
        self.choose(pair, scripted, 5.0)
        assert sum(name == "kl=4" for name, _ in scripted.asked) == 5  # one batch
        scripted.asked.clear()
        scripted.wrong |= {"plain": {19}}  # which kl=4 might gain
        self.choose(pair, scripted, 5.0)
        assert sum(name == "kl=4" for name, _ in scripted.asked) == 20

    def test_rules_without_a_number_stay(self, pair, scripted):
        found = self.choose(pair, scripted, 1.0)
        assert found["strict"].setting == Setting("strict")
        assert found["strict"].tried == []
        assert {name for name, _ in scripted.asked} == {"plain", "kl=4"}

    def test_it_continues_where_it_stopped(self, pair, scripted, tmp_path):
        first = self.choose(pair, scripted, 5.0, journal_dir=tmp_path)
        n_asked = len(scripted.asked)
        assert self.choose(pair, scripted, 5.0, journal_dir=tmp_path) == first
        assert len(scripted.asked) == n_asked
        with pytest.raises(ValueError, match="other settings"):
            choose_values(pair, measured_pair.task(3), self.SETTINGS, Decoding(seed=9), 1.0, journal_dir=tmp_path)

    def test_other_problems_measure(self, pair, scripted):
        work = Work(measured_pair.task(20), warnings=["first"])
        measured, settings, record = choose(pair, work, self.SETTINGS, DECODING, 1.0, 8)
        assert [example.name for example in measured.task.examples] == [str(i) for i in range(12)]
        assert {name for _, name in scripted.asked} == {str(i) for i in range(12, 20)}
        assert settings == [Setting("plain"), Setting("strict"), Setting("kl", 4.0)]
        assert (record["n"], record["points"], record["rules"][0]["rule"]) == (8, 1.0, "kl")
        assert measured.warnings[0] == "first"
        assert "8 calibration problems cannot show a loss of 1 points" in measured.warnings[1]
        assert too_few(100, 1.0) == []
        for n in (0, 20, 30):
            with pytest.raises(ValueError, match=f"20 problems cannot be divided into {n}"):
                choose(pair, work, self.SETTINGS, DECODING, 1.0, n)


def test_lenient_first():
    def ordered(rule, *numbers):
        return [setting.value for setting in lenient_first([Setting(rule, number) for number in numbers])]

    assert ordered("kl", 1.0, 3.0, 2.0) == [3.0, 2.0, 1.0]
    assert ordered("mars", 0.9, 0.3) == [0.3, 0.9]
    assert ordered("judge=0.5&fly", 0.3, 0.1) == [0.1, 0.3]
    assert needs_head("kl=1|judge")
    assert not needs_head("kl=1|fly")


def test_sentences_say_where_a_training_free_rule_beats_the_judge():
    def row(rule, accuracy, forwards, number="threshold"):
        return {"rule": rule, "number": number, "threshold": 0.5 if number else None, "accuracy": accuracy,
                "forwards_per_answer": forwards}  # fmt: skip

    record = {"n": 100, "points": 1.0, "rules": [{"rule": "top-k", "within": False}, {"rule": "kl", "within": True}]}
    rules = [row("plain", 1.0, 50, ""), row("judge", 0.98, 8), row("kl", 0.98, 7.5), row("top-k", 0.99, 5)]
    text = calibration_sentences(record, rules)
    assert "lost at most 1 points on 100 other problems" in text[0]
    assert text[1].endswith("strictest: top-k.")
    assert text[2].endswith("is beaten by training-free rules: kl threshold 0.5 (98.0%, 7.5 forwards).")
    assert "No training-free rule" in calibration_sentences(record, [*rules[:2], row("kl", 0.97, 7.5)])[2]


class TestCommand:
    @pytest.fixture(autouse=True)
    def embedded(self, pair, monkeypatch):
        monkeypatch.setattr(cli_evaluate, "load_models", lambda *args, **kwargs: pair)

    def run(self, *arguments: str) -> int:
        return cli.main(["evaluate", "--max-new-tokens", "6", "--num-assistant-tokens", "3", *arguments])

    def test_all_rules_at_both_temperatures(self, tmp_path, capsys):
        arguments = ["--rules", "all", "--calibrate-to-loss", "1.0", "--quick", "--problems", "1", "--no-plots"]
        arguments += ["--json", str(tmp_path / "f.json"), "--report", str(tmp_path / "report")]
        assert self.run(*arguments) == 0
        greedy, sampled = json.loads((tmp_path / "f.json").read_text())["runs"]
        assert (greedy["setup"]["decoding"], sampled["setup"]["decoding"]) == ("greedy", "sampling at temperature 1.0")
        for found in (greedy, sampled):
            names = [row["rule"] for row in found["rules"]]
            assert len(names) == len(set(names)) >= 18
            assert found["calibration"]["n"] == 1
            assert found["setup"]["n"] == 1
        printed = capsys.readouterr().out
        assert "Temperature 0" in printed
        assert "Temperature 1" in printed
        assert (tmp_path / "report" / "temperature-1" / "report.html").is_file()

    def test_one_temperature_has_one_report(self, tmp_path):
        arguments = [
            "--rules",
            "kl=2,1",
            "--calibrate-to-loss",
            "100",
            "--calibration-problems",
            "1",
            "--problems",
            "1",
        ]
        arguments += ["--temperature", "0", "--json", str(tmp_path / "f.json"), "--report", str(tmp_path), "--no-plots"]
        assert self.run(*arguments) == 0
        found = json.loads((tmp_path / "f.json").read_text())
        assert [(row["rule"], row["threshold"]) for row in found["rules"]] == [("plain", None), ("kl", 2.0)]
        assert (tmp_path / "report.html").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--calibrate-to-loss", "-1"], "between 0 and 100 points, got -1"),
            (["--calibrate-to-loss", "nan"], "between 0 and 100 points"),
            (["--calibration-problems", "5"], "--calibration-problems needs --calibrate-to-loss"),
            (["--calibrate-to-loss", "1", "--problems", "0"], "pass --problems N"),
            (
                ["--calibrate-to-loss", "1", "--problems", "3", "--calibration-problems", "0"],
                "cannot be divided into 0",
            ),
            (["--temperature", "-1"], "temperature must be 0"),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, message, capsys):
        assert self.run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
