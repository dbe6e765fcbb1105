"""The fuzzer's short, deterministic profile; and whether it finds faults that are put in."""

from __future__ import annotations

import fuzz
import pytest
import torch

from hf_judge.ragged import eligibility
from hf_judge.ragged.backend import RaggedBackend


def test_no_differences():
    counts, faults = fuzz.fuzz(seconds=120, seed=7, most=150)
    assert faults == []
    assert counts["equal"] > 50


FAULTS = {
    "the engine takes any positions": lambda m: m.setattr(eligibility, "_follow_from", lambda *args: True),
    "the engine takes any attention": lambda m: m.setattr(eligibility, "_other_attention", lambda config: None),
    "a wrong token": lambda m: m.setattr(RaggedBackend, "forward", _rolled(RaggedBackend.forward)),
}


def _rolled(forward):
    def wrong(self, answers, draft):
        found = forward(self, answers, draft)
        return found._replace(logits=found.logits.roll(1, dims=-1))

    return wrong


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_is_put_in_is_found(name, monkeypatch, capsys):
    FAULTS[name](monkeypatch)
    _, faults = fuzz.fuzz(seconds=90, seed=3, most=250)
    assert faults
    assert capsys.readouterr().out


def test_a_case_can_be_run_from_its_repr():
    case = fuzz.Case("llama", "sdpa", 1, [5, 3], 4, 2, "auto", "assistant", [])
    torch.manual_seed(0)
    assert fuzz.run(eval(repr(case), {"Case": fuzz.Case})) == "equal"
