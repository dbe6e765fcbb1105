"""The vLLM plugin without vLLM: its tensor functions against the rule itself, and what it refuses."""

from __future__ import annotations

import configparser
import importlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_head
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead
from hf_judge.head.compatibility import check_target
from hf_judge.integrations.vllm_plugin.flat_rows import FORCED, force_, requests_of, rescuable, stop_tokens, undone
from hf_judge.integrations.vllm_plugin.settings import JudgeSettings, load_verifier
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs

VOCABULARY, D = 7, 4
INF = float("inf")


def flat(ids: list[int], **kwargs):
    """Arguments of `rescuable` for drafted tokens that nothing speaks against."""
    n = len(ids)
    generator = torch.Generator().manual_seed(n)
    plain = {
        "judged": torch.ones(n, dtype=torch.bool),
        "hidden": torch.randn(n, D, generator=generator),
        "scores": torch.randn(n, VOCABULARY, generator=generator),
        "ids": torch.tensor(ids, dtype=torch.int32),
    }
    return plain | kwargs


class TestAgainstTheRule:
    """An engine that verifies strictly over the rewritten rows decides as `decide` does over the plain ones."""

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_greedy(self, data):
        lengths = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
        k = max(lengths)
        ids = torch.randint(0, VOCABULARY, (len(lengths), k), generator=generator)
        # of three values: the draft is the argmax now and then, and often forbidden
        scores = torch.randn(len(lengths), k + 1, VOCABULARY, generator=generator)
        liked = torch.rand(ids.shape, generator=generator) < 0.4
        scores[:, :k].scatter_add_(-1, ids.unsqueeze(-1), 5.0 * liked.unsqueeze(-1))
        scores[torch.rand(scores.shape, generator=generator) < 0.3] = -INF
        scores[..., 0] = scores[..., 0].clamp(min=-3)  # no row forbids everything
        hidden = torch.randn(len(lengths), k + 1, D, generator=generator)
        hidden[torch.rand(hidden.shape, generator=generator) < 0.03] = INF
        judged = torch.rand(ids.shape, generator=generator) < 0.6
        table = torch.randint(-1, VOCABULARY, (len(lengths), 2), generator=generator)
        stop = (table.unsqueeze(1) == ids.unsqueeze(-1)).any(-1)
        drafted = scores[:, :k].gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        candidates = Candidates(ids, torch.tensor(lengths), forbidden=drafted == -INF, stop=stop)
        window = data.draw(st.integers(0, 4))
        expected = decide(candidates, TargetOutputs(scores, scores, hidden), judged, rescue_window=window)

        inside = torch.arange(k) < candidates.lengths.unsqueeze(1)
        ends = candidates.lengths.cumsum(0).int()
        flat_ids = ids[inside].int()
        request = requests_of(ends, len(flat_ids))
        stopped = stop_tokens(table, flat_ids, request)
        assert stopped.equal(stop[inside])
        rescued = rescuable(judged[inside], hidden[:, 1:][inside], scores[:, :k][inside], flat_ids, stopped)
        rescued &= ~undone(rescued, scores[:, :k][inside].argmax(-1) == flat_ids, request, window)
        rows = force_(scores[:, :k][inside].clone(), flat_ids, rescued)
        for r, length in enumerate(lengths):
            start = int(ends[r]) - length
            choices = rows[start : start + length].argmax(dim=1).tolist()
            proposed = ids[r, :length].tolist()
            n = next((j for j in range(length) if choices[j] != proposed[j]), length)
            assert n == int(expected.n_accepted[r])
            following = choices[n] if n < length else int(scores[r, length].argmax())
            assert following == int(expected.next_token[r])

    def test_a_rescue_survives_every_draw(self):
        """p = 1 after temperature, top-k and top-p, so ``u <= p / q`` for all u, q in [0, 1]."""
        given_ = flat([3, 5])
        rows = force_(given_["scores"].clone(), given_["ids"], torch.tensor([True, False]))
        assert rows[1].equal(given_["scores"][1])
        for warper in (TemperatureLogitsWarper(0.3), TopKLogitsWarper(2), TopPLogitsWarper(0.5)):
            rows = warper(None, rows)
        assert rows[0].softmax(-1).tolist() == [0, 0, 0, 1, 0, 0, 0]


