"""Measures a judge on held-out problems: plain, strict, judged, and the best rule that needs no training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers.utils.logging import tqdm

from hf_judge.evaluation.compare import Work, compare
from hf_judge.evaluation.evaluate import Decoding, Pair, evaluate
from hf_judge.evaluation.figures import figures
from hf_judge.evaluation.report import write_report
from hf_judge.head.judge_head import JudgeHead
from hf_judge.making.settings import MakeSettings
from hf_judge.publishing.record import evaluated, record
from hf_judge.rules.by_name import RULES, Setting
from hf_judge.tasks.problems import Problems

# each at a lenient and a strict value: the best known ones that need no head
FREE_RULES = ("top-k", "typical", "relaxed", "kl", "mars", "fly")
N_FREE_PROBLEMS = 40  # calibration problems on which the best of them is chosen
POINT = 0.01


@dataclass(frozen=True)
class Measured:
    """Figures of the held-out problems, see `hf_judge.evaluation.figures.figures`."""

    plain: dict
    strict: dict
    judged: dict
    free: dict | None
    """Of the best rule without training, chosen on calibration problems; None: none was within a point there."""
    summary: list[str]


def measure(
    pair: Pair, output: Path, calibration: Problems, held_out: Problems, settings: MakeSettings, *, command: str
) -> Measured:
    """Answer the held-out problems, write the report, and note the figures in the head's config.

    Args:
        pair: the models.
        output: folder of the head; the report goes to its folder `report`.
        calibration: problems on which the best rule without training is chosen.
        held_out: the problems.
        settings: draft length, answer length, bound on the problems.
        command: command line, for the reader of the report.
    """
    head = JudgeHead.from_pretrained(output)
    judged_pair = Pair(pair.target, pair.draft, pair.tokenizer, {"judge": head}, pair.name, pair.draft_tokenizer)
    free = _best_free_rule(pair, calibration.first(N_FREE_PROBLEMS), settings, output / "journal" / "rules")
    rules = [Setting("plain"), Setting("strict"), Setting("judge", head.config.threshold)]
    rules += [] if free is None else [free]
    decoding = Decoding(settings.num_assistant_tokens, settings.max_new_tokens)
    task = _named_by_content(held_out.first(settings.max_held_out))
    with tqdm(total=len(rules) * len(task.examples), desc="Held-out answers", unit="answer") as bar:
        found = compare(
            judged_pair,
            Work(task),
            rules,
            decoding,
            command=command,
            journal_dir=output / "report" / "answers",
            n_curve_examples=min(10, len(task.examples)),
            on_answer=bar.update,
        )
    write_report(found, output / "report")
    note = partial(evaluated, found)
    record(output, "evaluate", held_out.name, note("judge", head.config.threshold), draft=_name(pair.draft))
    rows = found["rules"]
    return Measured(rows[0], rows[1], rows[2], rows[3] if free is not None else None, found["summary"])


def _best_free_rule(pair: Pair, problems: Problems, settings: MakeSettings, journal: Path) -> Setting | None:
    """Return the rule without training that saves most forwards within a point of plain decoding, if there is one."""
    tried = [Setting("plain")] + [Setting(name, value) for name in FREE_RULES for value in RULES[name].quick]
    decoding = Decoding(settings.num_assistant_tokens, settings.max_new_tokens, batch_size=settings.batch_size)
    task = _named_by_content(problems)
    with tqdm(total=len(tried) * len(task.examples), desc="Rules without training", unit="answer") as bar:
        answers = evaluate(pair, task, tried, decoding=decoding, journal_dir=journal, on_answer=bar.update)
    rows = figures(answers)
    floor = rows[0]["accuracy"] - POINT - 1e-9
    within = [(row, setting) for row, setting in zip(rows, tried, strict=True) if row["accuracy"] >= floor][1:]
    return max(within, key=lambda one: one[0]["forwards_ratio"])[1] if within else None


def _named_by_content(problems: Problems):
    return replace(problems.task(), name=f"{problems.name} (sha256 {problems.digest()})")


def _name(model) -> str | None:
    return model.config.name_or_path or None
