"""Labels that exist become labelled responses: small made files in the layouts that the datasets document."""

from __future__ import annotations

import json

import hub_fixtures as fx
import numpy
import pytest
import torch

from hf_judge.cli.commands import main
from hf_judge.importing.formats import FORMATS
from hf_judge.importing.run import Sample, import_labels
from hf_judge.labelling.responses import load_rows, marked
from hf_judge.labelling.tokens import label_rows


def write(path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def imported(tmp_path, name: str, records: list[dict], **options):
    """The report and the examples of records of a format."""
    report = import_labels(name, [write(tmp_path / "in.jsonl", records)], tmp_path / "out.jsonl", **options)
    return report, load_rows(tmp_path / "out.jsonl")


PROCESSBENCH = [
    {"id": "gsm8k-0", "generator": "m", "problem": "2+2+1?", "steps": ["2+2=4.", "4+1=6."], "label": 1},
    {"id": "gsm8k-1", "generator": "m", "problem": "1+1?", "steps": ["1+1=2.", "Done."], "label": -1},
    {"id": "omnimath-7", "generator": "m", "problem": "x?", "steps": ["a", "b"], "label": 2},
]


def test_processbench(tmp_path):
    report, rows = imported(tmp_path, "processbench", PROCESSBENCH)
    assert [marked(row) for row in rows] == ["2+2=4.\n\n[[4+1=6.]]", "1+1=2.\n\nDone."]
    assert rows[0].prompt == [{"role": "user", "content": "2+2+1?"}]
    assert (rows[0].source, rows[0].task_id) == ("processbench/gsm8k", "gsm8k-0")
    why = "the first wrong step is number 3, and there are 2 steps"
    assert report.skipped == {why: 1}
    assert report.skipped_records == [(f"{tmp_path}/in.jsonl, line 3", why)]
    assert "Apache-2.0" in str(report)
    assert f"1 x {why}" in str(report)


def test_trl(tmp_path):
    records = [
        {"prompt": "9.8 or 9.11?", "completions": ["0.8.", "0.11.", "0.11 > 0.8."], "labels": [True, True, False]},
        {"prompt": "soft", "completions": ["a", "b"], "labels": [0.9, 0.2]},
        {"prompt": [{"role": "user", "content": "chat"}], "completions": ["a"], "labels": [1]},
        {"prompt": "short", "completions": ["a", "b"], "labels": [True]},
    ]
    report, rows = imported(tmp_path, "trl", records)
    assert [marked(row) for row in rows] == ["0.8.\n0.11.\n[[0.11 > 0.8.]]", "a\n[[b]]", "a"]
    assert report.skipped == {"2 completions have 1 labels": 1}


SHEPHERD = "How many?{gap}Step 1: 5+8 = 13.{one}\nStep 2: 13*2 = 25.{two}\nStep 3: 25 #### 25{three}"


@pytest.mark.parametrize(
    ("mark", "signs"),
    [(" ки", (" +", " -", " -")), (" ки ?", (" ки +", " ки -", " ки -"))],
    ids=["sign in place of the mark", "sign behind it"],
)
def test_math_shepherd_in_both_layouts(tmp_path, mark, signs):
    text = SHEPHERD.format(gap=" ", one=mark, two=mark, three=mark)
    label = SHEPHERD.format(gap=" ", **dict(zip(("one", "two", "three"), signs, strict=True)))
    records = [
        {"input": text, "label": label, "task": "GSM8K"},
        {"input": text, "label": label.replace("13*2", "13*3"), "task": "GSM8K"},
        {"input": text.replace("Step 1:", "First:"), "label": label.replace("Step 1:", "First:"), "task": "GSM8K"},
        {"input": text, "label": label + " more", "task": "GSM8K"},
    ]
    report, rows = imported(tmp_path, "math-shepherd", records)
    assert [marked(row) for row in rows] == ["Step 1: 5+8 = 13.\n[[Step 2: 13*2 = 25.]]\nStep 3: 25 #### 25"]
    assert rows[0].prompt == [{"role": "user", "content": "How many?"}]
    assert rows[0].source == "math-shepherd/GSM8K"
    assert sorted(report.skipped.values()) == [1, 1, 1], report.skipped


def test_prmbench(tmp_path):
    record = {
        "original_question": "How much?",
        "modified_question": "How much?",
        "original_process": ["1. p + e.", "2. p = 29."],
        "modified_process": ["1. p + e.", "2. Assume p = 30.", "3. So 30."],
        "modified_steps": [2, 3],
        "error_steps": [2, 3],
        "reason": "r",
        "idx": "circular_1",
        "classification": "confidence",
    }
    report, rows = imported(
        tmp_path, "prmbench", [record, record | {"classification": "redundency"}, record | {"error_steps": [9]}]
    )
    assert [marked(row) for row in rows] == ["1. p + e.\n2. p = 29.", "1. p + e.\n[[2. Assume p = 30.]]\n3. So 30."]
    assert [row.source for row in rows] == ["prmbench/original", "prmbench/confidence"]
    assert report.n_doubles == 1, "the original solution stands there once for each way to modify it"
    assert len(report.skipped) == 1


def completion(text: str, rating: int | None) -> dict:
    return {"text": text, "rating": rating, "flagged": None}


def step(*completions: dict, chosen: int | None = 0, human=None) -> dict:
    return {"completions": list(completions), "human_completion": human, "chosen_completion": chosen}


def prm800k(*steps: dict, reason: str = "solution") -> dict:
    return {
        "labeler": "x",
        "question": {"problem": "GCF?", "ground_truth_answer": "4"},
        "label": {"steps": list(steps), "total_time": 1, "finish_reason": reason},
    }


WRONG = step(completion("3", -1))


def test_prm800k(tmp_path):
    records = [
        prm800k(
            step(completion("one", 0)), step(completion("two", 1), completion("too", -1)), step(completion("3", -1))
        ),
        prm800k(step(completion("bad", -1), chosen=None, human={"text": "mine"}), step(completion("end", 1))),
        prm800k(step(completion("first", 1)), step(completion("no", -1), chosen=None), reason="found_error"),
        prm800k(step(completion("unrated", None)), step(completion("later", 1))),
        prm800k(step(completion("q", 1)), reason="bad_problem"),
        prm800k(step(completion("q", 1), chosen=3)),
    ]
    report, rows = imported(tmp_path, "prm800k", records)
    assert [marked(row) for row in rows] == [
        "one\n[[too]]",
        "one\ntwo\n[[3]]",
        "[[bad]]",
        "mine\nend",
        "first\n[[no]]",
        "first",
    ]
    assert rows[0].scope == ((4, 7),), "the steps before have their labels from the chosen ones"
    assert rows[1].scope is None
    assert report.skipped == {"the labeller called the problem broken": 1, "chosen_completion names no completion": 1}


def test_ragtruth(tmp_path):
    response = "It joined the ICC in East Jerusalem and Gaza Strip."
    start = response.index("Gaza Strip")
    span = {"start": start, "end": start + 10, "text": "Gaza Strip", "label_type": "Evident Baseless Info"}
    good = {"id": "1", "source_id": "11", "model": "m", "labels": [span], "quality": "good", "response": response}
    records = [
        good,
        good | {"id": "2", "labels": [span | {"start": start + 1, "end": start + 11}]},
        good | {"id": "3", "labels": [span | {"implicit_true": True}]},
        good | {"id": "4", "quality": "truncated"},
        good | {"id": "5", "source_id": "12"},
    ]
    files = [write(tmp_path / "response.jsonl", records)]
    files += [write(tmp_path / "source_info.jsonl", [{"source_id": "11", "task_type": "Summary", "prompt": "Sum up."}])]
    report = import_labels("ragtruth", files, tmp_path / "out.jsonl")
    rows = load_rows(tmp_path / "out.jsonl")
    assert [marked(row) for row in rows] == [response.replace("Gaza Strip", "[[Gaza Strip]]"), response]
    assert rows[0].prompt == [{"role": "user", "content": "Sum up."}]
    assert rows[0].source == "ragtruth/Summary"
    assert report.skipped["the text of a span is not what stands there"] == 1, "matched, never shifted"
    assert len(report.skipped) == 3
    with pytest.raises(ValueError, match=r"pass the responses and source_info.jsonl"):
        import_labels("ragtruth", files[:1], tmp_path / "out.jsonl")


def test_tokenhd(tmp_path):
    tokenizer = fx.tiny_tokenizer()
    text = "w5 w6 w7 w8"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    record = {
        "problem": "?",
        "raw_answer": text,
        "correctness": -1,
        "token_ids": ids,
        "token_weights": [0, 0.9, 0.7, 0.1],
    }
    older = record | {"token_ids": [9, *ids], "token_weights": [0, 0.1, 0.1, 0.1, 0.8], "start_id": 1}
    foreign = record | {"token_ids": [i + 1 for i in ids]}
    short = record | {"token_weights": [0.1]}
    report, rows = imported(tmp_path, "tokenhd", [record, older, foreign, short], tokenizer=tokenizer)
    assert [marked(row) for row in rows] == ["w5 [[w6]] [[w7]] w8", "w5 w6 w7 [[w8]]"]
    assert len(report.skipped) == 2
    with pytest.raises(ValueError, match=r"pass --tokenizer \(Qwen/Qwen3"):
        imported(tmp_path, "tokenhd", [record])


def test_autojudge(tmp_path):
    tokenizer = fx.tiny_tokenizer()
    opening = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w20 w21"}], add_generation_prompt=True
    ).input_ids
    ids = [*opening, 30, 31, 32, 33, tokenizer.eos_token_id]
    n = len(opening)
    entry = {
        "changed_token_indices": [(n + 1, False, 40, 31), (n + 2, True, 32, 41)],
        "current_response": torch.tensor([ids]),
        "hiddens": [torch.zeros(4), numpy.zeros(4, dtype=numpy.float16)],
        "target_answer": [numpy.float64(4.0)],
        "id": 3,
    }
    older = entry | {"changed_token_indices": [(n + 1, False, 31, 40)]}  # where the kept token was not put in
    torch.save([entry, older, {"skip": True}], tmp_path / "in.pt")
    report = import_labels("autojudge", [str(tmp_path / "in.pt")], tmp_path / "out.jsonl", tokenizer=tokenizer)
    rows = load_rows(tmp_path / "out.jsonl")
    assert [marked(row) for row in rows] == ["w30 w31 w32 w33", "w30 w31 [[w41]]"]
    assert rows[0].response_ids == (30, 31, 32, 33)
    assert rows[0].scope is None
    assert rows[1].scope == rows[1].mistakes
    encoded, labelled = label_rows(rows, tokenizer)
    assert encoded[0].input_ids[: encoded[0].n_prompt] == opening, "the prompt's tokens are those of the file"
    assert (labelled.n_acceptable, labelled.n_mistaken) == (4, 1)
    assert report.skipped["the response does not hold the token that the swap left there"] == 1


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_a_file_that_could_run_code_is_not_read(tmp_path):
    torch.save([{"current_response": Hostile()}], tmp_path / "in.pt")
    with pytest.raises(ValueError, match="can run code and are not read"):
        import_labels("autojudge", [str(tmp_path / "in.pt")], tmp_path / "o.jsonl", tokenizer=fx.tiny_tokenizer())


