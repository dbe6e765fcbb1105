"""Decodes with the judge head of this repository, with or without the hf-judge package.

model.generate(**inputs, custom_generate="<this repository>", trust_remote_code=True, assistant_model=draft)

The other files of this folder are copies of the package's modules; they are used where the package is not installed.
"""

import base64
import functools
import tempfile
from pathlib import Path

try:
    from hf_judge.head import JudgeHead
    from hf_judge.modeling import judged
except ImportError:
    from .head import JudgeHead
    from .modeling import judged

from .head_data import CONFIG, WEIGHTS


@functools.cache
def judge_head() -> JudgeHead:
    """The head of this commit, checked as any head is."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "adapter_config.json").write_text(CONFIG, encoding="utf-8")
        Path(directory, "adapter_model.safetensors").write_bytes(base64.b64decode(WEIGHTS))
        return JudgeHead.from_pretrained(directory)


def generate(model, judge=None, **kwargs):
    """`model.generate` with a judge.

    Args:
        judge: another judge in place of this repository's; False: no judge.
        **kwargs: as `hf_judge.JudgeGenerationMixin.generate`, `judge_threshold` among them. Something must draft:
            `assistant_model=`, `prompt_lookup_num_tokens=`, ...
    """
    target = judged(model)
    # through the class: `model.generate` may be this very function (from_pretrained puts it there)
    return type(target).generate(target, judge=judge_head() if judge is None else judge, **kwargs)
