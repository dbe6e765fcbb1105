"""Runs a judged generation: the loop, its backend on upstream's caches, and the output."""

from hf_judge.decoding.loop import judged_decoding
from hf_judge.decoding.output import JudgeDecoderOnlyOutput, VerdictStreamer

__all__ = ["JudgeDecoderOnlyOutput", "VerdictStreamer", "judged_decoding"]
