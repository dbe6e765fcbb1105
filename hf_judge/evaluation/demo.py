"""Compares the three methods of ``hf-judge demo``: plain, upstream's assisted generation, judged.

Assisted generation gets the same draft length as the judge, and its own defaults otherwise: it shortens drafts that
are not confident.
"""

from __future__ import annotations

from hf_judge.evaluation.evaluate import Answers
from hf_judge.evaluation.figures import figures
from hf_judge.rules.by_name import Setting

METHODS = {"plain": Setting("plain"), "assisted": Setting("assisted"), "judged": Setting("judge")}


def demo_figures(answers: Answers) -> dict[str, dict[str, float]]:
    """Return the figures of `--json`: each method's by its name.

    Args:
        answers: the answers under each setting of `METHODS`.

    Returns:
        accuracy, tokens_per_forward, tokens_per_second, ratio_to_plain (in tokens per second) and, unless plain,
        accepted_per_forward.
    """
    found = {}
    for name, row in zip(METHODS, figures(answers), strict=True):
        found[name] = {key: row[key] for key in ("accuracy", "tokens_per_forward", "tokens_per_second")}
        found[name]["ratio_to_plain"] = row["tokens_per_second_ratio"]
        if name != "plain":  # every forward of the target adds one token of its own to those that it accepts
            found[name]["accepted_per_forward"] = row["tokens_per_forward"] - 1
    return found
