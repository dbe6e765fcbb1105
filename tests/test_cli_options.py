"""The words of the command line: one name for one thing, everything described, and no torch before it is needed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import subprocess
import sys

import pytest

import hf_judge
from hf_judge.cli.commands import build_parser, main
from hf_judge.cli.parsers import heads, labels
from hf_judge.head.config import HIDDEN_STATES
from hf_judge.head.distributions import DRAFT_FEATURES, EXTRA_FEATURES
from hf_judge.importing.formats import FORMATS
from hf_judge.labelling.tokens import AFTER_MISTAKE, ON_CUT_TOKEN
from hf_judge.making.settings import MakeSettings
from hf_judge.tiny.pair import HOME
from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.calibration import UNITS
from hf_judge.training.extraction import STATES_OF


def commands():
    found = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


COMMANDS = commands()
OPTIONS = [
    (name, action)
    for name, parser in COMMANDS.items()
    for action in parser._actions
    if not isinstance(action, argparse._HelpAction)
]


@pytest.mark.parametrize(("command", "action"), OPTIONS, ids=[f"{name} {a.dest}" for name, a in OPTIONS])
def test_every_option_is_described_with_its_default(command, action):
    assert action.help, "no description"
    if action.nargs == 0 or not action.option_strings or action.required:
        return
    text = COMMANDS[command]._get_formatter()._expand_help(action)
    needs_none = command == "mine" and action.dest in ("target", "locate")
    needs_none |= command == "calibrate" and action.dest in ("target", "draft", "task")
    needs_none |= command == "features" and action.dest == "draft"
    assert "default: " in text or needs_none, f"no default: {text}"


def test_one_thing_has_one_name():
    old = {"--model", "--assistant", "--head", "--prompts"}
    shown = {string for _, action in OPTIONS for string in action.option_strings}
    assert not shown & old
    folders = {name for name, action in OPTIONS if "--output-dir" in action.option_strings}
    files = {name for name, action in OPTIONS if "--output" in action.option_strings}
    assert (files, folders) == ({"mine", "import"}, {"make", "features", "train", "push"})


@pytest.mark.parametrize(
    ("old", "new", "dest"),
    [
        ("generate --model T --prompt x", "--target", "target"),
        ("generate --target T --prompt x --assistant D", "--draft", "draft"),
        ("calibrate --head H", "--judge", "judge"),
        ("mine --draft D --output x --prompts P", "--task", "task"),
        ("mine --draft D --task P --output-dir x", "--output", "output"),
        ("features --target T --data x --output F", "--output-dir", "output_dir"),
        ("train --features F --output O", "--output-dir", "output_dir"),
    ],
)
def test_old_names_work_and_tell_the_new_one(old, new, dest, capsys):
    args = build_parser().parse_args(old.split())
    assert getattr(args, dest) is not None
    assert f"is now called {new}: the old name will be removed" in capsys.readouterr().err


def test_new_names_warn_of_nothing(capsys):
    build_parser().parse_args(["mine", "--target", "T", "--draft", "D", "--task", "P", "--output", "x"])
    assert capsys.readouterr().err == ""


def test_choices_and_defaults_are_those_of_the_library():
    assert set(labels.FORMATS) == set(FORMATS)
    assert (labels.HIDDEN_STATES, labels.STATES_OF) == (HIDDEN_STATES, STATES_OF)
    assert (labels.EXTRA_FEATURES, labels.DRAFT_FEATURES) == (EXTRA_FEATURES, DRAFT_FEATURES)
    assert (labels.AFTER_MISTAKE, labels.ON_CUT_TOKEN, heads.UNITS) == (AFTER_MISTAKE, ON_CUT_TOKEN, UNITS)
    settings = MakeSettings()
    assert {name: getattr(settings, name) for name in heads.MAKE} == heads.MAKE
    fields = {field.name: field.default for field in dataclasses.fields(JudgeTrainingArguments)}
    assert fields.pop("output_dir") is dataclasses.MISSING
    assert fields == {name: default for name, (_, default, _) in heads.TRAINING.items()}


def started(*arguments):
    """Run the command hf-judge, which ends in an assertion that it imported no torch."""
    script = (
        f"import sys\nsys.argv = ['/somewhere/hf-judge', *{list(arguments)!r}]\n"
        "from hf_judge.cli import main\ntry:\n    code = main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["mine"], 2),
        (["nothing"], 2),
        (["bench", "--task", "world", "--json", "."], 2),
        *(([name, "--help"], 0) for name in ("make", "evaluate", "calibrate")),
    ],
)
def test_help_and_wrong_usage_import_no_torch(arguments, code):
    done = started(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_within_the_command_has_all_its_names():
    script = (
        "import sys\nsys.argv = ['hf-judge']\nimport hf_judge\nassert 'torch' not in sys.modules\n"
        "from hf_judge import *\nassert judged and JudgeHead and 'torch' in sys.modules\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
        "assert 'JUDGE' in {getattr(key, 'value', key) for key in known}\n"
        "assert not hasattr(hf_judge, 'nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_the_package_elsewhere_registers_at_once():
    assert set(hf_judge.__all__) <= set(dir(hf_judge))
    assert pickle.loads(pickle.dumps(hf_judge.JudgeStats)) is hf_judge.JudgeStats


# --- refusals before any model is loaded ----------------------------------------------------------------------------


@pytest.fixture
def no_models(monkeypatch):
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)


PAIR = ["--target", str(HOME / "target"), "--draft", str(HOME / "draft")]


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"1 + {n} = ?", "answer": 1 + n}) + "\n" for n in range(3)))
    return str(path)


@pytest.mark.parametrize(
    "command",
    ["mine", "evaluate", "bench", "make", "features", "demo --problems 1", "doctor", "train --features x"],
)
def test_outputs_that_cannot_be_written(command, tmp_path, task, no_models, capsys):
    (tmp_path / "file").write_text("mine")
    name, *options = command.split()
    options += [] if name in ("demo", "train") else PAIR
    options += ["--task", task] if name in ("mine", "evaluate", "bench", "make") else []
    if name == "features":
        options = [*PAIR[:2], "--data", task]
    flag = {"mine": "--output", "make": "--output-dir", "features": "--output-dir", "train": "--output-dir"}
    where = str(tmp_path / "file" / "below")
    assert main([name, *options, flag.get(name, "--json"), where]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_assisted_takes_no_batch(task, no_models, capsys):
    command = ["evaluate", *PAIR, "--task", task, "--checker", "numeric", "--rules", "assisted", "--batch-size", "4"]
    assert main(command) == 2
    assert "one prompt at a time; got --batch-size 4" in capsys.readouterr().err


def test_figures_do_not_go_into_the_report(task, tmp_path, no_models, capsys):
    report = str(tmp_path / "report")
    assert main(["evaluate", "--task", task, "--report", report, "--json", f"{report}/report.json"]) == 2
    assert "is a file that --report writes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["mine", "evaluate", "bench", "make"])
def test_fewer_problems_than_asked_for(command, task, tmp_path, no_models, capsys):
    output = {"mine": ["--output", str(tmp_path / "o")], "make": ["--output-dir", str(tmp_path / "o")]}
    arguments = [command, *PAIR, "--task", task, "--checker", "numeric", "--problems", "1000"]
    assert main([*arguments, *output.get(command, [])]) == 2
    said = capsys.readouterr().err
    assert f"--problems 1000: '{task}' has 3, and all of them are taken" in said
    assert "a model was loaded" in said
