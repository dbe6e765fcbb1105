"""Says in plain words what a finished judge gains and loses, how sure that is, and what to do next."""

from __future__ import annotations

from hf_judge.checking.statistics import wilson_interval
from hf_judge.making.measuring import POINT, Measured
from hf_judge.making.threshold import Calibrated

USEFUL = 1.1  # speed over strict verification from which on a judge is worth its trouble


def in_plain_words(calibrated: Calibrated, measured: Measured) -> str:
    """Return the findings of a run in a few sentences."""
    plain, strict, judged = measured.plain, measured.strict, measured.judged
    low, high = judged["speedup_interval"]
    said = [
        f"Gained: {judged['speedup']:.1f}x plain decoding ({low:.1f} to {high:.1f}), where strict verification gives "
        f"{strict['speedup']:.1f}x; {judged['accepted_per_forward']:.1f} accepted tokens per forward against "
        f"{strict['accepted_per_forward']:.1f}.",
        _lost(plain, judged),
        _how_sure(calibrated, judged["n"]),
    ]
    if measured.free is not None:
        free = measured.free
        said.append(
            f"The best rule without training ({free['rule']} {free['threshold']:g}) gives {free['speedup']:.1f}x at "
            f"{free['accuracy']:.1%}."
        )
    return " ".join([*said, _next(calibrated, measured)])


def _lost(plain: dict, judged: dict) -> str:
    n = judged["n"]
    return (
        f"Lost: {judged['lost']} of {n} answers that the target alone gets right, gained {judged['gained']}: "
        f"{judged['accuracy']:.1%} right against {plain['accuracy']:.1%} (p of "
        f"so much by chance: {judged['mcnemar_p']:.2g})."
    )


def _how_sure(calibrated: Calibrated, n: int) -> str:
    low, high = wilson_interval(0, n)
    certificate = calibrated.certificate
    if calibrated.kind == "by_risk":
        sure = (
            f"at most {certificate['bound']:.1%} of mistakes are accepted (confidence {certificate['confidence']:.0%})"
        )
    else:
        bound = certificate["lost_bound"]
        at = min(bound, key=lambda key: abs(float(key) - calibrated.threshold))
        sure = (
            f"at most {bound[at]:.1%} of answers are lost (confidence {certificate['confidence']:.0%}, "
            f"{certificate['n_answers']} calibration answers)"
        )
        if calibrated.kind == "best":
            sure = f"no threshold was within the margin; {sure}"
    return f"How sure: {sure}; the {n} held-out answers show losses down to {high - low:.1%}."


def _next(calibrated: Calibrated, measured: Measured) -> str:
    """Say what to do next."""
    plain, strict, judged = measured.plain, measured.strict, measured.judged
    if judged["accuracy"] < plain["accuracy"] - POINT:
        return "It falls short in accuracy: pass more prompts, or stricter thresholds only (--thresholds 0.9 0.99)."
    if judged["speedup"] <= 1:
        return "It falls short in speed: plain decoding is as fast. Take a cheaper draft, or a bigger target."
    if judged["speedup"] < USEFUL * strict["speedup"]:
        return "It falls short in speed: strict verification, which loses nothing, is nearly as fast. Use no judge."
    free = measured.free
    if free is not None and free["speedup"] >= judged["speedup"] and free["accuracy"] >= judged["accuracy"]:
        return (
            f"It falls short of a rule that needs no head: {free['rule']} {free['threshold']:g} is as fast and as "
            "right. Use that rule, or pass more prompts to train a better judge."
        )
    if calibrated.kind != "by_risk":
        return "It is of use. For a tighter bound, pass more prompts."
    return "It is of use."