def many(n_wrong: int, n_right: int, name: str) -> list[dict]:
    good = {"steps": ["a", "b"], "generator": "m"}
    wrong = [good | {"id": f"{name}-{i}", "problem": f"{name} {i}", "label": 1} for i in range(n_wrong)]
    return wrong + [good | {"id": f"{name}-r{i}", "problem": f"{name} r{i}", "label": -1} for i in range(n_right)]


def test_balanced_samples_are_even_and_do_not_depend_on_the_order(tmp_path):
    records = many(30, 5, "gsm8k") + many(4, 40, "math") + many(3, 0, "omnimath")
    report, rows = imported(tmp_path, "processbench", records, sample=Sample(balanced=True))
    counts = {source: (count["rows"], count["with_mistakes"]) for source, count in report.sources.items()}
    assert counts == {"all": (18, 9), "processbench/gsm8k": (10, 5), "processbench/math": (8, 4)}
    report, few = imported(tmp_path, "processbench", records, sample=Sample(5, balanced=True))
    assert (report.sources["all"]["rows"], report.sources["all"]["with_mistakes"]) == (4, 2)
    assert {row.task_id for row in few} <= {row.task_id for row in rows}
    _, again = imported(tmp_path, "processbench", records[::-1], sample=Sample(5, balanced=True))
    assert {row.task_id for row in again} == {row.task_id for row in few}
    _, others = imported(tmp_path, "processbench", records, sample=Sample(5, balanced=True, seed=1))
    assert {row.task_id for row in others} != {row.task_id for row in few}
    with pytest.raises(ValueError, match="leave --balanced out"):
        imported(tmp_path, "processbench", many(3, 0, "gsm8k"), sample=Sample(balanced=True))