class TestWhatIsNeverRescued:
    def test_nothing_speaks_against_it(self):
        assert rescuable(**flat([0, 1, 2])).tolist() == [True, True, True]

    def test_the_judge_says_no(self):
        assert rescuable(**flat([0, 1], judged=torch.tensor([False, True]))).tolist() == [False, True]

    @pytest.mark.parametrize("value", [-INF, torch.finfo(torch.float32).min, float("nan"), INF])
    def test_scores(self, value):
        given_ = flat([0, 1])
        given_["scores"][0, 0] = value
        given_["scores"][1, 0] = -INF  # of another token: no matter
        assert rescuable(**given_).tolist() == [False, True]

    @pytest.mark.parametrize("value", [float("nan"), INF, -INF])
    def test_states(self, value):
        given_ = flat([0, 1])
        given_["hidden"][0, 2] = value
        assert rescuable(**given_).tolist() == [False, True]

    def test_no_token(self):
        given_ = flat([-1, 1])
        rescued = rescuable(**given_)
        assert rescued.tolist() == [False, True]
        assert force_(given_["scores"].clone(), given_["ids"], rescued)[0].equal(given_["scores"][0])

    def test_another_token_is_forced(self):
        given_ = flat([0, 1, 2])
        given_["scores"][0, 4] = given_["scores"][1, 1] = 10 * FORCED
        assert rescuable(**given_).tolist() == [False, True, True]

    def test_stop_tokens_of_the_request_itself(self):
        """Requests draft 2, 0 and 3 tokens; the first may not rescue 5, the last neither 1 nor 4."""
        ids, ends = torch.tensor([5, 1, 5, 1, 4], dtype=torch.int32), torch.tensor([2, 2, 5], dtype=torch.int32)
        table = torch.tensor([[5, -1], [5, 1], [1, 4]], dtype=torch.int32)
        stop = stop_tokens(table, ids, requests_of(ends, 5))
        assert stop.tolist() == [True, False, False, True, True]
        assert rescuable(**flat(ids.tolist(), stop=stop)).tolist() == [False, True, True, False, False]

    def test_requests_without_stop_tokens(self):
        empty = torch.empty(1, 0, dtype=torch.int32)
        ids, ends = torch.tensor([5, 1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
        assert stop_tokens(empty, ids, requests_of(ends, 2)).tolist() == [False, False]


def test_nothing_waits_for_the_device():
    """Tensors without values: every look at one raises."""
    ids = torch.empty(5, dtype=torch.int32, device="meta")
    hidden, scores = torch.empty(5, D, device="meta"), torch.empty(5, VOCABULARY, device="meta")
    with pytest.raises(RuntimeError):
        ids.sum().item()
    request = requests_of(torch.empty(2, dtype=torch.int32, device="meta"), 5)
    stop = stop_tokens(torch.empty(2, 3, device="meta"), ids, request)
    judged = JudgeCandidateVerifier(random_head(width=D).to("meta")).judged(hidden)
    assert force_(scores, ids, rescuable(judged, hidden, scores, ids, stop)).shape == (5, VOCABULARY)


class TestSettings:
    def test_no_judge(self):
        assert JudgeSettings.of({}) is None
        assert JudgeSettings.of({"another_plugin": {"judge": 1}}) is None
        assert JudgeSettings.of(object()) is None

    def test_all_there_is(self):
        values = {"judge": "user/repo", "threshold": 1, "revision": "main", "subfolder": "judge"}
        values |= {"strict_base": True, "rescue_stop_tokens": True}
        found = JudgeSettings.of({"hf_judge": values, "other": 1})
        assert {name: getattr(found, name) for name in values} == values

    @pytest.mark.parametrize("key", ["hf-judge", "HF_JUDGE", "hfjudge", "judge", "judge_config"])
    def test_a_misspelt_key_is_no_strict_run(self, key):
        with pytest.raises(ValueError, match="did you mean 'hf_judge'"):
            JudgeSettings.of({key: {"judge": "user/repo"}})

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ("user/repo", TypeError, 'expected an object like {"judge": "user/repo"}'),
            ({}, ValueError, "'judge' is missing"),
            ({"threshold": 0.5}, ValueError, "'judge' is missing"),
            ({"judge": "a", "treshold": 0.5}, ValueError, r"unknown keys \['treshold'\]; it may hold judge, threshold"),
            ({"judge": "a", "max_rescue_fraction": 0.1}, ValueError, "max_rescue_fraction is not supported in vLLM"),
            ({"judge": 3}, TypeError, "judge: expected str, got 3"),
            ({"judge": "a", "threshold": "0.5"}, TypeError, "threshold must be a number"),
            ({"judge": "a", "threshold": 1.5}, ValueError, "threshold must be between 0 and 1"),
            ({"judge": "a", "revision": 1}, TypeError, "revision: expected a string or null"),
            ({"judge": "a", "rescue_stop_tokens": "yes"}, TypeError, "rescue_stop_tokens: expected bool"),
        ],
    )
    def test_refused(self, values, error, message):
        with pytest.raises(error, match=message):
            JudgeSettings.of({"hf_judge": values})


