"""Checks whether judged generation works here: versions, devices, and a pair of models."""

from hf_judge.doctor.findings import Check, Diagnosis
from hf_judge.doctor.run import diagnose

__all__ = ["Check", "Diagnosis", "diagnose"]
