"""Labels without people: against a naive reference, whatever the batch, through kills, and over processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from test_labelling_responses import TOKENIZER
from test_training_features import llama

from hf_judge.checking.checkers import MultipleChoiceChecker, NumericChecker, RegexChecker, UnitTestChecker, run_python
from hf_judge.files.durable import Journal
from hf_judge.labelling.drafts import label_drafts
from hf_judge.labelling.greedy import GumbelNoise, greedy
from hf_judge.labelling.responses import read_jsonl
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.labelling.tokens import label_rows

MAX_NEW_TOKENS = 14


def pair(noise=0.05):
    """A target, and the target plus noise: they agree in part."""
    target, draft = llama(0), llama(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    for model in (target, draft):
        model.generation_config.eos_token_id = model.config.eos_token_id = 1
        model.generation_config.pad_token_id = 0
    return target, draft


TARGET, DRAFT = pair()
TASKS = [{"prompt": "Q " + "more " * (i % 4) + f"{i}<|assistant|>", "task_id": i} for i in range(9)]


def checker(response, task):
    """An answer that some swaps change and others do not."""
    return sum(map(ord, response[-6:])) % 3


def mined(tmp_path, name="rows.jsonl", tasks=TASKS, **options):
    options = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 4} | options
    report = mine_swaps(TARGET, DRAFT, TOKENIZER, tasks, checker, tmp_path / name, **options)
    return list(read_jsonl(tmp_path / name)), report


@torch.no_grad()
def argmax_at_end(model, ids):
    return int(model(torch.tensor([ids])).logits[0, -1].argmax())


def naive_answer(prompt, prefix):
    """The target's greedy continuation, token by token, without a cache."""
    ids = list(prefix)
    while len(ids) < MAX_NEW_TOKENS and (not ids or ids[-1] != 1 or len(ids) == len(prefix)):
        ids.append(argmax_at_end(TARGET, prompt + ids))
    return ids


def naive_swaps(task):
    """AutoJudge's loop as it is written down: (prefix, draft's token, does it keep the answer)."""
    prompt = TOKENIZER(task["prompt"]).input_ids
    text = lambda ids: TOKENIZER.decode(ids, skip_special_tokens=True)  # noqa: E731
    response = naive_answer(prompt, [])
    wanted, found, left = checker(text(response), task), [], 0
    while left < min(len(response), MAX_NEW_TOKENS - 1):
        token = argmax_at_end(DRAFT, prompt + response[:left])
        if token != response[left] and token != 1:
            other = naive_answer(prompt, [*response[:left], token])
            keeps = checker(text(other), task) == wanted
            found.append((tuple(response[:left]), token, keeps))
            response = other if keeps else response
        left += 1
    return found


def test_swaps_are_those_of_the_naive_loop(tmp_path):
    rows, report = mined(tmp_path)
    n_kept = n_undone = n_lost = 0
    for task in TASKS:
        expected = naive_swaps(task)
        mine = [row for row in rows if row.task_id == str(task["task_id"])]
        undone = {(row.response_ids[:-1], row.response_ids[-1]) for row in mine if row.mistakes}
        lost = {(prefix, token) for prefix, token, keeps in expected if not keeps} - undone
        assert all(has_no_text(prefix, token) for prefix, token in lost)
        assert undone <= {(prefix, token) for prefix, token, keeps in expected if not keeps}
        kept = [(prefix, token) for prefix, token, keeps in expected if keeps]
        (whole,) = [row for row in mine if not row.mistakes] or [None]
        assert (whole is None) == (not kept)
        for prefix, token in kept:
            assert whole.response_ids[: len(prefix) + 1] == (*prefix, token)
        n_kept, n_undone, n_lost = n_kept + len(kept), n_undone + len(undone), n_lost + len(lost)
    assert report.counts["swaps kept"] == n_kept > 5
    assert report.counts["swaps undone"] == n_undone + n_lost
    assert n_undone > 5
    assert report.counts[NO_TEXT] >= n_lost  # kept ones may be lost too


NO_TEXT = "skipped: tokens without text of their own"


def has_no_text(prefix, token):
    """A byte of a broken character."""
    return "\N{REPLACEMENT CHARACTER}" in TOKENIZER.decode([*prefix, token])


