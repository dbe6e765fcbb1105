"""Measures seconds and peak memory of fitting a head on 30,000 tokens x 4096 features (a benchmark, not a test).

    python benchmarks/fit.py
    python benchmarks/fit.py --tokens 300000 --width 8192 --device auto --optimizers lbfgs    # on a GPU if there is one

The features are made up: correlated directions whose scales span four orders of magnitude, as hidden states have, 5%
mistaken tokens, a signal that leaves the AUC near 0.95. The fit runs in a process of its own, so that its memory is its
own: interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from recording import Recording
from safetensors.torch import save_file

from hf_judge.training.fit import JudgeTrainingArguments, train_judge
from hf_judge.training.store import FORMAT_VERSION, INDEX_NAME, FeatureStore

TOKENS_PER_ROW = 60


def make_features(directory: Path, n_tokens: int, width: int, n_shards: int = 4, device: str = "cpu") -> None:
    """Write a store of made-up features, drawn on a device."""
    torch.set_default_device(device)
    generator = torch.Generator(device).manual_seed(0)
    scale = torch.logspace(-2, 2, width)
    mixing = torch.randn(64, width, generator=generator) / 8  # 64 shared directions beside noise of each feature's own
    signal = torch.randn(width, generator=generator) / width**0.5
    directory.mkdir(parents=True)
    shards, n_rows = [], 0
    for i in range(n_shards):
        n = n_tokens // n_shards
        labels = (torch.rand(n, generator=generator) >= 0.05).to(torch.int8)
        features = torch.randn(n, width, generator=generator) + torch.randn(n, 64, generator=generator) @ mixing
        features += 3.5 * (labels[:, None] - 0.5) * signal
        row = n_rows + torch.arange(n) // TOKENS_PER_ROW
        n_rows = int(row[-1]) + 1
        tensors = {"features": features * scale, "labels": labels, "row": row, "position": torch.zeros(n).long()}
        tensors["matched"] = torch.zeros(n, dtype=torch.bool)
        name = f"features-{i:05d}.safetensors"
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, directory / name)
        shards.append({"file": name, "n_responses": 1, "n_tokens": n})
    torch.set_default_device("cpu")
    index = {
        "format_version": FORMAT_VERSION,
        "model": "made-up",
        "draft_model": None,
        "hidden_state": "post_norm",
        "hidden_size": width,
        "extra_features": None,
        "data_hash": "made-up",
        "options": {},
        "rows": [{"source": "made-up", "prompt": f"{i:016x}", "task_id": None} for i in range(n_rows)],
        "shards": shards,
        "complete": True,
    }
    (directory / INDEX_NAME).write_text(json.dumps(index))


def fit(directory: str, optimizer: str, max_memory_gb: float, device: str) -> None:
    """Fit, and print the figures as JSON."""
    started = time.perf_counter()
    arguments = JudgeTrainingArguments(
        f"{directory}/head-{optimizer}",
        calibration_fraction=0.0,
        optimizer=optimizer,
        max_memory_gb=max_memory_gb,
        device=device,
    )
    trained = train_judge(FeatureStore(f"{directory}/features"), arguments)
    figures = {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "peak_gpu_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None,
        "decided_auc": round(trained.metrics["decided"]["auc"], 4),
        "l2": trained.metrics["l2"],
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu")
    parser.add_argument("--optimizers", choices=("lbfgs", "adamw"), nargs="+", default=["lbfgs", "adamw"])
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--fit", nargs=4, metavar=("DIR", "OPTIMIZER", "GB", "DEVICE"), help="only fit: what this script calls"
    )
    args = parser.parse_args()
    if args.fit:
        directory, optimizer, memory, device = args.fit
        fit(directory, optimizer, float(memory), device)
        return
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    held = max(2, 6e-9 * args.tokens * args.width)  # GB: all features in float32 and half as much again
    names = {"lbfgs": ("lbfgs", held), "adamw": ("adamw, streamed", 0)}
    recording = Recording(args.json)
    recording.put(tokens=args.tokens, width=args.width, threads=torch.get_num_threads(), fit_device=device)
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        make_features(Path(directory) / "features", args.tokens, args.width, device=device)
        recording.put(seconds_making_features=round(time.perf_counter() - started, 1))
        for optimizer in args.optimizers:
            name, memory = names[optimizer]
            command = [sys.executable, __file__, "--fit", directory, optimizer, str(memory), device]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            print(f"{name}: {found}")
            recording.put(**{name: found})
    recording.finish()


if __name__ == "__main__":
    main()
