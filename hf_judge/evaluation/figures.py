"""Turns answers into figures: accuracies with intervals, paired tests, speed-ups, and the best settings."""

from __future__ import annotations

import statistics
from collections import Counter

from hf_judge.checking.statistics import changes, mcnemar_p, ratio_interval, wilson_interval
from hf_judge.evaluation.evaluate import Answer, Answers
from hf_judge.verify.stats import VerdictCode


def figures(answers: Answers) -> list[dict]:
    """Return what every setting reached, as JSON values; docs/benchmarks.md explains each key.

    Args:
        answers: every setting with the same examples, "plain" first.
    """
    plain = next(iter(answers.values()))
    rows = []
    for setting, given in answers.items():
        mine, theirs = [given[name] for name in plain], list(plain.values())
        named = {"rule": setting.rule, "number": setting.number, "threshold": setting.value, "n": len(mine)}
        rows.append(named | _accuracy(mine, theirs) | _work(mine, theirs) | _time(mine, theirs) | _verdicts(mine))
    return rows


def _accuracy(mine: list[Answer], plain: list[Answer]) -> dict:
    """Compare the answers of a setting with the plain answers to the same examples."""
    n, n_right = len(mine), sum(a.right for a in mine)
    gained, lost = changes((answer.right for answer in plain), (answer.right for answer in mine))
    differences = [_first_difference(a.tokens, b.tokens) for a, b in zip(mine, plain, strict=True)]
    differences = [at for at in differences if at is not None]
    return {
        "accuracy": n_right / n,
        "accuracy_interval": list(wilson_interval(n_right, n)),
        "gained": gained,
        "lost": lost,
        "mcnemar_p": mcnemar_p(gained, lost),
        "identical_to_plain": 1 - len(differences) / n,
        "first_divergence": statistics.median(differences) if differences else None,
    }


def _work(mine: list[Answer], plain: list[Answer]) -> dict:
    """Count tokens and forwards of the target, which do not depend on the machine."""
    n, n_tokens, n_forwards = len(mine), sum(len(a.tokens) for a in mine), sum(a.forwards for a in mine)
    if mine[0].codes is None:
        # every forward of the target adds one token of its own to the drafted ones that it accepts
        n_accepted = n_tokens - n_forwards
    else:
        n_accepted = sum(code in (VerdictCode.MATCHED, VerdictCode.RESCUED) for a in mine for code in a.codes)
    return {
        "answer_tokens": n_tokens / n,
        "forwards_per_answer": n_forwards / n,
        "forwards_ratio": sum(a.forwards for a in plain) / n_forwards,
        "tokens_per_forward": n_tokens / n_forwards,
        "accepted_per_forward": n_accepted / n_forwards,
    }


def _time(mine: list[Answer], plain: list[Answer]) -> dict:
    """Compare wall times, per answer and per token."""
    seconds, plain_seconds = [a.seconds for a in mine], [a.seconds for a in plain]
    rate = sum(len(a.tokens) for a in mine) / sum(seconds)
    plain_rate = sum(len(a.tokens) for a in plain) / sum(plain_seconds)
    return {
        "seconds_per_answer": sum(seconds) / len(mine),
        "tokens_per_second": rate,
        "tokens_per_second_ratio": rate / plain_rate,
        "speedup": sum(plain_seconds) / sum(seconds),
        "speedup_interval": list(ratio_interval(plain_seconds, seconds)),
    }


def _verdicts(mine: list[Answer]) -> dict:
    """Count what became of the drafted tokens; the baselines have no such counts."""
    n, lengths = len(mine), Counter(length for a in mine for length in a.accepted_lengths)
    found = dict.fromkeys(("drafted_per_answer", "rescued_per_answer", "corrected_per_answer", "seconds_by_phase"))
    if mine[0].codes is not None:
        codes = Counter(code for a in mine for code in a.codes)
        phases = (sum(seconds) / n for seconds in zip(*(a.seconds_by_phase for a in mine), strict=True))
        found = {
            "drafted_per_answer": sum(a.drafted for a in mine) / n,
            "rescued_per_answer": codes[VerdictCode.RESCUED] / n,
            "corrected_per_answer": codes[VerdictCode.CORRECTED] / n,
            "seconds_by_phase": dict(zip(("drafting", "verifying", "judging", "rest"), phases, strict=True)),
        }
    return found | {"accepted_lengths": dict(sorted(lengths.items()))}


def _first_difference(one: list[int], other: list[int]) -> int | None:
    """Return the first position where two answers differ; None: they are equal."""
    differ = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, None if len(one) == len(other) else min(len(one), len(other)))


def warnings_of(answers: Answers) -> list[str]:
    """Return warnings about a comparison that proves less than it seems to.

    Args:
        answers: every setting with the same examples, "plain" first.
    """
    plain = list(next(iter(answers.values())).values())
    n_right, n = sum(a.right for a in plain), len(plain)
    texts = []
    if n_right == 0:
        texts.append("no plain answer passes the checker: the accuracies compare nothing. Is the checker right?")
    low, high = wilson_interval(n_right, n)
    if n_right and high - low > 0.1:
        texts.append(f"{n} examples: the 95% interval of an accuracy is {100 * (high - low):.0f} points wide")
    return texts


def label(row: dict, *, short: bool = False) -> str:
    """Name a setting, as report.html does: ``judge threshold 0.7``; short: ``judge 0.7``.

    Args:
        row: figures of the setting.
        short: leave out the name of the rule's number.
    """
    if row["threshold"] is None:
        return row["rule"]
    return f"{row['rule']} {'' if short else row['number'] + ' '}{row['threshold']:.4g}"


def pareto(rows: list[dict]) -> list[dict]:
    """Return the settings that no other beats in both accuracy and speed-up, fastest last."""
    best = []
    for row in sorted(rows, key=lambda r: (-r["speedup"], -r["accuracy"])):
        if not best or row["accuracy"] > best[-1]["accuracy"]:
            best.append(row)
    return best[::-1]


def best_within(rows: list[dict], points: float) -> dict[str, dict]:
    """Return for each rule the fastest setting that loses at most some accuracy against plain decoding.

    Args:
        rows: figures of every setting, "plain" first.
        points: allowed loss, in percentage points.
    """
    floor = rows[0]["accuracy"] - points / 100 - 1e-9
    best = {}
    for row in rows:
        if row["accuracy"] >= floor and (row["rule"] not in best or row["speedup"] > best[row["rule"]]["speedup"]):
            best[row["rule"]] = row
    return best
