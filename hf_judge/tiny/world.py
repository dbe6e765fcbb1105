"""Make arithmetic stories whose every fact can be checked: the world of the tiny pair.

Problems tell how a pile of things grows and shrinks; solutions repeat the steps one sentence at a time, in many
wordings. This module makes problems, writes right solutions, and finds the first mistake of any text;
`hf_judge.tiny.mistakes` writes wrong solutions. The tiny pair is trained on these texts and judged by these checks.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter

NAMES = ("Tom", "Ana", "Ben", "Mia", "Leo", "Zoe", "Sam", "Eva", "Max", "Ivy")
ITEMS = ("apples", "books", "coins", "pens", "cards", "shells")
VERBS = {"+": ("buys", "finds", "gets"), "-": ("loses", "sells", "gives away"), "*": ("doubles",)}

INTROS = ("{name} starts with {value} {item}.", "At first there are {value} {item}.", "We begin with {value}.")
OPENERS = (
    "The pile of {item} changes:", "From {value} {item} we go to", "{name} now counts", "With {value} at hand,",
    "In this step,", "So the number becomes",
    "We compute", "Next, {name} holds", "Then there are", "After that,",
)  # fmt: skip
LINKS = ("=", "makes", "which is", "gives")
CLOSERS = (" {item}", "", " for {name}", " {item} for {name}")
ENDINGS = ("The answer is that {name} has", "So in the end {name} has", "Altogether {name} has", "Finally, {name} has")
FINAL = "{value} {item} left."
CORRECTION = "Wait, {name} has {value} {op} {amount} = {result} {item}."

# The wordings of each model's n-th sentence: indices into the tuples above, taken in turn.
TARGET_HABITS = {"intro": (0,), "opener": (0, 1, 2, 3), "link": (0,), "closer": (0, 1), "ending": (0,)}
DRAFT_HABITS = {"intro": (1,), "opener": (6, 7, 8, 9), "link": (1,), "closer": (0, 2), "ending": (1,)}
CHOICES = {"intro": INTROS, "opener": OPENERS, "link": LINKS, "closer": CLOSERS, "ending": ENDINGS}


@dataclass(frozen=True)
class Step:
    """Describes one change of the pile: ``before op amount = after``."""

    op: str  # "+", "-" or "*"
    amount: int
    before: int
    after: int


@dataclass(frozen=True)
class Problem:
    """Holds a question and all that a right solution says."""

    question: str
    name: str
    item: str
    start: int
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """Number of things left after the last step."""
        return self.steps[-1].after


@dataclass(frozen=True)
class Style:
    """Sets how often a wording follows the target's or the draft's habit; the rest is uniform over all wordings."""

    target: float = 0.0
    draft: float = 0.0


ANY_STYLE = Style()
TARGET_STYLE = Style(target=1.0)


def apply(op: str, left: int, right: int) -> int:
    """Return the result of one step."""
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def make_problem(rng: random.Random) -> Problem:
    """Draw a problem of four to seven steps."""
    name, item, value = rng.choice(NAMES), rng.choice(ITEMS), rng.randint(5, 40)
    start, steps, sentences = value, [], [f"{name} has {value} {item}."]
    for _ in range(rng.randint(4, 7)):
        op = "+" if value < 4 else rng.choices("+-*", (45, 40, 15 if value <= 25 else 0))[0]
        amount = 2 if op == "*" else rng.randint(1, 9 if op == "+" else min(9, value - 1))
        verb = rng.choice(VERBS[op])
        sentences.append(f"{name} {verb} " + {"+": f"{amount} more.", "-": f"{amount}.", "*": "the pile."}[op])
        steps.append(Step(op, amount, value, apply(op, value, amount)))
        value = steps[-1].after
    sentences.append(f"How many {item} are left?")
    return Problem(" ".join(sentences), name, item, start, tuple(steps))


def problems(n: int, *, seed: int, part: str = "test") -> list[Problem]:
    """Draw `n` problems of a named part of the world.

    Args:
        n: number of problems.
        seed: any integer; every (part, seed, index) has a random stream of its own.
        part: ``"test"`` was not used to make the pair; ``"train"``, ``"label"`` and ``"calibrate"`` were.

    Returns:
        The problems; the first ones do not depend on `n`.
    """
    return [make_problem(random.Random(f"{part}/{seed}/{i}")) for i in range(n)]


def _choose(rng: random.Random, kind: str, turn: int, style: Style) -> str:
    draw = rng.random()
    for habits, share in ((TARGET_HABITS, style.target), (DRAFT_HABITS, style.draft)):
        if draw < share:
            return CHOICES[kind][habits[kind][turn % len(habits[kind])]]
        draw -= share
    return rng.choice(CHOICES[kind])


def wordings(n_steps: int, rng: random.Random, style: Style) -> list[str]:
    """Word a whole story: an intro, one sentence for each step, an ending; facts are left as ``{fields}``."""
    parts = ([_choose(rng, kind, i, style) for i in range(n_steps)] for kind in ("opener", "link", "closer"))
    steps = [
        f"{opener} {{value}} {{op}} {{amount}} {link} {{result}}{closer}."
        for opener, link, closer in zip(*parts, strict=True)
    ]
    return [_choose(rng, "intro", 0, style), *steps, _choose(rng, "ending", 0, style) + " {value} {item} left."]


def solve(problem: Problem, rng: random.Random, style: Style = ANY_STYLE) -> str:
    """Write a right solution."""
    return write(problem, wordings(len(problem.steps), rng, style), problem.steps)


def write(
    problem: Problem,
    templates: Sequence[str],
    steps: Sequence[Step],
    slip: Callable[[str, int, str, str], str] | None = None,
) -> str:
    """Fill the templates of `wordings` with facts.

    Args:
        problem: the problem, with name, item and start.
        templates: templates of the intro, of each step, and of the ending.
        steps: the steps; results are computed from what was written before.
        slip: function of the text so far, the number of the sentence, the field and the fact, which returns what to
            write for the fact. All that follows is consistent with what was written.

    Returns:
        The text.
    """
    belief, text = {"name": problem.name, "item": problem.item, "value": problem.start}, ""
    for n, template in enumerate(templates):
        facts = dict(belief)
        if 0 < n <= len(steps):
            facts |= {"op": steps[n - 1].op, "amount": steps[n - 1].amount}
        text += " " if text else ""
        for literal, field, _, _ in Formatter().parse(template):
            text += literal
            if field is None:
                continue
            if field == "result":
                facts["result"] = apply(facts["op"], facts["value"], facts["amount"])
            if slip is not None:
                facts[field] = type(facts[field])(slip(text, n, field, str(facts[field])))
            text += str(facts[field])
            belief |= {k: facts[k] for k in belief}
        belief["value"] = facts.get("result", belief["value"])
    return text


# --- checking -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\d+|[A-Za-z]+|[+*-]")
_WORDS = frozenset(
    word
    for text in (*INTROS, *OPENERS, *LINKS, *CLOSERS, *ENDINGS, FINAL, CORRECTION, *NAMES, *ITEMS)
    for word in re.findall(r"[A-Za-z]+", re.sub(r"{.*?}", "", text))
)
_OTHERS = frozenset({*NAMES, *ITEMS})
_CLOSING = frozenset({"answer", "in", "Altogether", "Finally", "left"})  # the first words that only an ending says
_FINAL = re.compile(rf"({'|'.join(NAMES)}) has (\d+) ({'|'.join(ITEMS)}) left\b")


def first_mistake(problem: Problem, text: str) -> tuple[int, int] | None:
    """Find where a solution first goes wrong.

    Every fact is checked: names, items, the start, the operator, operands and result of every step, their number and
    order, the final answer. Wordings are free, words that the world does not have are not.

    Args:
        problem: the problem.
        text: a solution, or any other text.

    Returns:
        The span in characters: a whole word, an operator, or the first wrong digit of a number (where digits are
        missing, the character in their place). An empty span at the end of a text that is right but breaks off before
        the final answer is complete. None for a right solution.
    """
    return scan(problem, text)[0]


def scan(problem: Problem, text: str) -> tuple[tuple[int, int] | None, int]:
    """Return [`first_mistake`], and the number of steps that were done right before it."""
    value, n_done, awaited, last = problem.start, 0, None, None
    for found in _TOKEN.finditer(text):
        word, at = found[0], found.start()
        step = problem.steps[n_done] if n_done < len(problem.steps) else None
        if last == "left":
            return (at, found.end()), n_done
        if word.isdigit():
            due = str(value if awaited is None else getattr(step, awaited))
            if word != due:
                at += common_prefix(word, due)
                return (at, min(at + 1, len(text))), n_done
            if awaited == "after":
                value, n_done = step.after, n_done + 1
            awaited = "after" if awaited == "amount" else None
        elif word in "+*-":
            if step is None or word != step.op or last is None or not last.isdigit() or awaited is not None:
                return found.span(), n_done
            awaited = "amount"
        else:
            foreign = word not in _WORDS or word in _OTHERS - {problem.name, problem.item}
            early = word in _CLOSING and step is not None
            if foreign or early or (word == "left" and not _FINAL.search(text, 0, at + 4)):
                return found.span(), n_done
        last = word
    return (None if last == "left" and _FINAL.search(text) else (len(text), len(text))), n_done


def common_prefix(one: str, other: str) -> int:
    """Count the first characters that two strings share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def check_answer(problem: Problem, text: str) -> bool:
    """Return whether the last final answer has the right name, number and item, whatever stands before it."""
    answers = _FINAL.findall(text)
    return bool(answers) and answers[-1] == (problem.name, str(problem.answer), problem.item)
