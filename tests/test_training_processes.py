"""`accelerate launch`: several processes make the rows, features and head of one, and go on with each other's work."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from test_cli_train import TASKS, TOKENIZER
from test_labelling_mining import DRAFT, TARGET
from test_training_features import MODEL, all_features, rows
from tiny_models import save_models

from hf_judge import JudgeHead
from hf_judge.cli.commands import main
from hf_judge.training.extraction import INDEX_NAME, FeatureStore, extract_features

SECONDS = 240
SHARD = {"shard_bytes": 32 * 4 * 20, "batch_size": 2}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    save_models(path, TOKENIZER, target=TARGET, draft=DRAFT)
    (path / "prompts.jsonl").write_text("".join(json.dumps(task | {"answer": "x"}) + "\n" for task in TASKS))
    return path


def mine(directory, output):
    pair = ["--target", directory / "target", "--draft", directory / "draft", "--prompts", directory / "prompts.jsonl"]
    options = ["--checker", "test_labelling_mining:checker", "--max-new-tokens", 14, "--label-matched", "--force"]
    assert main([str(argument) for argument in ("mine", *pair, *options, "--output", output)]) == 0


def fit(features, output):
    train = ["train", "--features", features, "--validation-fraction", 0.3, "--l2-grid", 0.1, "--seed", 1]
    assert main([str(argument) for argument in (*train, "--output-dir", output)]) == 0


def forget(output, keep):
    """Cut the journals of a finished job down to `keep` tasks each, as a kill would have left them."""
    output.unlink()
    for path in Path(f"{output}.journal").iterdir():
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: 1 + keep]))


def lose(features, numbers):
    """Take some shards away from finished features."""
    index = json.loads((features / INDEX_NAME).read_text())
    for number in numbers:
        (features / index["shards"][number]["file"]).unlink()
    (features / INDEX_NAME).write_text(json.dumps(index | {"complete": False, "shards": []}))


def keys(output):
    journals = sorted(Path(f"{output}.journal").iterdir())
    return [{json.loads(line)["key"] for line in path.read_bytes().splitlines()[1:]} for path in journals]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_training_processes import MODEL, SHARD, TOKENIZER, extract_features, fit, mine, rows

directory = Path({directory!r})
for name in ("shared.jsonl", "alone.jsonl"):  # from the start; what one process left
    mine(directory, directory / name)
for name in ("shared", "alone"):
    extract_features(MODEL, TOKENIZER, rows(30), directory / name, **SHARD)
fit(directory / "shared", directory / "shared_head")
"""


@pytest.fixture(scope="module")
def launched(directory):
    """Everything made by one process, and by two: from the start (`shared`) and going on with work of one (`alone`)."""
    mine(directory, directory / "alone.jsonl")
    by_one = (directory / "alone.jsonl").read_bytes()
    store, _ = extract_features(MODEL, TOKENIZER, rows(30), directory / "alone", **SHARD)
    features = all_features(store)
    fit(directory / "alone", directory / "alone_head")
    forget(directory / "alone.jsonl", keep=4)
    lose(directory / "alone", [0, 3])
    script = directory / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent), directory=str(directory))))
    options = {"--num_processes": "2", "--num_machines": "1", "--mixed_precision": "no", "--dynamo_backend": "no"}
    with socket.socket() as free:  # accelerate 1.1 waits for ever where told to find a port itself
        free.bind(("127.0.0.1", 0))
        options |= {"--main_process_port": str(free.getsockname()[1])}
    # without --multi_gpu, accelerate (1.15) starts a single process on a machine without GPUs
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *sum(options.items(), ()), script]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=SECONDS, cwd=directory
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return by_one, features, done.stdout


def test_rows_are_those_of_one_process(directory, launched):
    assert (directory / "shared.jsonl").read_bytes() == launched[0]
    first, second = keys(directory / "shared.jsonl")
    assert (len(first), len(second)) == (5, 4)
    assert not first & second


def test_rows_of_one_process_are_finished_by_two(directory, launched):
    assert (directory / "alone.jsonl").read_bytes() == launched[0]
    first, second = keys(directory / "alone.jsonl")
    assert len(first) + len(second) == len(TASKS)  # nothing was done twice
    assert len(first) > 4  # those that were left, and a share of the others
    assert second


def test_rows_of_two_processes_are_finished_by_one(directory, launched):
    forget(directory / "shared.jsonl", keep=2)
    mine(directory, directory / "shared.jsonl")
    assert (directory / "shared.jsonl").read_bytes() == launched[0]


def test_features_are_those_of_one_process(directory, launched):
    for name in ("shared", "alone"):
        assert torch.equal(all_features(FeatureStore(directory / name)), launched[1])
    files = [shard["file"] for shard in FeatureStore(directory / "shared").index["shards"]]
    assert len(files) > 4
    assert files == sorted(path.name for path in (directory / "shared").glob("*.safetensors"))


def test_features_of_two_processes_are_finished_by_one(directory, launched):
    lose(directory / "shared", [1, 2])
    forwards = []
    handle = MODEL.register_forward_pre_hook(lambda *_: forwards.append(1))
    store, _ = extract_features(MODEL, TOKENIZER, rows(30), directory / "shared", **SHARD)
    handle.remove()
    assert torch.equal(all_features(store), launched[1])
    assert 0 < len(forwards) < 15


def test_shards_of_other_data_are_made_again(directory, tmp_path):
    """A shard without a fitting index says itself whose it is."""
    extract_features(MODEL, TOKENIZER, rows(12), tmp_path, **SHARD)
    (tmp_path / INDEX_NAME).unlink()
    store, _ = extract_features(MODEL, TOKENIZER, rows(30), tmp_path, **SHARD)
    fresh, _ = extract_features(MODEL, TOKENIZER, rows(30), tmp_path / "fresh", **SHARD)
    assert torch.equal(all_features(store), all_features(fresh))


def test_the_head_is_that_of_one_process(directory, launched):
    heads = [JudgeHead.from_pretrained(directory / name) for name in ("shared_head", "alone_head")]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight.abs().sum() > 0


def test_the_first_process_reports(launched):
    assert launched[2].count("swaps kept") == 2  # two jobs
    assert launched[2].count("threshold  mistakes caught") == 1