class TestHead:
    def test_loads(self, tmp_path):
        head = random_head(width=D, threshold=0.3)
        head.save_pretrained(tmp_path)
        verifier = load_verifier(JudgeSettings(str(tmp_path)))
        assert verifier.threshold == 0.3
        assert verifier.head.weight.equal(head.weight)
        assert not verifier.rescue_stop_tokens
        verifier = load_verifier(JudgeSettings(str(tmp_path), threshold=0.9, rescue_stop_tokens=True))
        assert (verifier.threshold, verifier.rescue_stop_tokens) == (0.9, True)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"hidden_state": "pre_norm"}, "reads the pre_norm state; vLLM returns the post_norm one only"),
            ({"extra_features": ["entropy"]}, r"reads numbers beside the state \(entropy\)"),
        ],
    )
    def test_reads_what_vllm_does_not_hand_out(self, tmp_path, config, message):
        JudgeHead(JudgeConfig(hidden_size=D, **config)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            load_verifier(JudgeSettings(str(tmp_path)))

    def test_is_read_by_the_strict_loader(self, tmp_path):
        random_head(width=D).save_pretrained(tmp_path)
        (tmp_path / "adapter_model.safetensors").unlink()
        (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
            load_verifier(JudgeSettings(str(tmp_path)))

    def test_must_fit_the_target(self, tmp_path):
        random_head(width=D, base_model_name_or_path="user/target").save_pretrained(tmp_path)
        head = load_verifier(JudgeSettings(str(tmp_path), strict_base=True)).head
        check_target(head, D, "user/target", None)
        snapshot = f"/cache/models--user--target/snapshots/{'a' * 40}"  # what vLLM loads when offline
        check_target(head, D, snapshot, None)
        with pytest.raises(ValueError, match="head expects hidden size 4, target has 8: it was trained for 'user/tar"):
            check_target(head, 8, "user/target", None)
        with pytest.raises(ValueError, match="trained for 'user/target', the target is 'user/other'"):
            check_target(head, D, "user/other", None)


def test_entry_point():
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[1] / "setup.cfg")
    name, target = parser["options.entry_points"]["vllm.general_plugins"].strip().split(" = ")
    module, function = target.split(":")
    assert name == "hf_judge"
    assert callable(getattr(importlib.import_module(module), function))
