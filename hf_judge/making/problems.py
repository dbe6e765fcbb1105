"""Divides the problems that a judge is made from so that no prompt stands on two sides."""

from __future__ import annotations

from dataclasses import dataclass

from hf_judge.checking.checkers import NumericChecker
from hf_judge.making.settings import MakeSettings
from hf_judge.tasks.problems import Problems
from hf_judge.tiny.world import problems
from hf_judge.training.fit import part_of

WORLD_CHECKER = r"has (\d+) \w+ left"


def world_problems(n: int, *, part: str, seed: int = 1) -> Problems:
    """Return `n` problems of the embedded world.

    Args:
        n: number of problems.
        part: "label", which the embedded pair's own judge was made from, or "test".
        seed: seed of the problems.
    """
    rows = [
        {"prompt": [{"role": "user", "content": problem.question}], "answer": problem.answer, "task_id": f"{part}/{i}"}
        for i, problem in enumerate(problems(n, seed=seed, part=part))
    ]
    return Problems(f"world, {part}", rows, NumericChecker(WORLD_CHECKER), [f"world {row['task_id']}" for row in rows])


@dataclass(frozen=True)
class Parts:
    """Problems by their use; no prompt stands in two parts, whatever the order of the file."""

    fit: Problems
    """Labelled: the head is fitted to them, and its penalty chosen."""
    calibrate: Problems
    """Labelled and answered: the threshold is chosen on them."""
    held_out: Problems
    """Answered once, at the end: all figures of the report are theirs."""

    @property
    def labelled(self) -> Problems:
        """The problems of `fit` and `calibrate` in turn, so that the first ones are of both in their shares."""
        both = [*self.fit.rows, *self.calibrate.rows]
        names = [*self.fit.names, *self.calibrate.names]
        n_fit, n_other = len(self.fit), len(self.calibrate)
        places = [(i / max(n_fit, 1), i) for i in range(n_fit)]
        places += [(i / max(n_other, 1), n_fit + i) for i in range(n_other)]
        merged = Problems(self.fit.name, both, self.fit.checker, names)
        return merged.chosen([i for _, i in sorted(places)])


def divide(problems: Problems, held_out: Problems | None, settings: MakeSettings) -> Parts:
    """Divide problems by the hashes of their prompts, as the fit does.

    Args:
        problems: all problems, or, with `held_out`, those to label.
        held_out: problems to measure on; a prompt of them is taken out of `problems`. None: a share of `problems`.
        settings: the shares and the seed.

    Raises:
        ValueError: a part is empty.
    """
    parts, seed = {"fit": [], "calibrate": [], "held_out": []}, settings.seed
    measured = set() if held_out is None else set(held_out.hashes())
    for number, name in enumerate(problems.hashes()):
        if held_out is None and part_of(name, seed + 1, settings.held_out_fraction, 0.0) == "validation":
            parts["held_out"].append(number)
        elif name not in measured:
            own = part_of(name, seed, settings.validation_fraction, settings.calibration_fraction)
            parts["calibrate" if own == "calibration" else "fit"].append(number)
    divided = Parts(
        problems.chosen(parts["fit"]),
        problems.chosen(parts["calibrate"]),
        problems.chosen(parts["held_out"]) if held_out is None else held_out,
    )
    for name in parts:
        if not getattr(divided, name).rows:
            raise ValueError(
                f"{len(problems)} problems are too few: none is left for the part '{name}'; pass 100 or more, 300 if "
                "you can"
            )
    return divided
