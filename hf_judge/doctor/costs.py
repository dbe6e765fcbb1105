"""Measures whether drafting can pay with a pair on this machine."""

from __future__ import annotations

from hf_judge.bench.formula import break_even, predicted_speedup
from hf_judge.bench.forwards import measure_costs
from hf_judge.doctor.findings import Diagnosis
from hf_judge.doctor.pair import Models
from hf_judge.doctor.self_check import probe
from hf_judge.evaluation.evaluate import Pair

LENGTHS = (4, 8, 16, 32)  # drafted tokens per round whose cost is measured


def check_costs(found: Diagnosis, models: Models) -> None:
    """Measure what a draft step and a verification cost, and say whether drafting can pay."""
    pair = Pair(models.target, models.draft, models.tokenizer, name="doctor")
    costs = measure_costs(pair, probe(models)[1], LENGTHS, repeats=7)
    c, v = costs["cost_ratio"], {int(m): cost for m, cost in costs["verify_cost"].items()}
    best = {m: predicted_speedup(m, m, c, v[m]) for m in LENGTHS}
    rates = {m: break_even(m, c, v[m]) for m in LENGTHS}
    paying = {m: rate for m, rate in rates.items() if rate is not None}
    longest = max(best, key=best.get)
    found.costs = {
        "c": c,
        "target_seconds": costs["target_seconds"],
        "v": {str(m): cost for m, cost in v.items()},
        "break_even_acceptance": {str(m): rate for m, rate in rates.items()},
        "speedup_at_most": {str(m): speedup for m, speedup in best.items()},
    }
    measured = f"a draft step costs {c:.2f} of a target step, verifying {longest} drafted tokens {v[longest]:.2f}"
    if not paying:
        found.warn(
            "costs",
            f"{measured}: even a draft that is always accepted gives {best[longest]:.2f}x plain decoding",
            "take a cheaper draft or a bigger target: drafting cannot pay with this pair on this machine",
        )
        return
    cheapest = min(paying, key=paying.get)
    found.ok(
        "costs",
        f"{measured}: drafts of {cheapest} pay where {paying[cheapest]:.0%} of their tokens or more are accepted, "
        f"drafts of {longest} give {best[longest]:.1f}x plain decoding at most",
    )
