"""Turn prompts into labelled responses, and these into one label per token."""

from hf_judge.labelling.prompts import encode_prompt
from hf_judge.labelling.tokens import label_rows

__all__ = ["encode_prompt", "label_rows"]
