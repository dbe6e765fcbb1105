"""Speed: ways to decode timed side by side, the least that a round can cost, and the formula."""

from hf_judge.bench.run import BenchWay, bench, measure_costs, recommend

__all__ = ["BenchWay", "bench", "measure_costs", "recommend"]
