"""Decode with the judge head of this repository. This needs the package hf-judge (requirements.txt).

model.generate(**inputs, custom_generate="<this repository>", trust_remote_code=True, assistant_model=draft)
"""

import base64
import functools
import tempfile
from pathlib import Path

from hf_judge.head import JudgeHead
from hf_judge.modeling import judged

from .head_data import CONFIG, WEIGHTS


@functools.cache
def judge_head() -> JudgeHead:
    """Load the head of this commit, checked as any head is."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "adapter_config.json").write_text(CONFIG, encoding="utf-8")
        Path(directory, "adapter_model.safetensors").write_bytes(base64.b64decode(WEIGHTS))
        return JudgeHead.from_pretrained(directory)


def generate(model, judge=None, **kwargs):
    """Call `model.generate` with this repository's judge, or with another `judge`; hf_judge reads the rest."""
    target = judged(model)
    # through the class: `model.generate` may be this very function (from_pretrained puts it there)
    return type(target).generate(target, judge=judge_head() if judge is None else judge, **kwargs)
