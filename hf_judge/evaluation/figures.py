"""From answers to figures: accuracies with intervals, paired tests, speed-ups, and which settings are best.

Knows nothing about models, files or the terminal.
"""

from __future__ import annotations

import statistics
from collections import Counter

from hf_judge.evaluation.answers import Answer, Answers
from hf_judge.evaluation.significance import mcnemar_p, ratio_interval, wilson_interval
from hf_judge.rules.by_name import Setting
from hf_judge.verify.stats import VerdictCode


def figures(answers: Answers) -> list[dict]:
    """What every setting reached, as JSON values; see docs/benchmarks.md for each key.

    Args:
        answers: every setting with the same examples, "plain" first.
    """
    plain = next(iter(answers.values()))
    return [_figures(setting, given, plain) for setting, given in answers.items()]


def warnings_of(answers: Answers) -> list[str]:
    """What makes the comparison say less than it seems to."""
    plain = list(next(iter(answers.values())).values())
    n_right, n = sum(a.right for a in plain), len(plain)
    texts = []
    if n_right == 0:
        texts.append("no plain answer passes the checker: the accuracies compare nothing. Is the checker right?")
    low, high = wilson_interval(n_right, n)
    if n_right and high - low > 0.1:
        texts.append(f"{n} examples: the 95% interval of an accuracy is {100 * (high - low):.0f} points wide")
    return texts


def _figures(setting: Setting, given: dict[str, Answer], plain: dict[str, Answer]) -> dict:
    names = list(plain)
    mine, theirs = [given[name] for name in names], [plain[name] for name in names]
    n, n_right = len(mine), sum(a.right for a in mine)
    n_tokens, n_forwards = sum(len(a.tokens) for a in mine), sum(a.forwards for a in mine)
    seconds, plain_seconds = [a.seconds for a in mine], [a.seconds for a in theirs]
    gained = sum(a.right and not b.right for a, b in zip(mine, theirs, strict=True))
    lost = sum(b.right and not a.right for a, b in zip(mine, theirs, strict=True))
    plain_rate = sum(len(a.tokens) for a in theirs) / sum(plain_seconds)
    diverged = [_first_difference(a.tokens, b.tokens) for a, b in zip(mine, theirs, strict=True)]
    diverged = [at for at in diverged if at is not None]
    codes = Counter(code for a in mine for code in a.codes or ())
    has_codes = mine[0].codes is not None
    return {
        "rule": setting.rule,
        "number": setting.number,
        "threshold": setting.value,
        "n": n,
        "accuracy": n_right / n,
        "accuracy_interval": list(wilson_interval(n_right, n)),
        "gained": gained,
        "lost": lost,
        "mcnemar_p": mcnemar_p(gained, lost),
        "answer_tokens": n_tokens / n,
        "forwards_per_answer": n_forwards / n,
        "forwards_ratio": sum(a.forwards for a in theirs) / n_forwards,
        "tokens_per_forward": n_tokens / n_forwards,
        # every forward of the target adds one token of its own to the drafted ones that it accepts
        "accepted_per_forward": (codes[VerdictCode.MATCHED] + codes[VerdictCode.RESCUED]) / n_forwards
        if has_codes
        else (n_tokens - n_forwards) / n_forwards,
        "drafted_per_answer": sum(a.drafted for a in mine) / n if has_codes else None,
        "rescued_per_answer": codes[VerdictCode.RESCUED] / n if has_codes else None,
        "corrected_per_answer": codes[VerdictCode.CORRECTED] / n if has_codes else None,
        "seconds_per_answer": sum(seconds) / n,
        "tokens_per_second": n_tokens / sum(seconds),
        "speedup": sum(plain_seconds) / sum(seconds),
        "speedup_interval": list(ratio_interval(plain_seconds, seconds)),
        "tokens_per_second_ratio": n_tokens / sum(seconds) / plain_rate,
        "identical_to_plain": 1 - len(diverged) / n,
        "first_divergence": statistics.median(diverged) if diverged else None,
        "accepted_lengths": dict(sorted(Counter(x for a in mine for x in a.accepted_lengths).items())),
        "seconds_by_phase": dict(
            zip(
                ("drafting", "verifying", "judging", "rest"),
                (sum(x) / n for x in zip(*(a.seconds_by_phase for a in mine), strict=True)),
                strict=True,
            )
        )
        if has_codes
        else None,
    }


def _first_difference(one: list[int], other: list[int]) -> int | None:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return None if len(one) == len(other) else min(len(one), len(other))


def pareto(rows: list[dict]) -> list[dict]:
    """The settings that no other beats in both accuracy and speed-up, fastest last."""
    best = []
    for row in sorted(rows, key=lambda r: (-r["speedup"], -r["accuracy"])):
        if not best or row["accuracy"] > best[-1]["accuracy"]:
            best.append(row)
    return best[::-1]


def best_within(rows: list[dict], points: float) -> dict[str, dict]:
    """For each rule its fastest setting that loses at most `points` percentage points against plain."""
    floor = rows[0]["accuracy"] - points / 100 - 1e-9
    best = {}
    for row in rows:
        if row["accuracy"] >= floor and (row["rule"] not in best or row["speedup"] > best[row["rule"]]["speedup"]):
            best[row["rule"]] = row
    return best
