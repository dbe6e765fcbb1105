"""One bad row never stops a job and is never dropped in silence: counted, named, listed; `--strict` stops at it."""

import io
import json
import sys

import pytest
from test_labelling_mining import DRAFT, TARGET
from test_labelling_responses import byte_tokenizer
from tiny_models import random_head, save_models

from hf_judge.cli.commands import main
from hf_judge.evaluation.evaluate import Pair
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.labelling.responses import read_jsonl

TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TOKENIZER.chat_template
)
CHATS = [[{"role": "user", "content": f"Tom has {i} apples"}] for i in range(3)]
CHATS[1] = [{"role": "system", "content": "Be brief."}, *CHATS[1]]
REASON = "the chat template refuses the prompt: System role not supported"


def checker(response, task):
    """Fails on the tasks that say so."""
    if task.get("broken"):
        raise KeyError("gold")
    return len(response) % 2


def locate(response, task):
    if task.get("broken"):
        return task.get("span", "here")
    return (0, 1) if response else None


def leaves(response, task):
    if task.get("broken"):
        sys.exit(0)
    return len(response) % 2


def never_says(response, task):
    raise ZeroDivisionError("always")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    save_models(directory, TOKENIZER, target=TARGET, draft=DRAFT)
    return ("--target", str(directory / "target"), "--draft", str(directory / "draft"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mine(pair, prompts, output, *more, code=0):
    options = ("--checker", "test_labelling_refused_rows:checker", "--max-new-tokens", "8")
    assert main(["mine", *pair, "--prompts", prompts, "--output", str(output), *options, *more]) == code


@pytest.mark.parametrize("source", [(), ("--source", "draft", "--locate", "test_labelling_refused_rows:locate")])
def test_mining_goes_on(pair, tmp_path, capsys, source):
    rows = [{"prompt": chat} for chat in CHATS] + [{"prompt": "Ana", "broken": True}, {"prompt": "Tom"}]
    prompts, output = write(tmp_path / "p.jsonl", rows), tmp_path / "out.jsonl"
    mine(pair, prompts, output, *source)
    said = capsys.readouterr().out
    assert "2 of 5 prompts refused:" in said
    assert f"  {prompts}, line 2: {REASON}\n" in said
    assert f"  {prompts}, line 4: " in said
    mined = list(read_jsonl(output))
    assert {json.dumps(row.prompt) for row in mined} == {json.dumps(p) for p in (CHATS[0], CHATS[2], "Tom")}
    # again: the same answer, and nothing but the refused ones is tried
    mine(pair, prompts, output, *source)
    assert "2 of 5 prompts refused:" in capsys.readouterr().out
    assert list(read_jsonl(output)) == mined


@pytest.mark.parametrize("span", [[-3, 2], [5, 2], [1, 2, 3], [0.5, 2], 7])
def test_a_span_that_is_none_refuses_its_prompt(pair, tmp_path, capsys, span):
    rows = [{"prompt": "Tom"}, {"prompt": "Ana", "broken": True, "span": span}]
    prompts, output = write(tmp_path / "p.jsonl", rows), tmp_path / "out.jsonl"
    mine(pair, prompts, output, "--source", "draft", "--locate", "test_labelling_refused_rows:locate")
    assert f"1 of 2 prompts refused:\n  {prompts}, line 2: " in capsys.readouterr().out
    assert {row.prompt for row in read_jsonl(output)} == {"Tom"}


def test_a_checker_that_calls_exit_is_no_success(pair, tmp_path, capsys):
    prompts = write(
        tmp_path / "p.jsonl", [{"prompt": "Tom", "answer": 1}, {"prompt": "Ana", "answer": 1, "broken": True}]
    )
    own = ("--checker", "test_labelling_refused_rows:leaves")
    mine(pair, prompts, tmp_path / "out.jsonl", *own)
    assert f"  {prompts}, line 2: the function called sys.exit(0)\n" in capsys.readouterr().out
    command = ["evaluate", *pair, "--task", prompts, "--rules", "top-k=2", "--max-new-tokens", "4", *own]
    assert main(command) == 2
    assert "called sys.exit(0)" in capsys.readouterr().err


def test_strict_mining_stops_there(pair, tmp_path, capsys):
    prompts, output = write(tmp_path / "p.jsonl", [{"prompt": chat} for chat in CHATS]), tmp_path / "out.jsonl"
    mine(pair, prompts, output, "--strict", code=2)
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-judge: error: {prompts}, line 2: {REASON}"
    assert not output.exists()
    mine(pair, prompts, output)  # and what was done counts
    assert len({json.dumps(row.prompt) for row in read_jsonl(output)}) == 2


def test_nothing_but_refusals_is_an_error(pair, tmp_path, capsys):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": CHATS[1]}, {"prompt": CHATS[1], "task_id": 2}])
    mine(pair, prompts, tmp_path / "out.jsonl", code=2)
    assert f"all 2 prompts were refused; {prompts}, line 1: {REASON}" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    prompts = write(tmp_path / "q.jsonl", [{"prompt": "Tom"}])
    mine(pair, prompts, tmp_path / "out2.jsonl", "--checker", "test_labelling_refused_rows:never_says", code=2)
    assert "line 1: always" in capsys.readouterr().err


def test_a_reason_that_is_gone_is_forgotten(pair, tmp_path, capsys, monkeypatch):
    prompts, output = write(tmp_path / "p.jsonl", [{"prompt": "Tom"}, {"prompt": "Ana", "broken": 1}]), tmp_path / "o"
    mine(pair, prompts, output)
    assert "1 of 2 prompts refused" in capsys.readouterr().out
    monkeypatch.setattr("test_labelling_refused_rows.checker", _kind)
    mine(pair, prompts, output)
    assert "refused" not in capsys.readouterr().out
    assert {row.prompt for row in read_jsonl(output)} == {"Tom", "Ana"}


def _kind(response, task):
    return len(response) % 2


_kind.__qualname__ = "checker"


class TestFeatures:
    ROWS = ({"prompt": CHATS[0], "response": "Tom"}, {"prompt": CHATS[1], "response": "Tom"},
            {"prompt": "Q ", "response": ""}, {"prompt": "Q ", "response": "Tom", "mistakes": [[0, 3]]})  # fmt: skip

    def run(self, pair, data, output, *more, code=0):
        assert main(["features", *pair[:2], "--data", *data, "--output", str(output), *more]) == code

    def test_rows_are_listed_with_their_files(self, pair, tmp_path, capsys):
        data = [write(tmp_path / "a.jsonl", self.ROWS[:2]), write(tmp_path / "b.jsonl", self.ROWS[2:])]
        self.run(pair, data, tmp_path / "features")
        said = capsys.readouterr().out
        assert "2 of 4 rows: " in said
        assert f"  {data[0]}, line 2: {REASON}\n" in said
        assert f"  {data[1]}, line 1: empty response\n" in said
        self.run(pair, data, tmp_path / "strict", "--strict", code=2)
        assert f"hf-judge: error: {data[0]}, line 2: {REASON}\n" in capsys.readouterr().err
        assert not (tmp_path / "strict").exists()

    def test_many_are_counted(self, pair, tmp_path, capsys):
        data = [write(tmp_path / "a.jsonl", [self.ROWS[0], *[self.ROWS[2]] * 30])]
        self.run(pair, data, tmp_path / "features")
        said = capsys.readouterr().out
        assert "skipped 30 rows: empty response (first: row 2)" in said
        assert said.count(": empty response\n") == 20
        assert "  and 10 more" in said


class TestEvaluate:
    def run(self, pair, task, *more, code=0):
        options = ("--checker", "numeric", "--rules", "top-k=2", "--max-new-tokens", "4", "--no-plots")
        assert main(["evaluate", *pair, "--task", task, *options, *more]) == code

    def test_problems_and_texts_are_left_out(self, pair, tmp_path, capsys):
        task = write(tmp_path / "t.jsonl", [{"prompt": chat, "answer": 5} for chat in CHATS])
        texts = [{"prompt": CHATS[1], "response": "Tom"}, {"prompt": CHATS[0], "response": "Tom"}]
        texts = write(tmp_path / "x.jsonl", [*texts, {"prompt": "Tom", "response": ""}])
        self.run(pair, task, "--texts", texts, "--json", str(tmp_path / "found.json"))
        err = capsys.readouterr().err
        assert f"hf-judge: warning: 1 problems left out:\n  {task}, line 2: {REASON}\n" in err
        assert f"hf-judge: warning: 2 texts left out:\n  {texts}, line 1: {REASON}\n" in err
        assert f"  {texts}, line 3: the response is empty\n" in err
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["rules"][0]["n"] == 2
        assert len(found["texts"]) == 1
        assert sum("left out" in warning for warning in found["warnings"]) == 2
        self.run(pair, task, "--strict", code=2)
        assert f"{task}, line 2: {REASON}" in capsys.readouterr().err
        none = write(tmp_path / "n.jsonl", [{"prompt": CHATS[1], "answer": 5}])
        self.run(pair, none, code=2)
        assert f"all 1 prompts were refused; {none}, line 1: {REASON}" in capsys.readouterr().err


class TestCalibrate:
    def run(self, pair, tmp_path, prompts, *more):
        random_head(width=32, hidden_state="post_norm").save_pretrained(tmp_path / "head")
        options = ("--margin", "1.0", "--thresholds", "0.9", "--max-new-tokens", "4")
        return main(["calibrate", "--head", str(tmp_path / "head"), *pair, "--prompts", prompts, *options, *more])

    def test_prompts_are_listed(self, pair, tmp_path, capsys):
        prompts = write(tmp_path / "p.jsonl", [{"prompt": chat, "answer": "x"} for chat in CHATS])
        pattern = ("--checker", "regex", "--pattern", "(.)")
        self.run(pair, tmp_path, prompts, *pattern)  # whether this random head is chosen is not what is tested
        said = capsys.readouterr().err
        assert f"1 of 3 prompts refused:\n  {prompts}, line 2: {REASON}\n" in said
        assert self.run(pair, tmp_path, prompts, *pattern, "--strict") == 2
        assert f"hf-judge: error: {prompts}, line 2: {REASON}\n" in capsys.readouterr().err

    def test_what_the_checker_needs_is_asked_for_before_the_work(self, pair, tmp_path, capsys):
        prompts = write(tmp_path / "p.jsonl", [{"prompt": "Tom", "answer": 5}, {"prompt": "Ana"}])
        assert self.run(pair, tmp_path, prompts) == 2
        assert f"{prompts}, line 2: expected a JSON object with 'prompt' and 'answer'" in capsys.readouterr().err


class TestGenerate:
    def test_an_empty_prompt(self, pair, capsys):
        command = ["generate", "--model", pair[1], "--max-new-tokens", "4", "--device-map", "cpu", "--prompt"]
        assert main([*command, ""]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == "hf-judge: error: the prompt comes to no tokens: a model needs at least one to go on from"

    def test_standard_input_is_read_as_files_are(self, pair, capsys, monkeypatch):
        command = ["generate", "--model", pair[1], "--max-new-tokens", "4", "--device-map", "cpu", "--prompt", "-"]
        shown = []
        for raw in (b"Tom has", b"\xef\xbb\xbfTom has"):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
            assert main(command) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
        assert main(command) == 2
        assert "standard input: expected UTF-8 text, got the byte 0xe9" in capsys.readouterr().err


def test_the_rows_settings_reach_mined_and_evaluated_prompts(pair, tmp_path, capsys):
    """Mining, features and evaluation encode one prompt: the ids that the target is asked with are the same."""
    chat = [{"role": "user", "content": "Tom has 3 apples"}]
    row = {"prompt": chat, "chat_template": "{{ messages[0]['content'] }} {{ system }}!", "answer": 1}
    prompts = write(tmp_path / "p.jsonl", [row])
    mine(pair, prompts, tmp_path / "out.jsonl")
    (kept, *_) = read_jsonl(tmp_path / "out.jsonl")
    assert kept.chat_template_kwargs == {"chat_template": row["chat_template"]}
    right = TOKENIZER("Tom has 3 apples !", add_special_tokens=False).input_ids
    assert encode_prompt(TOKENIZER, kept.asked)[1] == right
    assert Pair(TARGET, DRAFT, TOKENIZER).encode(prompt_of(row)).tolist() == [right]