def test_lists_and_saved_datasets_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    _, rows = imported(tmp_path, "processbench", PROCESSBENCH)
    (tmp_path / "in.json").write_text(json.dumps(PROCESSBENCH))
    datasets.Dataset.from_list(PROCESSBENCH).save_to_disk(tmp_path / "saved")
    datasets.Dataset.from_list(PROCESSBENCH).to_parquet(tmp_path / "in.parquet")
    for name in ("in.json", "saved", "in.parquet"):
        import_labels("processbench", [str(tmp_path / name)], tmp_path / "out.jsonl")
        assert load_rows(tmp_path / "out.jsonl") == rows, name


def test_the_command(tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", PROCESSBENCH)
    command = ["import", "processbench", file, "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--max-rows", "1", "--json", str(tmp_path / "counts.json")]) == 0
    out = capsys.readouterr().out
    assert "3 records gave 2 examples (0 doubles left out); 1 written" in out
    assert "1 records could not be lined up" in out
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (counts["records"], counts["written"]["all"]["rows"], counts["licence"]) == (3, 1, "Apache-2.0")
    assert counts["not_lined_up_records"][0][0].endswith("in.jsonl, line 3")
    assert main(["info", str(tmp_path / "out.jsonl")]) == 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("processbench", "", "nothing to import"),
        ("trl", json.dumps(PROCESSBENCH[0]), "no field 'completions'; there are: generator, id, label"),
        ("processbench", "[1]\n", "expected an object, one record of the dataset, got a list"),
        ("processbench", "a,b\n", "is no JSON"),
        ("prm800k", None, "no file at"),
        ("tokenhd", "{}", "pass --tokenizer"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, name, content, said):
    if content is not None:
        (tmp_path / "in.jsonl").write_text(content)
    output = tmp_path / "out.jsonl"
    output.write_text("earlier labels")
    assert main(["import", name, str(tmp_path / "in.jsonl"), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert output.read_text() == "earlier labels"


def test_every_format_is_told_in_the_documents():
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs" / "import-labels.md").read_text(encoding="utf-8")
    for name, made_by in FORMATS.items():
        assert f"| `{name}` |" in text
        assert made_by.url in text
        assert made_by.licence in text
