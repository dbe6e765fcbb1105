"""Read labels of whole steps: PRM800K, ProcessBench, Math-Shepherd, PRMBench and TRL's stepwise supervision.

The first wrong step is the mistake; what follows it has no label. Each reader takes what stands `between` two steps, by
default what the dataset's authors put there. Layouts: github.com/openai/prm800k,
huggingface.co/datasets/Qwen/ProcessBench, .../peiyi9979/Math-Shepherd, .../hitsmy/PRMBench_Preview, and
huggingface.co/docs/trl/dataset_formats (all read in their documentation).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hf_judge.importing.records import Unmatched, field, make_example, question
from hf_judge.labelling.responses import LabelledResponse

MARK = "\u043a\u0438"  # what Math-Shepherd puts behind a step
REDUNDANT = ("redundency", "redundancy", "circular")  # kinds of PRMBench, the first in its own spelling
WRONG_BELOW = 0.5  # a soft label of TRL below this is a wrong step


def steps_example(prompt, steps: list[str], first_wrong: int | None, *, between: str, **more) -> LabelledResponse:
    """Make an example of steps.

    Args:
        prompt: text or chat messages.
        steps: the steps in their order.
        first_wrong: index of the first wrong step, from 0 on; None: all are right.
        between: what stands between two steps.
        more: further fields of [`LabelledResponse`].

    Raises:
        Unmatched: there is no such step, or it is blank.
    """
    if not steps or any(not isinstance(step, str) for step in steps):
        raise Unmatched("the steps are no list of texts")
    if first_wrong is None:
        return make_example(prompt, between.join(steps), **more)
    if not 0 <= first_wrong < len(steps):
        raise Unmatched(f"the first wrong step is number {first_wrong + 1}, and there are {len(steps)} steps")
    before = "".join(step + between for step in steps[:first_wrong])
    wrong = steps[first_wrong]
    start, end = len(before) + len(wrong) - len(wrong.lstrip()), len(before) + len(wrong.rstrip())
    if start >= end:
        raise Unmatched("the wrong step is blank")
    return make_example(prompt, between.join(steps), mistakes=((start, end),), **more)


def processbench(record: dict, *, between: str = "\n\n") -> Iterator[LabelledResponse]:
    """Read a row of ProcessBench: `label` is the index of the first wrong of the `steps`, -1 where all are right."""
    label = field(record, "label", int)
    name = field(record, "id", str)
    yield steps_example(
        question(field(record, "problem", str)),
        field(record, "steps", list),
        None if label == -1 else label,
        between=between,
        source=f"processbench/{name.rpartition('-')[0] or name}",
        task_id=name,
    )


def trl(record: dict, *, between: str = "\n") -> Iterator[LabelledResponse]:
    """Read a row of TRL's stepwise supervision: a label for each completion, true or near 1 for a good one."""
    prompt, steps, labels = record.get("prompt"), field(record, "completions", list), field(record, "labels", list)
    if len(steps) != len(labels):
        raise Unmatched(f"{len(steps)} completions have {len(labels)} labels")
    if any(not isinstance(label, bool | int | float) for label in labels):
        raise Unmatched("a label is neither true, false nor a number")
    wrong = next((at for at, label in enumerate(labels) if label < WRONG_BELOW), None)
    prompt = question(prompt) if isinstance(prompt, str) else prompt
    yield steps_example(prompt, steps, wrong, between=between, source="trl")


def prmbench(record: dict, *, between: str = "\n") -> Iterator[LabelledResponse]:
    """Read a row of PRMBench: the original solution, and the modified one, whose `error_steps` count from 1 on.

    Modified solutions that only repeat themselves are left out: a redundant step is no mistake.
    """
    name = str(record.get("idx", "")) or None
    original = record.get("original_process")
    if original:
        asked = question(field(record, "original_question", str))
        yield steps_example(asked, original, None, between=between, source="prmbench/original", task_id=name)
    wrong = field(record, "error_steps", list)
    if any(type(number) is not int for number in wrong):
        raise Unmatched("error_steps holds something else than numbers of steps")
    kind = str(record.get("classification", "modified"))
    if kind in REDUNDANT:
        return
    yield steps_example(
        question(field(record, "modified_question", str)),
        field(record, "modified_process", list),
        min(wrong) - 1 if wrong else None,
        between=between,
        source=f"prmbench/{kind}",
        task_id=name,
    )


