"""Compares the three methods of ``hf-judge demo``: plain, upstream's assisted generation, judged.

Assisted generation gets the same draft length as the judge, and its own defaults otherwise: it shortens drafts that
are not confident.
"""

from __future__ import annotations

from hf_judge.evaluation.answers import Answers
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
    keys = {name: name for name in ("accuracy", "tokens_per_forward", "tokens_per_second")}
    keys |= {"ratio_to_plain": "tokens_per_second_ratio", "accepted_per_forward": "accepted_per_forward"}
    found = {}
    for name, row in zip(METHODS, figures(answers), strict=True):
        found[name] = {key: row[source] for key, source in keys.items()}
    del found["plain"]["accepted_per_forward"]
    return found
