"""Makes a judge for a pair in one call, in steps that are kept on disk: a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.doctor.findings import Diagnosis
from hf_judge.doctor.pair import Models
from hf_judge.doctor.run import diagnose_pair
from hf_judge.evaluation.evaluate import Pair
from hf_judge.files.durable import Journal, check_writable
from hf_judge.head.compatibility import check_pair
from hf_judge.head.files import CONFIG_NAME
from hf_judge.head.fingerprint import fingerprint_of
from hf_judge.head.judge_head import JudgeHead
from hf_judge.labelling.jobs import name_of, processes
from hf_judge.making.card import write_card
from hf_judge.making.fitting import Fitted, fit
from hf_judge.making.measuring import Measured, measure
from hf_judge.making.mining import Mined, mine, planned
from hf_judge.making.preflight import Preflight
from hf_judge.making.problems import Parts, divide
from hf_judge.making.settings import MakeSettings
from hf_judge.making.threshold import Calibrated, calibrate, finished_head
from hf_judge.making.words import in_plain_words
from hf_judge.making.worth import Worth, is_it_worth_it, look_first, worth_from_json
from hf_judge.tasks.problems import Problems

STEPS = (
    "Versions, models, engines",
    "Is it worth it?",
    "Labels",
    "Features and fit",
    "Threshold",
    "Held-out problems",
    "Card",
)
# settings that change how long a run takes, and nothing that it finds
_FREE_TO_CHANGE = ("force", "batch_size")


@dataclass(frozen=True)
class MadeJudge:
    """A finished judge, and what each step found."""

    output_dir: str
    """Folder of the head, with `report`, `figures` and `journal` in it."""
    costs: dict
    """c and v, see `hf_judge.doctor`."""
    worth: Worth
    mined: Mined
    fitted: Fitted
    calibrated: Calibrated
    measured: Measured
    seconds: float
    """Time of all runs together."""
    in_plain_words: str


def make(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    output_dir: str | os.PathLike,
    *,
    settings: MakeSettings | None = None,
    held_out: Problems | None = None,
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
    say: Callable[[str], None] = lambda text: None,
    command: str = "hf_judge.making.make()",
) -> MadeJudge:
    """Make a judge head for a pair: check, weigh, label, fit, choose the threshold, measure, and write the card.

    The folder is the head, loadable as it is. A run that was killed goes on where it stopped when it is started again
    with the same models, problems and settings; with others it is refused, and nothing is replaced.

    Args:
        target, draft: the models, which share the tokenizer.
        tokenizer: the target's.
        problems: what labels, threshold and figures are made from; see [`file_problems`].
        output_dir: folder of the head.
        settings: see [`MakeSettings`]; None: the defaults.
        held_out: problems of the figures; None: a share of `problems`.
        draft_tokenizer: the draft's tokenizer; None: the target's.
        say: receives every line for the reader.
        command: command line, for the report.

    Raises:
        CannotPay: a judge would be of no use, or the first answers look wrong; `settings.force` goes on.
        ValueError: the models do not fit together, the problems are too few, or the folder holds other work.
        OSError: the folder cannot be written to.
    """
    settings = settings or MakeSettings()
    if processes().num_processes > 1:
        raise ValueError("make runs in one process: start it without accelerate launch or torchrun")
    output = Path(output_dir)
    check_writable(output / CONFIG_NAME)
    check_pair(tokenizer, draft_tokenizer or tokenizer)
    problems, refused = problems.usable(tokenizer)
    if refused:
        say(f"{len(refused)} prompts are left out, the first: {': '.join(refused[0])}")
    parts = divide(problems, held_out, settings)
    names = f"target {fingerprint_of(target)}, draft {fingerprint_of(draft)}"
    pair = Pair(target, draft, tokenizer, name=names, draft_tokenizer=draft_tokenizer)
    record = _settings_record(pair, parts, settings)
    with Journal(output / "journal" / "steps", record) as journal:
        return _Run(pair, parts, settings, output, journal, say, command).run()


def _settings_record(pair: Pair, parts: Parts, settings: MakeSettings) -> dict:
    """Return what every finished step depends on."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in _FREE_TO_CHANGE}
    return chosen | {
        "target": fingerprint_of(pair.target),
        "draft": fingerprint_of(pair.draft),
        "checker": name_of(parts.fit.checker),
        "problems": [part.digest() for part in (parts.fit, parts.calibrate, parts.held_out)],
    }


