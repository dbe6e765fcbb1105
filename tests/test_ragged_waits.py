"""What the ragged engine waits for: one copy to the host in each round, whatever the draft length.

A CPU waits for nothing, so the calls that would wait on an accelerator are counted. Work outside of rounds cancels out:
a long answer is compared with a short one.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from test_ragged import batch, ragged
from test_ragged_compiled import TRACED
from tiny_models import always_head, noisy_copy, random_head, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from hf_judge import JudgeCandidateVerifier, judged
from hf_judge.verify.strict import drawn

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
# each reads its result's size or validity back; new_tensor copies from memory that the system may move
WAITING = ("nonzero", "masked_select", "unique", "unique_consecutive", "multinomial", "bincount", "repeat_interleave")
OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "multinomial", "equal", "is_nonzero")


@pytest.fixture(scope="module")
def pair():
    stock = tiny_model(num_hidden_layers=1)
    return judged(stock), noisy_copy(stock)


@pytest.fixture
def waits(monkeypatch):
    """Counts the calls that would wait, by name."""
    counted = Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for name in (*READS, *WAITING, "new_tensor"):
        if hasattr(torch.Tensor, name):
            count(torch.Tensor, name)
    for name in WAITING:
        if hasattr(torch, name):
            count(torch, name)
    return counted


class Operators(TorchDispatchMode):
    """Counts the operators that would wait, also where C++ calls them."""

    def __init__(self, counted: Counter):
        super().__init__()
        self._counted = counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in OPERATORS:
            self._counted[f"aten::{name}"] += 1
        indices = args[1] if name.startswith(("index", "_unsafe_index")) and isinstance(args[1], (list, tuple)) else ()
        if any(index is not None and index.dtype == torch.bool for index in indices):
            self._counted[f"aten::{name} with a mask"] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("n_prompts", [1, 8])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_one_copy_to_the_host_in_each_round(pair, waits, compiled, do_sample, n_prompts):
    """Also with a confidence threshold and stop tokens, which cut drafts on the device."""
    target, draft = pair
    more = {"do_sample": do_sample, "assistant_confidence_threshold": 0.1} | (TRACED if compiled else {})
    # compiled, all prompts end together: each smaller batch would be compiled for
    more |= {"eos_token_id": None} if compiled else {}
    head = always_head() if compiled else random_head(scale=2.0)

    def of(n_new: int) -> tuple[Counter, int]:
        judge = JudgeCandidateVerifier(head, 0.5)
        torch.manual_seed(0)
        # the tracer and a dispatch mode do not go together: what is compiled is a forward, which eager rounds count too
        waits.clear()
        if compiled:
            ragged(target, batch([9] * n_prompts), draft, judge, n_new=n_new, **more)
        else:
            with Operators(waits):
                ragged(target, batch([9] * n_prompts), draft, judge, n_new=n_new, **more)
        return waits.copy(), judge.stats.rounds

    of(40)  # compiles
    (short, few), (long, many) = of(10), of(40)
    assert many > few + 3
    assert long - short == Counter(tolist=many - few)


def test_a_wait_is_counted(pair, waits):
    """The count above can fail."""
    with Operators(waits):
        probs = torch.ones(2, 3)
        torch.multinomial(probs, 1)
        probs[probs > 0]
        bool(probs.sum() > 0)
    assert set(waits) >= {"multinomial", "aten::index with a mask", "__bool__", "aten::_local_scalar_dense"}


class TestDrawn:
    def test_what_multinomial_draws(self):
        probs = torch.rand(64, 50, generator=torch.Generator().manual_seed(0)) * (torch.arange(50) % 3 > 0)
        torch.manual_seed(1)
        expected = torch.multinomial(probs, num_samples=1).squeeze(1)
        torch.manual_seed(1)
        assert torch.equal(drawn(probs), expected)

    def test_nothing_to_draw_from(self):
        probs = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [0.0, 1.0]])
        assert drawn(probs).tolist() == [-1, -1, -1, 1]

    def test_a_target_without_probabilities_is_an_error(self, pair):
        target, head = copy.deepcopy(pair[0]), random_head()
        with torch.no_grad():
            target.get_output_embeddings().weight.fill_(torch.nan)
        with pytest.raises(RuntimeError, match="sampling needs finite"):
            ragged(target, batch([9, 5]), pair[1], JudgeCandidateVerifier(head, 1.0), do_sample=True)

    def test_a_draft_without_probabilities_is_rejected(self, pair):
        """The target then draws every token itself."""
        draft, judge = copy.deepcopy(pair[1]), JudgeCandidateVerifier(random_head(), 1.0)
        with torch.no_grad():
            draft.get_output_embeddings().weight.fill_(torch.nan)
        ragged(pair[0], batch([9, 5]), draft, judge, do_sample=True)
        assert judge.stats.matched == 0 < judge.stats.drafted