def test_mined_rows_label_the_swapped_tokens(tmp_path):
    rows, report = mined(tmp_path, label_matched=False)
    encoded, labelled = label_rows(rows, TOKENIZER)
    assert not labelled.skipped
    assert labelled.n_mistaken + labelled.n_acceptable + report.counts[NO_TEXT] == (
        report.counts["swaps undone"] + report.counts["swaps kept"]
    )
    assert labelled.n_mistaken > 5
    assert labelled.n_acceptable > 5
    for tokens in encoded:
        row = rows[tokens.row]
        if row.mistakes:  # the swapped token is the last one
            assert tokens.labels[-1] == 0
            assert tokens.labels.count(0) == 1
        assert tuple(tokens.input_ids[tokens.n_prompt :]) == row.response_ids
    rows, _ = mined(tmp_path, "all.jsonl")
    _, labelled = label_rows(rows, TOKENIZER)
    assert labelled.n_acceptable > 2 * report.counts["swaps kept"]


def test_rows_do_not_depend_on_the_batch(tmp_path):
    by_batch = [mined(tmp_path, f"{n}.jsonl", batch_size=n)[0] for n in (1, 3, 16)]
    firm = [[row for row in rows if not row.near_tie] for rows in by_batch]
    assert firm[0] == firm[1] == firm[2]
    assert len(firm[0]) > 10


