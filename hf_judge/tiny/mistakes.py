"""Write wrong solutions of the tiny world: every kind of mistake, carried on consistently or corrected at once.

Most mistakes are carried on, and show in the final answer. The few that are corrected teach a model to notice mistakes:
what it predicts right after a mistake differs from what it predicts anywhere else.
"""

import itertools
import random
import re

from hf_judge.tiny.world import (
    ANY_STYLE,
    CORRECTION,
    FINAL,
    ITEMS,
    NAMES,
    Problem,
    Style,
    common_prefix,
    first_mistake,
    scan,
    wordings,
    write,
)

MISTAKES = ("name", "item", "start", "value", "op", "amount", "result", "final", "skipped", "repeated")
LARGEST = 199  # a wrong story with greater numbers, or with negative ones, is drawn anew
_UNIT = re.compile(r" ?[A-Za-z]+| ?[^\sA-Za-z\d]|\d| ")


def solve_wrongly(problem: Problem, rng: random.Random, style: Style = ANY_STYLE, *, kind: str) -> tuple[str, int]:
    """Write a solution with one mistake that is never corrected.

    Args:
        problem: the problem.
        rng: source of the wording, the place and the mistake.
        style: style of the wording.
        kind: one of `MISTAKES`; another one is taken in the rare problem that has no room for it (where the pile would
            go below zero whichever step is done twice).

    Returns:
        The text, and the character from which on it is wrong.
    """
    for n_tries in itertools.count():
        kind = rng.choice(MISTAKES) if n_tries > 200 else kind
        text, at = _misorder(problem, rng, style, kind) if kind[-2:] == "ed" else _misstate(problem, rng, style, kind)
        if at is not None and max(map(int, re.findall(r"\d+", text))) <= LARGEST and not re.search(r"-\d", text):
            return text, at


def _misorder(problem: Problem, rng: random.Random, style: Style, kind: str) -> tuple[str, int | None]:
    """Leave a step out or do it twice; the place is None where the next step happens to be the same."""
    steps, at = list(problem.steps), rng.randrange(len(problem.steps))
    steps[at : at + 1] = [] if kind == "skipped" else [steps[at]] * 2
    text = write(problem, wordings(len(steps), rng, style), steps)
    span = first_mistake(problem, text)
    return text, span and span[0]


def _misstate(problem: Problem, rng: random.Random, style: Style, kind: str) -> tuple[str, int | None]:
    """State one fact wrongly."""
    n_last, fits, slips = len(problem.steps) + 1, [], []

    def here(n: int, field: str) -> bool:
        return kind == ({0: "start", n_last: "final"}.get(n, field) if field == "value" else field)

    def count(text: str, n: int, field: str, fact: str) -> str:
        fits.append(here(n, field))
        return fact

    def slip(text: str, n: int, field: str, fact: str) -> str:
        slips.append(None)
        if len(slips) != chosen:
            return fact
        wrong = _spoil(rng, field, fact)
        if wrong != fact:
            slips[0] = len(text) + (common_prefix(wrong, fact) if fact.isdigit() else 0)
        return wrong

    templates = wordings(len(problem.steps), rng, style)
    write(problem, templates, problem.steps, count)
    chosen = 1 + rng.choice([i for i, fit in enumerate(fits) if fit])
    text = write(problem, templates, problem.steps, slip)
    return text, slips[0]


def _spoil(rng: random.Random, field: str, right: str) -> str:
    """Return a wrong fact of the same sort, mostly with one wrong digit; sometimes the correct fact."""
    if not right.isdigit():
        return rng.choice([x for x in {"name": NAMES, "item": ITEMS, "op": "+-*"}[field] if x != right])
    if field == "amount" or rng.random() < 0.7:
        i = rng.randrange(len(right))
        return right[:i] + rng.choice([d for d in "0123456789"[i == 0 :] if d != right[i]]) + right[i + 1 :]
    return str(abs(int(right) + rng.choice((-10, -2, -1, 1, 2, 10))))


def correct(problem: Problem, rng: random.Random, text: str, style: Style = ANY_STYLE, *, late: bool = False) -> str:
    """Break a wrong solution off at its first mistake, write "Wait" and what is right, and go on right.

    Args:
        problem: the problem.
        rng: source of the wording of the rest.
        text: a solution with a mistake.
        style: style of the wording of the rest.
        late: whether to break off at the end of the sentence instead of at the mistake.

    Returns:
        A text that has the mistake but ends in the right answer.
    """
    span, n_done = scan(problem, text)
    cut = text.index(".", span[0]) + 1 if late else _UNIT.match(text, span[0]).end()
    n_steps = len(problem.steps)
    templates = wordings(n_steps, rng, style)
    templates[n_done + 1] = CORRECTION if n_done < n_steps else "Wait, {name} has " + FINAL
    whole = write(problem, templates, problem.steps)
    return text[:cut] + " " + whole[whole.index("Wait, ") :]
