"""Measures speed: methods of decoding side by side, the least that a round can cost, and the paper's formula."""

from hf_judge.bench.forwards import measure_costs
from hf_judge.bench.methods import TimedMethod
from hf_judge.bench.run import bench, recommend

__all__ = ["TimedMethod", "bench", "measure_costs", "recommend"]
