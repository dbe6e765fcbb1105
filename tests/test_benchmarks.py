"""The benchmark scripts run, at tiny shapes; their figures are for docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gpu(tmp_path):
    path = tmp_path / "gpu.json"
    sizes = ("--prompt-tokens", 20, "--new-tokens", 20, "--repeats", 1, "--batch-sizes", 1, 2)
    out = run("gpu.py", "--shapes", "tiny", "--lengths", 6, *sizes, "--no-compile", "--bandwidth", 10, "--json", path)
    rows = json.loads(path.read_text())["rows"]
    assert [(r["engine"], r["batch_size"]) for r in rows[:6]] == [
        ("plain", 1), ("upstream assisted", 1), ("upstream assisted", 1), ("ragged", 1), ("upstream", 1), ("ragged", 2),
    ]  # fmt: skip
    assert json.loads(path.read_text())["complete"]
    assert "| tiny | ragged | 6 | 2 | paper, 19.7 |" in out
    for row in rows[1:]:
        assert row["first_call_seconds"] > 0
        # upstream's loop drafts 7 and 12 tokens, and its rate is that of the paper's mean
        assert 3 < row["accepted_per_forward"] <= (6.3 if row["engine"] == "upstream assisted" else 6)
        assert row["share_of_floor"] == row["tokens_per_second"] / row["floor_tokens_per_second"]
    accepted = {r["acceptance"]: r["accepted_per_forward"] for r in rows if r["engine"] == "upstream"}
    assert accepted["paper, 19.7"] > 5  # M caps what the trace would accept


def test_long_context(tmp_path):
    path = tmp_path / "context.json"
    sizes = ("--layers", 2, "--new-tokens", 20, "--num-assistant-tokens", 8, "--accepted", 5, "--repeats", 2)
    sizes = ("--contexts", 100, 700, *sizes)
    run("long_context.py", *sizes, "--json", path)
    short, long = json.loads(path.read_text())["rows"]
    assert 0 < short["attention_seconds_per_token"] < short["seconds_per_token"]
    # two layers of 4 heads of 64 and two of 2 of 32, keys and values, float32
    assert long["cache_bytes"] == (700 + 20 + 9) * 2 * 4 * (2 * 4 * 64 + 2 * 2 * 32)


def test_adaptive(tmp_path):
    path = tmp_path / "adaptive.json"
    out = run("adaptive.py", "--layers", 4, "--new-tokens", 30, "--repeats", 1, "--drafts", "judged", "wrong",
              "right and expensive", "--json", path)  # fmt: skip
    rows = {(row["draft"], row["way"]): row for row in json.loads(path.read_text())["rows"]}
    assert "| judged | adaptive |" in out
    assert rows["judged", "M=8"]["accepted_per_forward"] > 4
    assert rows["wrong", "M=4"]["accepted_per_forward"] < 1
    assert rows["right and expensive", "M=16"]["accepted_per_forward"] > 10
    assert all(rows[draft, "plain"]["ratio_to_plain"] == 1 for draft in ("judged", "wrong"))


@pytest.fixture
def scripts(monkeypatch):
    """Lets a test import the scripts that draw."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_race(tmp_path, scripts):
    import race

    path, svg = tmp_path / "race.json", tmp_path / "race.svg"
    out = run("race.py", "--layers", 4, "--repeats", 1, "--num-assistant-tokens", 16, "--json", path, "--svg", svg)
    ways = json.loads(path.read_text(encoding="utf-8"))["ways"]
    assert list(ways) == ["plain", "assisted", "judged"]
    assert [text for text, *_ in ways["plain"]["tokens"]] == [text for text, *_ in ways["assisted"]["tokens"]]
    for lane in ways.values():
        seconds = [second for _, second, _ in lane["tokens"]]
        assert 0 < seconds[0] <= seconds[-1] <= lane["seconds"] + 1e-3
        assert seconds == sorted(seconds)
        assert lane["right"]
    assert f"judged: {len(ways['judged']['tokens'])} tokens" in out
    assert ways["judged"]["forwards"] < ways["assisted"]["forwards"] < ways["plain"]["forwards"]
    assert svg.read_text(encoding="utf-8") == race.draw(json.loads(path.read_text(encoding="utf-8")))


def test_the_race_shown_is_the_one_measured(scripts):
    import race

    found = json.loads((ROOT / "docs" / "race.json").read_text(encoding="utf-8"))
    committed = (ROOT / "docs" / "race.svg").read_text(encoding="utf-8")
    assert committed == race.draw(found)
    assert len(committed.encode()) < 60_000
    assert {verdict for *_, verdict in found["ways"]["judged"]["tokens"]} == set(race.VERDICTS)
    words = "".join(ElementTree.fromstring(committed).itertext()).replace(" ", "")
    for lane in found["ways"].values():
        assert f"{lane['seconds']:.2f}s" in words


def test_the_round_shown_is_a_real_one(tmp_path, scripts):
    """The committed picture and figures are what the bundled pair gives now."""
    import rule

    path, svg = tmp_path / "rule.json", tmp_path / "rule.svg"
    run("rule.py", "--json", path, "--svg", svg)
    found, shown = (json.loads(file.read_text(encoding="utf-8")) for file in (path, ROOT / "docs" / "rule.json"))
    assert [token["score"] for token in found["drafted"]] == pytest.approx(
        [token["score"] for token in shown["drafted"]], abs=0.02
    )
    for round_ in (found, shown):
        for token in round_["drafted"]:
            del token["score"]
    assert found == shown
    verdicts = [token["verdict"] for token in shown["drafted"]]
    assert verdicts == ["matched", "rescued", "matched", "corrected", "discarded", "discarded"]
    committed = json.loads((ROOT / "docs" / "rule.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "rule.svg").read_text(encoding="utf-8") == rule.draw(committed)


def test_plots_are_drawn_from_the_tables(tmp_path, scripts):
    import plots

    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    plain, *rules = plots.rules(page)
    assert (plain["rule"], plain["threshold"], plain["accuracy"], plain["forwards_ratio"]) == ("plain", None, 1.0, 1.0)
    assert len(rules) > 20
    assert all(row["accuracy_interval"][0] <= row["accuracy"] <= row["accuracy_interval"][1] for row in rules)
    assert [row["context"] for row in plots.contexts(page)] == [1024, 2048, 4096, 8192]
    run("plots.py", "--page", ROOT / "docs" / "benchmarks.md", "--output-dir", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmarks-context.png", "benchmarks-forwards.png"]
