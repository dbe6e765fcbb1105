"""Define the configuration of a judge head: every field of ``adapter_config.json``.

Section numbers refer to Judge Decoding, arXiv 2501.19309.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import dataclass, field, fields

from hf_judge.head.distributions import EXTRA_FEATURES
from hf_judge.head.files import CONFIG_NAME, PEFT_TYPE, WEIGHTS_NAME, read_values, read_weights
from hf_judge.head.fingerprint import check_fingerprint
from hf_judge.head.hub import locate

try:
    from peft import PeftConfig, PeftType

    PEFT_TYPES = PeftType.__members__  # a live view: has JUDGE once hf_judge.integrations.peft_method has registered it
except ImportError:  # a head can be read and used without peft; only the PEFT calls need it
    PEFT_TYPES = {}

    @dataclass
    class PeftConfig:
        """Holds the fields of ``peft.PeftConfig`` that a judge head uses, for environments without peft."""

        task_type: str | None = None
        peft_type: str | None = None
        auto_mapping: dict | None = None
        peft_version: str | None = None
        base_model_name_or_path: str | None = None
        revision: str | None = None
        inference_mode: bool = False

        def __post_init__(self):
            pass


logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
HUB_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")
HIDDEN_STATES = ("post_norm", "pre_norm")
MAX_HIDDEN_SIZE = 1 << 20
MAX_TEXT = 4096
MAX_PROVENANCE = 1 << 18
READS_DRAFT = "draft_hidden_size"  # a field of earlier releases, null in every head that generate() can serve


@dataclass
class JudgeConfig(PeftConfig):
    """Says what a judge head reads, how lenient it is, and where it comes from.

    Args:
        hidden_size (`int`, *optional*): width D of the target's hidden state; ``None`` until the head is bound to a
            model.
        hidden_state (`str`): which state the head reads. ``"post_norm"``: the input of the LM head. ``"pre_norm"``: the
            input of the final norm, as in the paper (section 3).
        extra_features (`list[str]`): numbers of the verification that the head reads after the state, out of
            `hf_judge.head.distributions.EXTRA_FEATURES`; not counted in `hidden_size`. Some need the draft's logits.
        threshold (`float`): a drafted token is acceptable where ``sigmoid(logit) > threshold``; between 0 and 1.
        rescue_window (`int`): a rescue is undone where one of the next `rescue_window` drafted tokens is corrected, see
            [`JudgeCandidateVerifier`]; 0: rescues stand.
        label (`str`): the meaning of the head's positive class.
        quantization (`str`, *optional*): quantisation of the target whose states were read, e.g.
            `"bitsandbytes 8-bit"` (see `hf_judge.head.compatibility.quantization_of`) or `"none"`; None: not known.
        format_version (`int`): version of the two files; this package reads version 1.
        provenance (`dict`): data, figures and versions that the head was made with. Free form, JSON.
        base_model_name_or_path (`str`, *optional*): the target that the head was trained on; `revision` is its commit.
        fingerprint (`dict`, *optional*): hashes of a few of that target's weights, see `hf_judge.head.fingerprint`;
            None: not known, and the target's name decides.
        draft_name_or_path (`str`, *optional*): the draft whose tokens the head learned to judge.
        draft_fingerprint (`dict`, *optional*): hashes of the draft's weights.

    Raises:
        ValueError: a field has a value outside its range.
        TypeError: a field has the wrong type.
    """

    hidden_size: int | None = None
    hidden_state: str = "post_norm"
    threshold: float = 0.5
    rescue_window: int = 0
    label: str = "1 = acceptable"
    extra_features: list = field(default_factory=list)
    quantization: str | None = None
    format_version: int = FORMAT_VERSION
    provenance: dict = field(default_factory=dict)
    fingerprint: dict | None = None
    draft_name_or_path: str | None = None
    draft_fingerprint: dict | None = None

    def __post_init__(self):
        if self.task_type not in (None, "CAUSAL_LM"):
            raise ValueError(
                f"task_type must be 'CAUSAL_LM', got {_short(self.task_type)}: a judge reads a causal language model"
            )
        super().__post_init__()
        if self.peft_type is not None and str(getattr(self.peft_type, "value", self.peft_type)) != PEFT_TYPE:
            raise ValueError(
                f"a judge head has peft_type '{PEFT_TYPE}', got {_short(self.peft_type)}: this is another adapter"
            )
        self.peft_type = PEFT_TYPES.get(PEFT_TYPE, PEFT_TYPE)  # equal to the string either way
        self.task_type = self.task_type or "CAUSAL_LM"
        self._check_fields()

    @property
    def state_of(self) -> str | None:
        """Which state the head was trained on: "token", the labelled token's own, or "before"; None: not known."""
        labels = self.provenance.get("labels") if isinstance(self.provenance, dict) else None
        return labels.get("state_of", "token") if isinstance(labels, dict) else None

    @property
    def n_features(self) -> int | None:
        """Number of values that the head reads for a token: `hidden_size` and the extra features."""
        return None if self.hidden_size is None else self.hidden_size + len(self.extra_features)

    @property
    def target_modules(self) -> None:
        """None, for PEFT: a judge reads the target and changes none of its modules."""

    @classmethod
    def from_values(cls, values: dict, source: str) -> JudgeConfig:
        """Make a config of the JSON object of an `adapter_config.json`; unknown keys are ignored with a warning.

        Raises:
            ValueError: `hidden_size` is missing, a value is out of range, or the head reads the draft's state.
            TypeError: a field has the wrong type.
        """
        if values.get(READS_DRAFT) is not None:
            raise ValueError(
                f"{source} sets '{READS_DRAFT}': the head reads the draft's state beside the target's, which this "
                "hf_judge does not serve; train a head on the target's state alone"
            )
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known - {READS_DRAFT})
        if unknown:
            logger.warning("%s: unknown keys ignored: %s", source, ", ".join(key[:80] for key in unknown[:20]))
        config = cls(**{key: value for key, value in values.items() if key in known})
        if config.hidden_size is None:
            raise ValueError(f"{source} lacks 'hidden_size', the width of the target's hidden state")
        return config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, subfolder: str | None = None, **kwargs
    ) -> JudgeConfig:
        """Read the config of a head from a directory or the Hub, and check both of its files.

        `PeftModel.from_pretrained` calls this before it loads anything, so a refused head never reaches a model.

        Args:
            pretrained_model_name_or_path: a directory, or a repository id.
            subfolder: the folder of the repository or directory that holds the files.
            **kwargs: arguments of `hf_judge.head.hub.locate`; others are ignored, as PEFT does.

        Raises:
            OSError: the files cannot be read.
            ValueError: the files hold anything but one judge head.
            TypeError: a field of the config has the wrong type.
        """
        options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        names = (CONFIG_NAME, WEIGHTS_NAME)
        directory = locate(pretrained_model_name_or_path, names, subfolder=subfolder, **options).directory
        config = cls.from_values(read_values(directory), str(directory / CONFIG_NAME))
        read_weights(directory, config.n_features)
        return config

    def _check_fields(self):
        if self.auto_mapping is not None:
            raise ValueError("auto_mapping names code to import: a judge head holds none, drop the key")
        if self.hidden_size is not None:
            _check_type("hidden_size", self.hidden_size, int)
            check_number("hidden_size", self.hidden_size, 1, MAX_HIDDEN_SIZE)
        self.extra_features = check_extra_features(self.extra_features)
        if self.hidden_state not in HIDDEN_STATES:
            raise ValueError(f"hidden_state must be one of {HIDDEN_STATES}, got {_short(self.hidden_state)}")
        check_threshold(self.threshold)
        check_number("rescue_window", self.rescue_window, 0, kind=int)
        _check_type("format_version", self.format_version, int)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version {_short(self.format_version)} is not known (this hf_judge reads {FORMAT_VERSION}): "
                "upgrade hf_judge to read this head"
            )
        _check_type("inference_mode", self.inference_mode, bool)
        texts = ("label", "base_model_name_or_path", "revision", "peft_version", "quantization", "draft_name_or_path")
        for name in texts:
            value = getattr(self, name)
            if value is not None:
                _check_type(name, value, str)
                if len(value) > MAX_TEXT:
                    raise ValueError(f"{name} has {len(value)} characters, at most {MAX_TEXT} are allowed")
        for name in ("fingerprint", "draft_fingerprint"):
            if getattr(self, name) is not None:
                check_fingerprint(name, getattr(self, name))
        _check_type("provenance", self.provenance, dict)
        try:
            size = len(json.dumps(self.provenance))
        except (TypeError, ValueError) as error:
            raise TypeError(f"provenance must hold JSON values only: {error}") from None
        if size > MAX_PROVENANCE:
            raise ValueError(f"provenance takes {size} characters as JSON, at most {MAX_PROVENANCE} are allowed")


