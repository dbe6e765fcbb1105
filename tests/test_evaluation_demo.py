"""The command line's demo on the embedded pair, and how it prints text that a model wrote."""

from __future__ import annotations

import json

import pytest
import torch

from hf_judge import VerdictCode
from hf_judge.cli.commands import main
from hf_judge.cli.terminal import printable, table
from hf_judge.cli.verdicts import VerdictPrinter
from hf_judge.tiny import load_pair


@pytest.fixture(scope="module")
def pair():
    return load_pair(4)  # the trained depth: the same function, cheaper


def test_demo(tmp_path, capsys):
    """Two problems in three ways; the same figures on the screen and in the file."""
    path = tmp_path / "demo.json"
    assert main(["demo", "--problems", "2", "--num-assistant-tokens", "16", "--seed", "3", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert list(figures) == ["plain", "assisted", "judged"]
    common = {"accuracy", "tokens_per_forward", "tokens_per_second", "ratio_to_plain"}
    assert set(figures["plain"]) == common
    assert set(figures["assisted"]) == set(figures["judged"]) == common | {"accepted_per_forward"}
    assert figures["plain"]["tokens_per_forward"] == 1.0
    assert figures["plain"]["ratio_to_plain"] == 1.0
    assert 0 < figures["judged"]["accepted_per_forward"] <= 16
    assert figures["judged"]["accepted_per_forward"] > figures["assisted"]["accepted_per_forward"]
    out = capsys.readouterr().out
    for text in ("Question:", "rescued", "corrected", "plain generate", "assisted (upstream)", "judged"):
        assert text in out
    assert f"{figures['judged']['ratio_to_plain']:.2f}x" in out
    assert "\033" not in out  # not a terminal


def test_no_problems(capsys):
    assert main(["demo", "--problems", "0"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("hf-judge: error: ")  # bars of loading go before it
    assert "--problems must be at least 1, got 0" in error
    assert "Traceback" not in error


def test_no_drafted_tokens(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--problems", "1", "--num-assistant-tokens", "0"])
    assert "argument --num-assistant-tokens: expected a whole number from 1 on, got '0'" in capsys.readouterr().err


def test_upstreams_draft_settings_are_put_back(pair):
    from hf_judge.evaluation.evaluate import Decoding, Pair, evaluate
    from hf_judge.rules.by_name import Setting
    from hf_judge.tasks.load import load_task

    before = pair.draft.generation_config.to_dict()
    settings = [Setting("plain"), Setting("assisted")]
    evaluate(
        Pair(pair.target, pair.draft, pair.tokenizer), load_task("world", 1, seed=5), settings, decoding=Decoding(8)
    )
    assert pair.draft.generation_config.to_dict() == before


class TestPrinter:
    def marked(self, pair, text, codes, colour=False, capsys=None):
        printer = VerdictPrinter(pair.tokenizer, colour=colour)
        printer.put(torch.tensor([[1, 2]]))  # the prompt: not shown
        ids = pair.tokenizer(text, add_special_tokens=False).input_ids
        printer.put_verdicts(torch.tensor(codes, dtype=torch.int8))
        printer.put(torch.tensor([ids[: len(codes)]]))
        printer.end()
        return capsys.readouterr().out

    def test_marks_without_colour(self, pair, capsys):
        codes = [VerdictCode.MATCHED, VerdictCode.RESCUED, VerdictCode.CORRECTED, VerdictCode.BONUS]
        out = self.marked(pair, "Ben has books left", codes, capsys=capsys)
        assert out == "Ben [has] <books> {left}\n"

    def test_a_blank_has_no_mark(self, pair, capsys):
        codes = [VerdictCode.MATCHED, VerdictCode.BONUS, VerdictCode.MATCHED]
        assert self.marked(pair, "Ben 7", codes, capsys=capsys) == "Ben 7\n"

    def test_colour(self, pair, capsys):
        out = self.marked(pair, "Ben has", [VerdictCode.MATCHED, VerdictCode.RESCUED], colour=True, capsys=capsys)
        assert out == "Ben\033[1;32m [has]\033[0m\n"

    def test_characters_of_several_tokens_wait_until_they_are_whole(self, pair, capsys):
        n = len(pair.tokenizer("é", add_special_tokens=False).input_ids)
        assert n == 2  # byte-level: two bytes
        assert self.marked(pair, "é", [VerdictCode.MATCHED, VerdictCode.RESCUED], capsys=capsys) == "[é]\n"


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\rc\x07\u202ed\n\te") == "a[2Jbcd\n\te"


def test_table_is_aligned():
    assert table([["", "b"], ["row", "1.0"]]) == "       b\n---  ---\nrow  1.0"