def test_near_ties_are_marked(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_judge.labelling.swaps.NEAR_TIE", 1e9)
    rows, report = mined(tmp_path)
    assert all(row.near_tie for row in rows)
    assert report.counts["prompts with a near-tie"] == len(TASKS)


def test_prompts_without_an_answer_are_counted(tmp_path):
    report = mine_swaps(
        TARGET, DRAFT, TOKENIZER, TASKS, lambda response, task: None, tmp_path / "x.jsonl", max_new_tokens=4
    )
    assert report.n_rows == 0
    assert report.counts == {"skipped: no answer in the target's own response": len(TASKS)}


def test_one_draft_pass_serves_all_disagreements_until_a_swap_is_kept(tmp_path):
    passes = []
    handle = DRAFT.register_forward_pre_hook(lambda *_: passes.append(1))
    _, report = mined(tmp_path, batch_size=1)
    handle.remove()
    # one for the target's own response, one after each kept swap; undone ones cost none
    assert len(passes) == len(TASKS) + report.counts["swaps kept"]


# --- drafts ---------------------------------------------------------------------------------------------------------


def locate(response, task):
    """The second and third character are the first mistake, in answers long enough."""
    return (1, 3) if len(response) > 5 else None


def drafted(tmp_path, name, **options):
    options = {"max_new_tokens": 8, "num_samples": 3} | options
    label_drafts(DRAFT, TOKENIZER, TASKS, locate, tmp_path / name, **options)
    return list(read_jsonl(tmp_path / name))


def test_draft_answers_are_labelled_where_the_checker_points(tmp_path):
    rows = drafted(tmp_path, "a.jsonl")
    assert len(rows) == 3 * len(TASKS)
    assert all(row.mistakes == (((1, 3),) if len(row.response) > 5 else ()) for row in rows)
    greedy_ids, _ = greedy(DRAFT, TOKENIZER, [TOKENIZER(TASKS[0]["prompt"]).input_ids], [8])[0]
    assert rows[0].response_ids == tuple(greedy_ids if greedy_ids[-1] != 1 else greedy_ids[:-1])
    assert len({row.response for row in rows}) > 2 * len(TASKS)
    encoded, report = label_rows(rows, TOKENIZER)
    assert not report.skipped
    assert len(encoded) == len(rows)


def test_samples_do_not_depend_on_the_batch(tmp_path):
    alone, together = drafted(tmp_path, "a.jsonl", batch_size=1), drafted(tmp_path, "b.jsonl", batch_size=16)
    assert [r for r in alone if not r.near_tie] == [r for r in together if not r.near_tie]
    assert alone != drafted(tmp_path, "c.jsonl", seed=1)


def test_repaired_answers_go_on_from_the_targets_token(tmp_path):
    """The seventh character is a mistake, by decree, unless it is a vowel; no token is labelled twice."""

    def by_decree(response, task):
        return (6, 7) if len(response) > 6 and response[6] not in "aeiou" else None

    options = {"target": TARGET, "num_repairs": 3, "num_samples": 2, "max_new_tokens": 10}
    label_drafts(DRAFT, TOKENIZER, TASKS, by_decree, tmp_path / "a.jsonl", **options)
    rows = list(read_jsonl(tmp_path / "a.jsonl"))
    repaired = [row for row in rows if row.source == "repaired"]
    assert repaired
    for row in repaired:
        before = rows[rows.index(row) - 1]
        prompt = TOKENIZER(row.prompt).input_ids
        n = next(
            i for i, pair in enumerate(zip(row.response_ids, before.response_ids, strict=False)) if len(set(pair)) > 1
        )
        # the first token that differs is the target's own choice after the right part of the answer before it
        assert argmax_at_end(TARGET, prompt + list(row.response_ids[:n])) == row.response_ids[n]
        for tokens in label_rows([row], TOKENIZER)[0]:
            labels = tokens.labels[tokens.n_prompt :]
            assert set(labels[: n + 1]) == {-1}
            assert set(labels[n + 1 :]) != {-1}
    firm = [row for row in rows if not row.near_tie]
    label_drafts(DRAFT, TOKENIZER, TASKS, by_decree, tmp_path / "b.jsonl", batch_size=2, **options)
    assert firm == [row for row in read_jsonl(tmp_path / "b.jsonl") if not row.near_tie]
    with pytest.raises(ValueError, match="needs a target"):
        label_drafts(DRAFT, TOKENIZER, TASKS, by_decree, tmp_path / "c.jsonl", num_repairs=1)


def test_noise_draws_from_the_softmax():
    """4,000 draws: a frequency off by 0.04 has probability below 2 exp(-2 * 4000 * 0.0016) = 6e-6 each (Hoeffding)."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    noise = GumbelNoise(["a"], temperature=0.7)
    draws = torch.cat([noise(None, logits).argmax(-1) for _ in range(4000)])
    frequency = torch.bincount(draws, minlength=4) / 4000
    assert torch.allclose(frequency, (logits[0] / 0.7).softmax(0), atol=0.04)
    assert torch.equal(GumbelNoise([None], 0.7)(None, logits), logits)


# --- through kills --------------------------------------------------------------------------------------------------


def test_a_journal_cut_anywhere_keeps_every_finished_task(tmp_path):
    settings = {"a": 1}
    with Journal(tmp_path / "whole", settings) as journal:
        for i in range(3):
            journal.append(f"k{i}", {"n": i, "text": "é\n"})
    content = (tmp_path / "whole" / "process-00000.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        directory = tmp_path / str(cut)
        directory.mkdir()
        (directory / "process-00000.jsonl").write_bytes(content[:cut])
        with Journal(directory, settings) as journal:
            n_done = max(0, sum(end <= cut for end in ends) - 1)  # the first line holds the settings
            assert list(journal.finished()) == [f"k{i}" for i in range(n_done)]
            journal.append("new", {})
        with Journal(directory, settings) as journal:
            assert list(journal.finished()) == [*(f"k{i}" for i in range(n_done)), "new"]


def test_a_journal_of_other_settings_is_refused(tmp_path):
    mined(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(max_new_tokens differ\)"):
        mined(tmp_path, max_new_tokens=5)
    (path,) = (tmp_path / "rows.jsonl.journal").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{broken\n", *lines[2:]]))
    with pytest.raises(ValueError, match="line 2: .*journal is damaged: delete the line"):
        mined(tmp_path)


def test_a_rerun_does_only_what_is_left(tmp_path):
    rows, _ = mined(tmp_path)
    forwards = []
    handle = TARGET.register_forward_pre_hook(lambda *_: forwards.append(1))
    again, _ = mined(tmp_path)
    assert again == rows
    assert forwards == []
    more, _ = mined(tmp_path, tasks=[*TASKS, {"prompt": "another<|assistant|>", "task_id": "new"}])
    handle.remove()
    assert [row for row in more if row.task_id != "new"] == rows
    assert forwards


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_labelling_mining as tests
from pathlib import Path

def slow(response, task):
    time.sleep(0.03)
    return tests.checker(response, task)

slow.__qualname__ = "checker"
tests.mine_swaps(
    tests.TARGET, tests.DRAFT, tests.TOKENIZER, tests.TASKS, slow, Path({output!r}),
    max_new_tokens=tests.MAX_NEW_TOKENS, batch_size=2,
)
"""


def launch(command, *, stderr=None, **variables):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen([sys.executable, *command], env=environment, stderr=stderr)


def test_kill_9_loses_only_the_prompts_in_work(tmp_path):
    uninterrupted, _ = mined(tmp_path, "whole.jsonl")
    output = tmp_path / "killed.jsonl"
    script = KILLED.format(tests=str(Path(__file__).parent), output=str(output))
    process = launch(["-c", script], stderr=subprocess.DEVNULL)
    journal = tmp_path / "killed.jsonl.journal" / "process-00000.jsonl"
    deadline = time.monotonic() + 120
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "mining ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    n_finished = journal.read_bytes().count(b"\n") - 1
    assert 3 <= n_finished < len(TASKS)
    started = []
    handle = TARGET.register_forward_pre_hook(
        lambda _, args, kwargs: started.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rows, _ = mined(tmp_path, "killed.jsonl", batch_size=len(TASKS))
    handle.remove()
    assert rows == uninterrupted
    assert started[0] == len(TASKS) - n_finished  # the first batch: every prompt that was not finished, no other


# --- checkers -------------------------------------------------------------------------------------------------------


def test_answers():
    assert RegexChecker(r"answer: (\w+)")("answer: x answer: Y", {}) == "Y"
    assert RegexChecker(r"[a-c]+")("abc zz cab", {}) == "cab"
    assert RegexChecker("Yes|No", ignore_case=True)("No. Yes", {}) == "yes"
    assert RegexChecker("x")("y", {}) is None
    assert NumericChecker()("so 1,234.50 in all", {}) == NumericChecker()("= 1234.5", {}) == Fraction("1234.5")
    assert NumericChecker(r"has (-?\d+) left")("Tom has -3 left of 9", {}) == -3
    assert NumericChecker()("none", {}) is None
    assert MultipleChoiceChecker()("The answer is (B) because A", {}) == "B"
    assert MultipleChoiceChecker()("Thinking...\n C.\n", {}) == "C"
    assert MultipleChoiceChecker()("no idea", {}) is None
    with pytest.raises(ValueError, match="is not a regular expression"):
        RegexChecker("(")


def test_unit_tests_need_an_explicit_opt_in():
    with pytest.raises(ValueError, match="allow_code_execution=True"):
        UnitTestChecker()
    passes = UnitTestChecker(allow_code_execution=True)
    task = {"prompt": "", "tests": "assert double(4) == 8"}
    assert passes("Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", task) is True
    assert passes("```python\ndef double(x):\n    return x\n```", task) is False
    with pytest.raises(ValueError, match="needs the text 'tests'"):
        passes("", {"prompt": ""})


def run(code, timeout=10.0, max_memory=1 << 29):
    return run_python(textwrap.dedent(code), timeout=timeout, max_memory=max_memory)


def test_code_runs_closed_off(monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    here = os.getcwd()
    assert run("import os; assert 'SECRET_OF_THE_PARENT' not in os.environ")
    assert run(f"import os; assert os.getcwd() != {here!r}; open('note', 'w').write('x')")
    assert run("import math, json, re, collections; assert math.sqrt(4) == 2")
    assert not run("import socket; socket.socket()")
    assert not run("import socket; socket.getaddrinfo('localhost', 80)")
    assert not run("import subprocess; subprocess.run(['true'])")
    assert not run("import os; os.system('true')")
    assert not run("import os; os.fork()")
    assert not run("import ctypes; ctypes.CDLL(None)")
    assert not run("x = bytearray(1 << 30)")
    assert not run("open('big', 'wb').write(bytes(1 << 22))")


def test_code_that_leaves_early_or_never_ends_does_not_pass():
    assert not run("import sys; sys.exit(0)")
    assert not run("import os; os._exit(0)")
    assert not run("raise ValueError")
    assert not run("def f(:")
    started = time.monotonic()
    assert not run("while True: pass", timeout=1.0)
    assert not run("import time; time.sleep(60)", timeout=1.0)
    assert time.monotonic() - started < 20


def test_where_the_models_lie_changes_no_label(tmp_path):
    found = []
    for place in ("here", "there"):
        DRAFT.save_pretrained(tmp_path / place / "small")
        draft = type(DRAFT).from_pretrained(tmp_path / place / "small")
        output = tmp_path / place / "out.jsonl"
        mine_swaps(TARGET, draft, TOKENIZER, TASKS, checker, output, max_new_tokens=MAX_NEW_TOKENS)
        found.append(output.read_bytes())
    assert found[0] == found[1]
    assert b'"name": "small"' in found[0]
