"""Two processes (gloo, CPU): one target in shards gives one answer; processes with prompts of their own give theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from ranks_worker import ENGINES, EOS, LIMITS, PROMPTS, After, Clock, answer, batch, pre_norm_head
from tiny_models import always_head, noisy_copy, prompt, random_head, tiny_model

from hf_judge import judged
from hf_judge.ragged import backend

SECONDS = 240  # for everything; a hang ends with it
DRAFTS = ("replicated", "sharded")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What every case gave in each of the two processes."""
    directory = tmp_path_factory.mktemp("ranks")
    tiny_model().save_pretrained(directory / "target")
    noisy_copy(tiny_model()).save_pretrained(directory / "draft")
    here = Path(__file__).parent / "fixtures"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", here / "ranks_worker.py"]
    done = subprocess.run(
        [sys.executable, *map(str, command), str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((directory / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    """Target, draft and head as one process has them."""
    return judged(tiny_model()), noisy_copy(tiny_model()), random_head()


PROMPT = {"input_ids": prompt(0)}


@pytest.mark.ranks
class TestTensorParallel:
    def test_the_target_is_in_shards(self, ranks):
        assert [rank["shards"] for rank in ranks] == [[32, 32], [32, 32]]

    @pytest.mark.parametrize("draft", DRAFTS)
    @pytest.mark.parametrize("engine", ENGINES)
    def test_greedy_is_that_of_one_process(self, ranks, alone, engine, draft):
        expected = answer(alone[0], PROMPT, *alone[1:], engine)
        assert expected["rescued"] > 0
        assert expected["corrected"] > 0
        assert [rank[f"greedy/{engine}/{draft}"] for rank in ranks] == [expected] * 2

    @pytest.mark.parametrize("draft", DRAFTS)
    def test_draft_lengths_by_the_first_processs_clock(self, ranks, alone, draft):
        options = {"num_assistant_tokens_schedule": "adaptive", "num_assistant_tokens": 16, "max_new_tokens": 60}
        with mock.patch.object(backend, "time", Clock(0)):
            expected = answer(alone[0], PROMPT, *alone[1:], "ragged", **options)
        with mock.patch.object(backend, "time", Clock(1)):
            other = answer(alone[0], PROMPT, *alone[1:], "ragged", **options)
        assert other["forwards"] != expected["forwards"]  # the second process's own clock would say otherwise
        assert [rank[f"adaptive/{draft}"] for rank in ranks] == [expected] * 2

    def test_states_before_the_norm(self, ranks, alone):
        expected = answer(*alone[:1], PROMPT, alone[1], pre_norm_head(), "auto")
        assert expected["rescued"] > 0
        assert expected["corrected"] > 0
        assert [rank["pre_norm"] for rank in ranks] == [expected] * 2

    def test_batch(self, ranks, alone):
        assert [rank["batch"] for rank in ranks] == [answer(alone[0], batch(), *alone[1:], "ragged")] * 2

    def test_prompt_lookup(self, ranks, alone):
        inputs, options = {"input_ids": prompt(0, 6).repeat(1, 4)}, {"prompt_lookup_num_tokens": 3}
        expected = answer(alone[0], inputs, None, alone[2], "upstream", **options)
        assert [rank["lookup"] for rank in ranks] == [expected] * 2

    def test_a_view_of_a_stock_model(self, ranks, alone):
        assert [rank["view"] for rank in ranks] == [answer(alone[0], PROMPT, *alone[1:], "auto")] * 2

    @pytest.mark.parametrize("draft", DRAFTS)
    @pytest.mark.parametrize("engine", ENGINES)
    def test_sampling_follows_the_first_process(self, ranks, alone, engine, draft):
        """The processes have different seeds; the answers are those that the first would have drawn alone."""
        torch.manual_seed(11)
        for name in ("sampled", "sampled again"):
            expected = answer(alone[0], PROMPT, *alone[1:], engine, do_sample=True, temperature=1.2)
            assert [rank[f"{name}/{engine}/{draft}"] for rank in ranks] == [expected] * 2
        assert ranks[0][f"next draw/{engine}/{draft}"] == torch.rand(1).item()
        torch.manual_seed(12)
        assert ranks[1][f"next draw/{engine}/{draft}"] == torch.rand(1).item()  # as if nothing had been drawn

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_first_process_drafts(self, ranks, alone, engine):
        """The second process has another draft, of other lengths: it is not asked."""
        torch.manual_seed(11)
        expected = [
            answer(alone[0], PROMPT, *alone[1:], engine, do_sample=do_sample, **more)
            for do_sample in (False, True)
            for more in ({}, {"assistant_confidence_threshold": 0.3})
        ]
        assert [rank[f"other drafts/{engine}"] for rank in ranks] == [expected] * 2

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_first_processs_clock_counts(self, ranks, alone, engine):
        expected = answer(alone[0], PROMPT, *alone[1:], engine, stopping_criteria=[After(17)])
        assert len(expected["tokens"][0]) == 17
        assert [rank[f"clock/{engine}"] for rank in ranks] == [expected] * 2

    def test_jobs_that_share_prompts_refuse(self, ranks):
        assert all("the target is tensor parallel, one target in all of them" in rank["jobs"] for rank in ranks)


CASES = {
    "lengths": [{"max_new_tokens": limit} for limit in LIMITS],
    "end tokens": [{"max_new_tokens": 24, "eos_token_id": EOS[rank]} for rank in range(2)],
    "one token": [{"max_new_tokens": 1}, {"max_new_tokens": 9}],
}


@pytest.mark.ranks
class TestSharded:
    """FSDP2: every process has its own prompt and the weights are gathered for each forward, which all must join."""

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("engine", ENGINES)
    def test_every_process_answers_its_own_prompt(self, ranks, alone, engine, case):
        forwards = []
        for rank in range(2):
            found = ranks[rank]["fsdp"][f"{case}/{engine}"]
            expected = answer(alone[0], {"input_ids": PROMPTS[rank]}, *alone[1:], engine, **CASES[case][rank])
            assert found["tokens"] == expected["tokens"]
            assert found["verdicts"] == expected["verdicts"]
            forwards.append((found["forwards"], expected["forwards"]))
        together, apart = zip(*forwards, strict=True)
        assert together == (max(apart),) * 2  # whoever has finished takes part in the other's forwards
        assert len(set(apart)) == 2

    def test_an_end_token_ends_an_answer(self, ranks):
        for rank, found in enumerate(ranks):
            tokens = found["fsdp"]["end tokens/upstream"]["tokens"][0]
            assert tokens.index(EOS[rank], PROMPTS[rank].shape[1]) == len(tokens) - 1

    def test_a_prompt_of_one_token(self, ranks, alone):
        for rank in range(2):
            inputs = {"input_ids": PROMPTS[rank][:, : 1 + 3 * rank]}
            expected = answer(alone[0], inputs, *alone[1:], "ragged", max_new_tokens=6)
            assert ranks[rank]["fsdp"]["short prompt"]["tokens"] == expected["tokens"]

    def test_long_prompts_are_read_at_once(self, ranks, alone):
        """In chunks, as elsewhere, the processes would have unequally many forwards."""
        for rank in range(2):
            expected = answer(alone[0], {"input_ids": PROMPTS[rank]}, *alone[1:], "ragged", max_new_tokens=6)
            assert ranks[rank]["fsdp"]["chunks"]["tokens"] == expected["tokens"]

    def test_a_judge_class_can_be_sharded(self, ranks, alone):
        for rank in range(2):
            expected = answer(
                *alone[:1], {"input_ids": PROMPTS[rank]}, alone[1], always_head(), "auto", max_new_tokens=LIMITS[rank]
            )
            assert ranks[rank]["fsdp judge first"]["tokens"] == expected["tokens"]

    def test_sharded_by_from_pretrained(self, ranks, alone):
        for rank in range(2):
            expected = answer(*alone[:1], {"input_ids": PROMPTS[rank]}, *alone[1:], "auto", max_new_tokens=LIMITS[rank])
            assert ranks[rank]["fsdp from_pretrained"]["tokens"] == expected["tokens"]

    def test_drafts_that_need_the_others_are_refused(self, ranks):
        for rank in ranks:
            assert "cannot draft with a sharded FSDPLlamaForCausalLM" in rank["fsdp"]["refused/sharded draft"]
            assert "cannot draft with the sharded target itself" in rank["fsdp"]["refused/early exit"]
