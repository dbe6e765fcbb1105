"""The judge as a logits processor of vLLM's model runner V2, without a runner. Skipped without vLLM: make test-vllm."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead
from hf_judge.integrations.vllm_plugin import runner_v2
from hf_judge.integrations.vllm_plugin.runner_v2 import JudgedRejectionSampler, JudgeLogitsProcessor

VOCABULARY, D = 6, 3
SLOTS = [2, 2, 2, 2, 0, 0, 1]  # the request in place 2 drafts three tokens, that in 0 one, that in 1 none
LOCAL = [0, 1, 2, 3, 0, 1, 0]
FED = [5, 1, 2, 3, 5, 4, 5]
CHUNKS = [slice(0, 4), slice(4, 6), slice(6, 7)]


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(runner_v2, "get_tp_group", lambda: SimpleNamespace(world_size=1))


@pytest.fixture
def verifier() -> JudgeCandidateVerifier:
    """Accepts where the first number of the state is positive."""
    head = JudgeHead(JudgeConfig(hidden_size=D))
    with torch.no_grad():
        head.weight[0, 0] = 10.0
    return JudgeCandidateVerifier(head, 0.5)


def processor(verifier, stops=((), (), ())) -> JudgeLogitsProcessor:
    made = JudgeLogitsProcessor(verifier, 3, torch.device("cpu"))
    for place, tokens in enumerate(stops):
        assert made.add_request(place, SimpleNamespace(all_stop_token_ids=set(tokens)))
    made.apply_staged_writes()
    return made


def states(*accepted: int) -> torch.Tensor:
    hidden = -torch.ones(7, D)
    hidden[list(accepted), 0] = 1.0
    return hidden


def context(rows: slice):
    names = {"expanded_idx_mapping": SLOTS, "expanded_local_pos": LOCAL, "input_ids": FED}
    return SimpleNamespace(**{name: torch.tensor(values, dtype=torch.int32)[rows] for name, values in names.items()})


def forced(made, hidden, *, chunks=(slice(0, 7),), invalid=None, logits=None) -> dict[int, int]:
    """The rows that were rewritten, and to which token."""
    logits = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(0)) if logits is None else logits
    before = logits.clone()
    with made.judging(hidden, invalid, alike=True):
        for rows in chunks:
            made.apply(logits[rows], context(rows))
    changed = (logits != before).any(dim=1).nonzero().flatten().tolist()
    for row in changed:
        assert logits[row].isfinite().sum() == 1
    return {row: int(logits[row].argmax()) for row in changed}


@pytest.mark.parametrize("chunks", [[slice(0, 7)], CHUNKS])
def test_the_row_before_a_drafted_token_is_rewritten(verifier, chunks):
    assert forced(processor(verifier), states(1, 3, 5), chunks=chunks) == {0: 1, 2: 3, 4: 4}
    assert forced(processor(verifier), states(0, 4, 6), chunks=chunks) == {}  # no drafted tokens
    assert forced(processor(verifier), states(), chunks=chunks) == {}


def test_stop_tokens_are_those_of_the_place(verifier):
    assert forced(processor(verifier, ([4], [1], [3])), states(1, 2, 3, 5)) == {0: 1, 1: 2}
    assert forced(processor(verifier, ([1], [4], [])), states(1, 2, 3, 5)) == {0: 1, 1: 2, 2: 3, 4: 4}
    made = processor(verifier, ([4], [], []))
    made.add_request(0, SimpleNamespace(all_stop_token_ids={0}))  # a new request in place 0
    made.apply_staged_writes()
    assert forced(made, states(5)) == {4: 4}


def test_constraints_win(verifier):
    logits = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[1, 2] = -torch.inf
    assert forced(processor(verifier), states(1, 2, 3), logits=logits) == {0: 1, 2: 3}
    invalid = torch.tensor([False, False, False, True, False, False, False])  # behind the end of a grammar
    for chunks in ([slice(0, 7)], CHUNKS):
        assert forced(processor(verifier), states(1, 2, 3, 5), chunks=chunks, invalid=invalid) == {0: 1, 1: 2, 4: 4}


def test_never_strict_in_silence(verifier):
    made = processor(verifier)
    with pytest.raises(RuntimeError, match="expected vLLM to process 7 rows of logits, it processed 4"):
        forced(made, states(1), chunks=CHUNKS[:1])
    assert made.apply(torch.zeros(7, VOCABULARY), context(slice(0, 7))).equal(torch.zeros(7, VOCABULARY))
    sampler = object.__new__(JudgedRejectionSampler)
    sampler._hidden = None
    with pytest.raises(RuntimeError, match="hidden states are not to be had: set VLLM_USE_V2_MODEL_RUNNER=0"):
        sampler(torch.zeros(7, VOCABULARY), None)


def test_a_sampler_of_the_model_s_own_is_refused(monkeypatch, verifier):
    runner = SimpleNamespace(
        rejection_sampler=None, is_last_pp_rank=True, vllm_config=None, model_config=SimpleNamespace(model="user/own")
    )
    load = runner_v2._checking(lambda self: None)
    monkeypatch.setattr(runner_v2, "checked_verifier", lambda config: verifier)
    with pytest.raises(ValueError, match="cannot judge 'user/own': the model samples with a class of its own"):
        load(runner)
    runner.is_last_pp_rank = False
    load(runner)
