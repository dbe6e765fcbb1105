"""The decoding loop, its backend on upstream's caches, and what a judged call returns."""

from hf_judge.decoding.loop import JudgeDecoderOnlyOutput, VerdictStreamer, judged_decoding

__all__ = ["JudgeDecoderOnlyOutput", "VerdictStreamer", "judged_decoding"]
