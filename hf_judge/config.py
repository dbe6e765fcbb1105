"""The configuration of a judge head: every field of ``adapter_config.json``.

Knows nothing about tensors, files or models. Section numbers refer to Judge Decoding, arXiv 2501.19309.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

try:
    from peft import PeftConfig
except ImportError:  # a head can be read and used without peft; only the PEFT calls need it

    @dataclass
    class PeftConfig:
        """The fields of ``peft.PeftConfig`` that a judge head uses, for environments without peft."""

        task_type: str | None = None
        peft_type: str | None = None
        auto_mapping: dict | None = None
        peft_version: str | None = None
        base_model_name_or_path: str | None = None
        revision: str | None = None
        inference_mode: bool = False

        def __post_init__(self):
            pass


PEFT_TYPE = "JUDGE"
FORMAT_VERSION = 1
HIDDEN_STATES = ("post_norm", "pre_norm")
MAX_HIDDEN_SIZE = 1 << 20
MAX_TEXT = 4096
MAX_PROVENANCE = 1 << 18


@dataclass
class JudgeConfig(PeftConfig):
    """What a judge head reads, how lenient it is, and where it comes from.

    Args:
        hidden_size (`int`, *optional*): width D of the target's hidden state; ``None`` until the head is bound to a
            model.
        hidden_state (`str`): which state the head reads. ``"post_norm"``: the input of the LM head. ``"pre_norm"``: the
            input of the final norm, as in the paper (section 3).
        draft_hidden_size (`int`, *optional*): the first so many of the `hidden_size` features are the draft's state,
            the rest the target's (AutoJudge's DD-DT); None: the head reads the target alone, as `generate` needs it.
        threshold (`float`): a drafted token is acceptable where ``sigmoid(logit) > threshold``; between 0 and 1.
        label (`str`): the meaning of the head's positive class.
        format_version (`int`): version of the two files; this package reads version 1.
        provenance (`dict`): how the head was made: data, figures, versions. Free form, JSON.
        base_model_name_or_path (`str`, *optional*): the target that the head was trained on; `revision` is its commit.

    Raises:
        ValueError: a field has a value outside its range.
        TypeError: a field has the wrong type.
    """

    hidden_size: int | None = None
    hidden_state: str = "post_norm"
    threshold: float = 0.5
    label: str = "1 = acceptable"
    draft_hidden_size: int | None = None
    format_version: int = FORMAT_VERSION
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.peft_type is not None and str(getattr(self.peft_type, "value", self.peft_type)) != PEFT_TYPE:
            raise ValueError(
                f"a judge head has peft_type '{PEFT_TYPE}', got {self.peft_type!r}: this is another adapter"
            )
        self.peft_type = PEFT_TYPE
        self.task_type = self.task_type or "CAUSAL_LM"
        self._check_fields()

    def _check_fields(self):
        if self.task_type != "CAUSAL_LM":
            raise ValueError(
                f"task_type must be 'CAUSAL_LM', got {self.task_type!r}: a judge reads a causal language model"
            )
        if self.hidden_size is not None:
            _check_type("hidden_size", self.hidden_size, int)
            if not 1 <= self.hidden_size <= MAX_HIDDEN_SIZE:
                raise ValueError(f"hidden_size must be between 1 and {MAX_HIDDEN_SIZE}, got {self.hidden_size}")
        if self.draft_hidden_size is not None:
            _check_type("draft_hidden_size", self.draft_hidden_size, int)
            if not 1 <= self.draft_hidden_size < (self.hidden_size or MAX_HIDDEN_SIZE):
                raise ValueError(
                    f"draft_hidden_size must be between 1 and hidden_size ({self.hidden_size}), which counts the "
                    f"target's features too, got {self.draft_hidden_size}"
                )
        if self.hidden_state not in HIDDEN_STATES:
            raise ValueError(f"hidden_state must be one of {HIDDEN_STATES}, got {_short(self.hidden_state)}")
        check_threshold(self.threshold)
        _check_type("format_version", self.format_version, int)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version {self.format_version} is not known (this hf_judge reads {FORMAT_VERSION}): "
                "upgrade hf_judge to read this head"
            )
        for name in ("label", "base_model_name_or_path", "revision"):
            value = getattr(self, name)
            if value is not None:
                _check_type(name, value, str)
                if len(value) > MAX_TEXT:
                    raise ValueError(f"{name} has {len(value)} characters, at most {MAX_TEXT} are allowed")
        _check_type("provenance", self.provenance, dict)
        try:
            size = len(json.dumps(self.provenance))
        except (TypeError, ValueError) as error:
            raise TypeError(f"provenance must hold JSON values only: {error}") from None
        if size > MAX_PROVENANCE:
            raise ValueError(f"provenance takes {size} characters as JSON, at most {MAX_PROVENANCE} are allowed")


def check_threshold(threshold: float) -> float:
    """The threshold as a float, or an error that says what is allowed.

    Raises:
        TypeError: not a number.
        ValueError: not finite or outside [0, 1].
    """
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number between 0 and 1, got {_short(threshold)}")
    if not math.isfinite(threshold) or not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be between 0 and 1 (the judge accepts above it), got {threshold}")
    return float(threshold)


def _check_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise TypeError(f"{name} must be {expected.__name__}, got {type(value).__name__}: {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
