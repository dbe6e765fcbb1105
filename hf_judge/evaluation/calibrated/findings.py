"""Say what a calibrated comparison found: the choices, and where a training-free rule beats the judge."""

from __future__ import annotations

from hf_judge.evaluation.figures import label
from hf_judge.rules.by_name import needs_head


def calibration_sentences(record: dict, rules: list[dict]) -> list[str]:
    """Tell in sentences how the values were chosen, and which rules are better than the judge.

    Args:
        record: the choices, see [`hf_judge.evaluation.calibrated.values.choose`].
        rules: figures of every setting on the measured problems, "plain" first.
    """
    lines = [
        f"Each rule's number is the most lenient that lost at most {record['points']:g} points on {record['n']} other "
        "problems."
    ]
    failed = [row["rule"] for row in record["rules"] if not row["within"]]
    if failed:
        lines.append(f"No value of these kept that, and they stand at their strictest: {', '.join(failed)}.")
    judges = [row for row in rules if row["rule"] == "judge"]
    if judges:
        lines.append(_against(judges[0], rules, failed))
    return lines


def _against(judge: dict, rules: list[dict], failed: list[str]) -> str:
    """Name the training-free rules that need no more forwards than the judge and are at least as often right."""
    better = [
        row
        for row in rules
        if row["number"]
        and not needs_head(row["rule"])
        and row["rule"] not in failed
        and row["forwards_per_answer"] <= judge["forwards_per_answer"]
        and row["accuracy"] >= judge["accuracy"]
    ]
    if not better:
        return "No training-free rule needs as few forwards as the judge at its accuracy."
    found = [f"{label(row)} ({row['accuracy']:.1%}, {row['forwards_per_answer']:.1f} forwards)" for row in better]
    return (
        f"The judge ({judge['accuracy']:.1%}, {judge['forwards_per_answer']:.1f} forwards an answer) is beaten by "
        f"training-free rules: {', '.join(found)}."
    )
