"""Speed of judged generation on the embedded pair at 24 layers, beside plain and upstream's best assisted setting.

    python benchmarks/speed.py --json out/speed.json

All ways answer the same problems in one process, interleaved; the figures are medians over the repeats. Upstream is
searched
for its best: draft lengths x schedules x with and without its confidence threshold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from hf_judge import JudgeCandidateVerifier, JudgeHead, JudgeStats
from hf_judge.demo import MAX_NEW_TOKENS, prompt_ids
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import problems

LENGTHS = (5, 10, 16, 32)
SCHEDULES = ("heuristic", "heuristic_transient", "constant")
CONFIDENCES = (0.4, 0.0)  # upstream's default, and off


class Way:
    """One setting of generate(), with the seconds and tokens of every repeat."""

    def __init__(self, name, pair, *, upstream=None, judged_length=None):
        self.name, self.pair, self.upstream = name, pair, upstream
        self.verifier = self.kwargs = None
        self.rates = []
        if upstream is not None:
            self.kwargs = {"assistant_model": pair.draft, "judge": False}
        elif judged_length is not None:
            self.verifier = JudgeCandidateVerifier(JudgeHead.from_pretrained(pair.judge))
            self.kwargs = {
                "assistant_model": pair.draft,
                "judge": self.verifier,
                "num_assistant_tokens": judged_length,
                "num_assistant_tokens_schedule": "constant",
                "assistant_confidence_threshold": 0.0,
            }
        else:
            self.kwargs = {"judge": False}

    def repeat(self, work: list[torch.Tensor]) -> None:
        if self.upstream is not None:
            config = self.pair.draft.generation_config
            config.num_assistant_tokens, config.num_assistant_tokens_schedule, threshold = self.upstream
            config.assistant_confidence_threshold = threshold
        start, n_new = time.perf_counter(), 0
        for ids in work:
            output = self.pair.target.generate(ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **self.kwargs)
            n_new += output.shape[1] - ids.shape[1]
        self.rates.append(n_new / (time.perf_counter() - start))

    def figures(self, plain: Way) -> dict:
        ratios = [rate / base for rate, base in zip(self.rates, plain.rates, strict=True)]
        figures = {
            "tokens_per_second": statistics.median(self.rates),
            "tokens_per_second_min_max": [min(self.rates), max(self.rates)],
            "ratio_to_plain": statistics.median(ratios),
            "ratio_min_max": [min(ratios), max(ratios)],
        }
        if self.verifier is not None:
            stats = self.verifier.stats
            figures["accepted_per_forward"] = stats.accepted_per_forward
            figures["share_of_time"] = {
                phase: getattr(stats, f"seconds_{phase}") / stats.seconds
                for phase in ("drafting", "verifying", "judging", "rest")
            }
        return figures


def best_upstream(pair, work) -> tuple:
    settings = list(itertools.product(LENGTHS, SCHEDULES, CONFIDENCES))
    ways = [Way(str(s), pair, upstream=s) for s in settings]
    for way in tqdm(ways, desc="Searching upstream's best setting", unit="setting"):
        way.repeat(work)
        way.repeat(work)
    return max(ways, key=lambda way: max(way.rates)).upstream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--problems", type=int, default=6, help="problems per repeat")
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()

    pair = load_pair()
    work = [prompt_ids(pair, problem) for problem in problems(args.problems, seed=args.seed)]
    best = best_upstream(pair, work[:2])
    ways = [
        Way("plain", pair),
        Way("assisted", pair, upstream=best),
        *(Way(f"judged, M={m}", pair, judged_length=m) for m in (16, 32)),
    ]
    for way in ways:
        way.repeat(work[:1])  # warm up
        way.rates.clear()
        if way.verifier is not None:
            way.verifier.stats = JudgeStats()
    for i in tqdm(range(args.repeats), desc="Measuring", unit="repeat"):
        for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
            way.repeat(work)

    figures = {way.name: way.figures(ways[0]) for way in ways}
    figures["assisted"]["setting"] = dict(zip(("num_assistant_tokens", "schedule", "confidence"), best, strict=True))
    judged = max(figures[name]["tokens_per_second"] for name in figures if name.startswith("judged"))
    figures["judged_over_plain"] = judged / figures["plain"]["tokens_per_second"]
    figures["judged_over_assisted"] = judged / figures["assisted"]["tokens_per_second"]
    figures["setup"] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "repeats": args.repeats,
        "problems_per_repeat": args.problems,
        "target": "24 layers: the 4 trained ones and 20 that add zero and cost what a layer costs",
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
