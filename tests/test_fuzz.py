"""The fuzzer's short, deterministic profile; and whether it finds faults that are put in."""

from __future__ import annotations

import fuzz
import pytest
import torch

from hf_judge.decoding import stopping, upstream_caches
from hf_judge.modeling import engines, refusals
from hf_judge.ragged import eligibility
from hf_judge.ragged.backend import RaggedBackend
from hf_judge.upstream import processors
from hf_judge.upstream.states import StateReader


def test_no_differences():
    counts, faults = fuzz.fuzz(seconds=60, seed=7, most=600, quick=True)
    assert faults == []
    assert counts["equal"] > 50


def _changed(owner, name: str, change):
    """A fault: what the function returns, changed."""
    function = getattr(owner, name)
    return lambda m: m.setattr(owner, name, lambda *args, **kwargs: change(function(*args, **kwargs)))


def _replaced(owner, name: str, value):
    return lambda m: m.setattr(owner, name, value)


# The kinds that were found in this engine by ordinary use, put back one at a time, and some of its own.
FAULTS = {
    "any positions": _replaced(eligibility, "_follow_from", lambda *args: True),
    "any inputs": _replaced(eligibility, "_unknown_inputs", lambda call: None),
    "any attention": _replaced(eligibility, "_other_attention", lambda config: None),
    "a caller's cache": _changed(engines, "why_not_ragged", lambda why: None if "passed a cache" in str(why) else why),
    "angles that change": _replaced(upstream_caches, "length_of_changing_angles", lambda *args: None),
    "criteria that look at the row": _replaced(stopping, "is_upstreams_own", lambda one: True),
    "processors that look at the row": _replaced(
        processors, "_at_place", lambda processor, place, n_prompts: processor
    ),
    "scores of other tokens": _changed(RaggedBackend, "forward", lambda f: f._replace(logits=f.logits.roll(1, -1))),
    "states of other tokens": _changed(StateReader, "read", lambda states: states.roll(1, -2)),
    "a cache without upstream's checks": _replaced(refusals, "ON_UPSTREAMS_CACHES", ()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_is_put_in_is_found(name, monkeypatch, capsys):
    FAULTS[name](monkeypatch)
    _, faults = fuzz.fuzz(seconds=200, seed=3, quick=True, n_faults=1)
    assert faults
    assert "Case(" in capsys.readouterr().out


def test_a_case_can_be_run_from_its_repr():
    case = fuzz.Case("llama", "sdpa", 1, [5, 3], 4, 2, "auto", "assistant", [])
    torch.manual_seed(0)
    assert fuzz.run(eval(repr(case), {"Case": fuzz.Case})) == "equal"
