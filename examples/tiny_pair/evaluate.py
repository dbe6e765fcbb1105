"""Measure a tiny pair on problems that were not used to make it: answers, and tokens per forward of the target.

    python examples/tiny_pair/evaluate.py --problems 2000 --json tiny_pair.json

Every problem is answered plainly and judged, so the accuracies are paired; strict verification gives the plain answers
by construction, so it is measured on fewer problems.
"""

import argparse
import json
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from fit_judge import generate, generated_answers, token_labels
from tqdm import tqdm

from hf_judge import JudgeHead, JudgeStats, StrictVerifier, VerdictCode
from hf_judge.tiny import HOME, load_pair
from hf_judge.tiny.world import check_answer, first_mistake, problems
from hf_judge.verify.judge import JudgeCandidateVerifier

Z = 1.96  # two-sided 95%


def answer_chunk(
    span: range,
    *,
    directory: str,
    depth: int,
    seed: int,
    part: str,
    threshold: float,
    n_strict: int,
    max_new_tokens: int,
) -> dict:
    """Answer the problems of a span plainly, by the draft, strictly (the first `n_strict`) and judged."""
    torch.set_num_threads(1)
    pair = load_pair(depth, directory=directory)
    todo = problems(span.stop, seed=seed, part=part)[span.start :]
    texts = {}
    for name, model in (("plain", pair.target), ("draft", pair.draft)):
        rows = generated_answers(model, pair.tokenizer, todo, max_new_tokens=max_new_tokens)
        texts[name] = [pair.tokenizer.decode(ids) for _, ids in rows]
    verifiers = {
        "judged": (JudgeCandidateVerifier(JudgeHead.from_pretrained(pair.judge), threshold), todo),
        "strict": (StrictVerifier(), todo[:n_strict]),
    }
    stats, guilty = {}, Counter()
    for name, (verifier, asked) in verifiers.items():
        answers = [
            generate(pair, problem, judge=verifier, max_new_tokens=max_new_tokens)
            for problem in tqdm(asked, desc=name, unit="problem")
        ]
        stats[name] = sum((answer.stats for answer in answers), JudgeStats())
        texts[name] = [pair.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
        if name == "judged":
            labels = [token_labels(pair.tokenizer, p, answer.ids) for p, answer in zip(asked, answers, strict=True)]
            guilty.update(VerdictCode(a.codes[x.index(0)]).name for a, x in zip(answers, labels, strict=True) if 0 in x)
    right = {name: [check_answer(p, t) for p, t in zip(todo, ts, strict=False)] for name, ts in texts.items()}
    sound = {name: [first_mistake(p, t) is None for p, t in zip(todo, ts, strict=False)] for name, ts in texts.items()}
    n_tokens = {name: [len(pair.tokenizer(t).input_ids) + 1 for t in ts] for name, ts in texts.items()}
    return {"right": right, "sound": sound, "n_tokens": n_tokens, "stats": stats, "guilty": guilty}


def evaluate(
    n_problems: int,
    *,
    directory: str = str(HOME),
    depth: int = 4,
    seed: int = 0,
    part: str = "test",
    threshold: float | None = None,
    n_strict: int = 200,
    n_workers: int = 2,
    max_new_tokens: int = 256,
) -> dict:
    """Return all figures of the pair in `directory` as a JSON object; accuracies and shares are fractions."""
    if threshold is None:
        threshold = JudgeHead.from_pretrained(Path(directory) / "judge").config.threshold
    chunk = partial(
        answer_chunk,
        directory=directory, depth=depth, seed=seed, part=part, threshold=threshold,
        n_strict=n_strict // n_workers, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    bounds = [n_problems * i // n_workers for i in range(n_workers + 1)]
    spans = [range(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    # Spawned, not forked: a fork of a process that has run torch on several threads can hang.
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        chunks = list(pool.map(chunk, spans))

    def join(key: str, name: str) -> list:
        return [value for c in chunks for value in c[key][name]]

    ways = ("plain", "draft", "judged")
    stats = {name: sum(c["stats"][name] for c in chunks) for name in ("strict", "judged")}
    accuracy = {name: mean(join("right", name)) for name in ways}
    differences = [j - p for j, p in zip(join("right", "judged"), join("right", "plain"), strict=True)]
    spread = mean([(d - mean(differences)) ** 2 for d in differences])
    half_width = Z * math.sqrt(spread / len(differences))
    return {
        "problems": n_problems,
        "seed": seed,
        "part": part,
        "target_layers": depth,
        "threshold": threshold,
        "accuracy": accuracy,
        "judged_minus_plain": mean(differences),
        "judged_minus_plain_95": [mean(differences) - half_width, mean(differences) + half_width],
        "only_plain_right": differences.count(-1),
        "only_judged_right": differences.count(1),
        "without_any_mistake": {name: mean(join("sound", name)) for name in ways},
        "first_mistakes_of_judged_answers": sum((c["guilty"] for c in chunks), Counter()),
        "mean_tokens": {name: mean(join("n_tokens", name)) for name in ways},
        "accepted_per_forward": {name: stat.accepted_per_forward for name, stat in stats.items()},
        "tokens_per_forward": {name: stat.tokens_per_forward for name, stat in stats.items()},
        "accepted_ratio": stats["judged"].accepted_per_forward / stats["strict"].accepted_per_forward,
        "rescued_fraction": stats["judged"].rescued_fraction,
        "strict_problems": len(join("right", "strict")),
        "strict_accuracy": mean(join("right", "strict")),
    }


def mean(values: list) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--strict-problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, help="default: the head's own")
    parser.add_argument("--layers", type=int, default=4, help="of the target; the function is the same at every depth")
    parser.add_argument("--directory", default=str(HOME), help="of the pair; default: the embedded one")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    figures = evaluate(
        args.problems,
        directory=args.directory,
        depth=args.layers,
        seed=args.seed,
        threshold=args.threshold,
        n_strict=args.strict_problems,
        n_workers=args.workers,
    )
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