class _Run:
    """Does the steps that are left, each after the other; the fields are arguments of [`make`]."""

    def __init__(self, pair: Pair, parts: Parts, settings: MakeSettings, output: Path, journal: Journal, say, command):
        self._pair, self._parts, self._settings, self._output = pair, parts, settings, output
        self._journal, self._say, self._command = journal, say, command
        self._folder = output / "journal"
        self._labels = self._folder / "labels.jsonl"
        self._seconds = 0.0
        self._looked: Preflight | None = None

    def run(self) -> MadeJudge:
        """Return the finished judge."""
        n = [len(part) for part in (self._parts.fit, self._parts.calibrate, self._parts.held_out)]
        self._say(f"{sum(n)} problems: {n[0]} to fit on, {n[1]} to choose the threshold on, {n[2]} held out")
        costs = self._step(0, self._check, lambda value: value)
        worth = self._step(1, lambda: self._weigh(costs), worth_from_json)
        chosen = self._settings.num_assistant_tokens or worth.perfect.n_drafted
        self._settings = replace(self._settings, num_assistant_tokens=chosen)
        plan = planned(self._parts, self._settings, worth.share_with_mistake, worth.mistakes_per_prompt)
        mined = self._step(2, lambda: self._mine(worth, plan), lambda value: Mined(**value))
        fitted = self._step(3, self._fit, lambda value: Fitted(**value))
        calibrated = self._step(4, lambda: self._calibrate(plan), lambda value: Calibrated(**value))
        measured = self._step(5, lambda: self._measure(calibrated), lambda value: Measured(**value))
        self._step(6, self._write_card, lambda value: value)
        words = in_plain_words(calibrated, measured)
        return MadeJudge(
            str(self._output), costs, worth, mined, fitted, calibrated, measured, round(self._seconds, 1), words
        )

    def _step(self, number: int, work: Callable[[], object], restore: Callable[[object], object]):
        """Return what a step found, now or in an earlier run."""
        title, done = STEPS[number], self._journal.finished()
        head = f"[{number + 1}/{len(STEPS)}] {title}"
        if title in done:
            self._seconds += done[title]["seconds"]
            self._say(f"{head}: done before")
            return restore(done[title]["found"])
        self._say(head)
        started = time.monotonic()
        found = work()
        seconds = time.monotonic() - started
        self._seconds += seconds
        # as JSON: a rerun reads the very same values
        values = json.loads(json.dumps(asdict(found) if is_dataclass(found) else found))
        self._journal.append(title, {"seconds": seconds, "found": values})
        return restore(values)

    def _check(self) -> dict:
        pair = self._pair
        found = diagnose_pair(
            Models(pair.target, pair.draft, pair.tokenizer, pair.draft_tokenizer or pair.tokenizer, None),
            before_costs=self._look,  # swapped models would only look too costly
        )
        for check in found.checks:
            if check.status != "ok" or check.name in ("engine", "costs"):
                self._say(f"  {check.status}: {check.message}" + (f" ({check.remedy})" if check.remedy else ""))
        self._refuse_unusable(found)
        return found.costs

    def _refuse_unusable(self, found: Diagnosis) -> None:
        problems = [check for check in found.checks if check.status == "problem"]
        if problems:
            raise ValueError(f"the doctor found a problem: {problems[0].message}; {problems[0].remedy}")

    def _look(self) -> Preflight:
        """Return the answers to the first problems; a later run answers them again."""
        if self._looked is None:
            self._looked = look_first(self._pair, self._parts, self._settings, self._say)
        return self._looked

    def _weigh(self, costs: dict) -> Worth:
        return is_it_worth_it(self._pair, self._parts, self._settings, self._look(), costs, self._labels, self._say)

    def _mine(self, worth: Worth, plan) -> Mined:
        self._say(f"  {plan.reason}; at most {plan.bound} prompts are labelled")
        found = mine(self._pair, self._parts, plan, self._settings, self._labels, first=worth.n_prompts)
        self._say(
            f"  {found.n_mistakes} mistakes in {found.n_prompts} prompts" + ("" if found.enough else ", all there are")
        )
        return found

    def _fit(self) -> Fitted:
        found = fit(self._pair, self._labels, self._settings, self._folder, self._output / "figures")
        self._say(f"  {found.said}")
        return found

    def _calibrate(self, plan) -> Calibrated:
        head = JudgeHead.from_pretrained(self._folder / "head")
        found = calibrate(self._pair, head, self._parts.calibrate, plan, self._settings, self._folder)
        for line in [*found.lines, found.said]:
            self._say(f"  {line}")
        finished_head(head, found).save_pretrained(self._output)
        return found

    def _measure(self, calibrated: Calibrated) -> Measured:
        found = measure(
            self._pair, self._output, self._parts.calibrate, self._parts.held_out, self._settings, command=self._command
        )
        for line in found.summary:
            self._say(f"  {line}")
        return found

    def _write_card(self) -> str:
        return str(write_card(self._output))