def check_threshold(threshold: float) -> float:
    """Return the threshold as a float, or refuse it.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, or outside [0, 1].
    """
    check_number("threshold", threshold, 0, 1)
    return float(threshold)


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf, kind: type = float) -> None:
    """Refuse a setting that is no number, not finite, or outside its range.

    Args:
        name: name of the setting.
        value: its value.
        least, most: the range, both included.
        kind: int for a whole number.

    Raises:
        TypeError, ValueError: the setting is refused; the message says what is allowed.
    """
    if math.isinf(least):
        bounds = "" if math.isinf(most) else f"at most {most}"
    else:
        bounds = f"at least {least}" if math.isinf(most) else f"between {least} and {most}"
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        wanted = f"{'a whole number' if kind is int else 'a number'} {bounds}".rstrip()
        raise TypeError(f"{name} must be {wanted}, got {_short(value)}")
    # NaN is in no range, and a whole number of any size can be compared
    if not least <= value <= most or abs(value) == math.inf:
        raise ValueError(f"{name} must be {bounds or 'finite'}, got {_short(value)}")


def check_extra_features(names: list | tuple) -> list[str]:
    """Return names of extra features as a list.

    Raises:
        TypeError: they are no list.
        ValueError: a name is unknown, or stands there twice.
    """
    if not isinstance(names, (list, tuple)):
        raise TypeError(f"extra_features must be a list, got {type(names).__name__}: {_short(names)}")
    for name in names:
        if not isinstance(name, str) or name not in EXTRA_FEATURES:
            raise ValueError(f"extra_features may name {', '.join(EXTRA_FEATURES)}; got {_short(name)}")
    if len(set(names)) != len(names):
        raise ValueError(f"extra_features must name each feature once, got {_short(list(names))}")
    return list(names)


def _check_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise TypeError(f"{name} must be {expected.__name__}, got {type(value).__name__}: {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
