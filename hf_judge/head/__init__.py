"""Read, write, share and publish the judge head, and check that it fits a target."""

from hf_judge.head.config import JudgeConfig
from hf_judge.head.judge_head import JudgeHead, shared_head

__all__ = ["JudgeConfig", "JudgeHead", "shared_head"]
