"""Measures accuracy beside speed: rules compared on the same work, and the report."""

from hf_judge.evaluation.evaluate import Answer, Decoding, Method, Pair, evaluate, hash_seed, left_padded, up_to_end

__all__ = ["Answer", "Decoding", "Method", "Pair", "evaluate", "hash_seed", "left_padded", "up_to_end"]