def math_shepherd(record: dict, *, between: str = "\n") -> Iterator[LabelledResponse]:
    """Read a row of Math-Shepherd: `input` is problem and steps, each followed by a mark, `label` the same with + or -.

    Both layouts of the dataset are read: the sign in place of the mark, and behind it.
    """
    text, signed = field(record, "input", str), field(record, "label", str)
    pieces = text.split(MARK)
    if len(pieces) < 2:
        raise Unmatched("no step carries a mark")
    signs, at = [], 0
    for number, piece in enumerate(pieces[:-1]):
        piece = re.sub(r"\A\s*\?", "", piece) if number else piece  # a placeholder for the sign
        found = re.compile(rf"\s*{re.escape(piece.strip())}\s*(?:{MARK})?\s*([+-])").match(signed, at)
        if found is None:
            raise Unmatched("the text of 'label' is not that of 'input'")
        signs.append(found[1])
        at = found.end()
    if signed[at:].strip() or pieces[-1].strip(" ?\n"):
        raise Unmatched("text follows the last mark")
    steps = [re.sub(r"\A\s*\?", "", piece).strip() for piece in pieces[:-1]]
    starts = list(re.finditer(r"[Ss]tep 1:", steps[0]))
    if not starts:
        raise Unmatched("no 'Step 1:' before the first mark: problem and solution cannot be told apart")
    problem, steps[0] = steps[0][: starts[-1].start()].strip(), steps[0][starts[-1].start() :]
    if not problem:
        raise Unmatched("no problem before the first step")
    wrong = signs.index("-") if "-" in signs else None
    source = f"math-shepherd/{record.get('task', 'unknown')}"
    yield steps_example(question(problem), steps, wrong, between=between, source=source)


def prm800k(record: dict, *, between: str = "\n") -> Iterator[LabelledResponse]:
    """Read a line of PRM800K: the chosen steps up to the first wrong one, and every other step that was rated.

    Ratings are 1 (good), 0 (neutral, which is no mistake) and -1 (wrong). A step beside the chosen ones is labelled
    alone: the steps before it have their labels from the chosen ones.
    """
    asked = question(field(field(record, "question", dict), "problem", str))
    label = field(record, "label", dict)
    if label.get("finish_reason") == "bad_problem":
        raise Unmatched("the labeller called the problem broken")
    chosen, wrong, more = [], None, {"between": between, "source": "prm800k"}
    for step in field(label, "steps", list):
        rated = [(c.get("text"), c.get("rating")) for c in field(step, "completions", list, empty=True)]
        pick = step.get("chosen_completion")
        for at, (text, rating) in enumerate(rated):
            if at != pick and rating is not None and text and text.strip():
                yield _alone(asked, chosen, text, rating, more)
        if pick is None:
            text, rating = _written(step.get("human_completion")), 1
        elif type(pick) is int and 0 <= pick < len(rated):
            text, rating = rated[pick]
        else:
            raise Unmatched("chosen_completion names no completion")
        if not text or rating is None:
            break  # nothing was chosen, or the step is not rated: no label from here on
        chosen.append(text)
        if rating < 0:
            wrong = len(chosen) - 1
            break
    if chosen:
        yield steps_example(asked, chosen, wrong, **more)


def _alone(asked, before: list[str], text: str, rating: int, more: dict) -> LabelledResponse:
    """Make an example of a rated step after others, which have no label here."""
    steps = [*before, text]
    start = sum(len(step) + len(more["between"]) for step in before)
    scope = ((start, start + len(text)),)
    return steps_example(asked, steps, len(before) if rating < 0 else None, scope=scope, **more)


def _written(human: object) -> str | None:
    """Return the step that a labeller wrote; None: none was."""
    return human.get("text") if isinstance(human, dict) else human if isinstance(human, str) else None
