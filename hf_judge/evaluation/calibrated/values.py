"""Choose each rule's number on calibration problems: the most lenient value that loses at most some accuracy."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, replace

from transformers.utils.logging import tqdm

from hf_judge.checking.statistics import changes
from hf_judge.evaluation.compare import Work
from hf_judge.evaluation.evaluate import Answer, Decoding, Method, Pair, head_prints, journal_key, journal_record
from hf_judge.files.durable import Journal
from hf_judge.rules.by_name import Setting, lenient_first
from hf_judge.tasks.problems import Example, Task


@dataclass(frozen=True)
class Choice:
    """Says which value a rule got, and how it was found; JSON values but for the setting."""

    setting: Setting
    within: bool  # whether the value keeps the allowed loss; False: none does, and this is the strictest
    tried: list[dict]  # from lenient to strict: value, problems answered, lost, gained, forwards per answer


def choose(
    pair: Pair,
    work: Work,
    settings: list[Setting],
    decoding: Decoding,
    points: float,
    n_calibration: int,
    *,
    journal_dir: str | os.PathLike | None = None,
) -> tuple[Work, list[Setting], dict]:
    """Divide the work: the last problems choose each rule's value, the others are left to measure it.

    Args:
        pair, settings, decoding, points, journal_dir: see [`choose_values`].
        work: the problems; its last `n_calibration` calibrate.
        n_calibration: number of problems to choose with.

    Returns:
        The work to measure, the chosen settings ("plain" first), and the choices as JSON values.

    Raises:
        ValueError: too few problems for both.
    """
    n = len(work.task.examples) - n_calibration
    if n_calibration < 1 or n < 1:
        raise ValueError(
            f"{len(work.task.examples)} problems cannot be divided into {n_calibration} to calibrate with and at least "
            "1 to measure with: change --problems or --calibration-problems"
        )
    calibration = replace(work.task, examples=work.task.examples[n:])
    choices = choose_values(pair, calibration, settings, decoding, points, journal_dir=journal_dir)
    warnings = work.warnings + too_few(n_calibration, points)
    measured = replace(work, task=replace(work.task, examples=work.task.examples[:n]), warnings=warnings)
    rows = [
        {"rule": c.setting.rule, "value": c.setting.value, "within": c.within, "tried": c.tried}
        for c in choices
        if c.tried
    ]
    return measured, [c.setting for c in choices], {"n": n_calibration, "points": points, "rules": rows}


def too_few(n: int, points: float) -> list[str]:
    """Warn about calibration problems that are too few for the allowed loss."""
    if not 100 / n > points > 0:
        return []
    return [
        f"{n} calibration problems cannot show a loss of {points:g} points: one lost answer is {100 / n:.1f} points"
    ]


def choose_values(
    pair: Pair,
    task: Task,
    settings: list[Setting],
    decoding: Decoding,
    points: float,
    *,
    journal_dir: str | os.PathLike | None = None,
) -> list[Choice]:
    """Choose a value for every rule: the most lenient one whose loss against plain decoding is at most `points`.

    The loss is of right answers: those that plain decoding gets right and the rule wrong, less the reverse. Values are
    tried from lenient to strict, and a value is given up as soon as its loss cannot come back.

    Args:
        pair: the models.
        task: the calibration problems.
        settings: every rule at the values to try.
        decoding: as in the measurement.
        points: allowed loss, in percentage points.
        journal_dir: see [`hf_judge.evaluation.evaluate.evaluate`].

    Returns:
        A choice for each rule, in the order of `settings`; for baselines and rules without a number the rule itself.
    """
    by_rule = {}
    for setting in settings:
        by_rule.setdefault(setting.rule, []).append(setting)
    with contextlib.ExitStack() as stack:
        record = journal_record(pair, task, decoding)
        journal = None if journal_dir is None else stack.enter_context(Journal(journal_dir, record))
        asked = _Asked(pair, decoding, journal)
        plain = [right for rights in asked.batches(Setting("plain"), task.examples) for right in rights]
        choices = []
        for found in tqdm(by_rule.values(), desc="Calibrating", unit="rule", leave=False):
            numbered = [setting for setting in found if setting.value is not None]
            if not numbered:
                choices.append(Choice(found[0], True, []))
                continue
            choices.append(_choose(asked, task.examples, lenient_first(numbered), plain, points))
    return choices


def _choose(
    asked: _Asked, examples: list[Example], settings: list[Setting], plain: list[Answer], points: float
) -> Choice:
    allowed, tried = points / 100 * len(examples) + 1e-9, []
    for setting in settings:
        answers = []
        for batch in asked.batches(setting, examples):
            answers += batch
            so_far = plain[: len(answers)]
            gained, lost = changes((a.right for a in so_far), (a.right for a in answers))
            # at best, every problem left that plain decoding gets wrong is gained
            if lost - gained - sum(not answer.right for answer in plain[len(answers) :]) > allowed:
                break
        n_forwards = sum(answer.forwards for answer in answers)
        tried.append(
            {"value": setting.value, "n": len(answers), "lost": lost, "gained": gained}
            | {"forwards_per_answer": n_forwards / len(answers)}
        )
        if len(answers) == len(plain) and lost - gained <= allowed:
            return Choice(setting, True, tried)
    return Choice(settings[-1], False, tried)


class _Asked:
    """Answers examples batch by batch, and takes over what the journal holds."""

    def __init__(self, pair: Pair, decoding: Decoding, journal: Journal | None):
        self._pair, self._decoding, self._journal = pair, decoding, journal
        self._prints, self._done = head_prints(pair), {} if journal is None else journal.finished()

    def batches(self, setting: Setting, examples: list[Example]):
        """Yield the answers of one batch after the other."""
        size, method = self._decoding.batch_size, Method(self._pair, setting, self._decoding)
        for start in range(0, len(examples), size):
            keys = {journal_key(self._prints, setting, e): e for e in examples[start : start + size]}
            todo = {key: example for key, example in keys.items() if key not in self._done}
            if todo:
                for key, answer in zip(todo, method.answer(list(todo.values())), strict=True):
                    self._done[key] = asdict(answer)
                    if self._journal is not None:
                        self._journal.append(key, self._done[key])
            yield [Answer(**self._done[key]) for key in keys]
