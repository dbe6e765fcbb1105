"""Read the settings of the vLLM plugin, and check that vLLM's configuration and the head go with them.

This module can be imported without vLLM.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from hf_judge.head.compatibility import check_target
from hf_judge.head.config import check_threshold
from hf_judge.head.judge_head import JudgeHead
from hf_judge.upstream.forward import commit_of
from hf_judge.verify.judge import JudgeCandidateVerifier

KEY = "hf_judge"
WITHOUT_SAMPLER = ("extract_hidden_states",)  # speculative methods that verify nothing


@dataclass(frozen=True)
class JudgeSettings:
    """Holds the values of ``--additional-config '{"hf_judge": {...}}'``."""

    judge: str
    """A directory or a repository on the Hub."""
    threshold: float | None = None
    """Between 0 (every token is accepted) and 1 (none is rescued); None: the head's own."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    subfolder: str | None = None
    """The folder of the repository or directory that holds the head."""
    strict_base: bool = False
    """Refuse a target that is not known to be the head's own, instead of warning."""
    rescue_stop_tokens: bool = False
    """Whether the judge may end an answer earlier than the target would."""

    def __post_init__(self):
        expected = {"judge": str, "revision": str | None, "subfolder": str | None}
        expected |= {"strict_base": bool, "rescue_stop_tokens": bool}
        for name, kind in expected.items():
            if not isinstance(getattr(self, name), kind):
                wanted = getattr(kind, "__name__", "a string or null")
                raise TypeError(f"{KEY}.{name}: expected {wanted}, got {getattr(self, name)!r:.80}")
        if self.threshold is not None:
            check_threshold(self.threshold)

    @classmethod
    def of(cls, additional_config: object) -> JudgeSettings | None:
        """Read the settings in vLLM's additional config; None: there is no judge in it.

        Raises:
            ValueError: a key is unknown or missing.
            TypeError: a value has the wrong type.
        """
        if not isinstance(additional_config, dict):  # another plugin's own object
            return None
        for key in additional_config:
            if key != KEY and re.sub("[^a-z]", "", str(key).lower()) in ("hfjudge", "judge", "judgeconfig"):
                raise ValueError(f"additional_config: unknown key {key!r:.80}, did you mean '{KEY}'?")
        if KEY not in additional_config:
            return None
        values = additional_config[KEY]
        if not isinstance(values, dict):
            raise TypeError(f'{KEY}: expected an object like {{"judge": "user/repo"}}, got {values!r:.80}')
        if "max_rescue_fraction" in values:
            raise ValueError(
                f"{KEY}.max_rescue_fraction is not supported in vLLM, which does not count rescues per answer: raise "
                "the threshold, or use generate() of hf_judge"
            )
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown or "judge" not in values:
            problem = f"unknown keys {unknown}" if unknown else "'judge' is missing"
            raise ValueError(f"{KEY}: {problem:.200}; it may hold {', '.join(known)}, of which 'judge' is required")
        return cls(**values)


def load_verifier(settings: JudgeSettings) -> JudgeCandidateVerifier:
    """Load the judge of these settings, with the strict reader.

    Raises:
        ValueError: there is no head, or it reads what vLLM does not return.
        OSError: the repository cannot be read.
    """
    head = JudgeHead.from_pretrained(
        settings.judge, revision=settings.revision, subfolder=settings.subfolder, strict_base=settings.strict_base
    )
    if head.config.hidden_state != "post_norm":
        raise ValueError(
            f"the head '{settings.judge}' reads the {head.config.hidden_state} state; vLLM returns the post_norm one "
            "only (the input of the LM head): train a head with hidden_state='post_norm'"
        )
    if head.config.extra_features:
        names = ", ".join(head.config.extra_features)
        raise ValueError(
            f"the head '{settings.judge}' reads numbers beside the state ({names}), which the vLLM plugin does not "
            "compute: train one without extra features"
        )
    return JudgeCandidateVerifier(head, settings.threshold, rescue_stop_tokens=settings.rescue_stop_tokens)


def checked_verifier(vllm_config) -> JudgeCandidateVerifier | None:
    """Load the judge of a vLLM configuration, and check that both fit.

    Args:
        vllm_config: `vllm.config.VllmConfig` of the target.

    Returns:
        The verifier; None where the configuration names no judge.

    Raises:
        ValueError: vLLM would not judge with this configuration, or the head does not fit the target.
        TypeError: a setting has the wrong type.
        OSError: the head cannot be read.
    """
    settings = JudgeSettings.of(vllm_config.additional_config)
    if settings is None:
        return None
    speculative, model = vllm_config.speculative_config, vllm_config.model_config
    if speculative is None:
        raise ValueError(
            f"{KEY} judges drafted tokens, and this engine drafts none: add --speculative-config, for example "
            '\'{"model": "user/draft", "num_speculative_tokens": 8}\''
        )
    if speculative.method in WITHOUT_SAMPLER:
        raise ValueError(f"the speculative method '{speculative.method}' verifies no tokens: {KEY} cannot judge there")
    if speculative.rejection_sample_method != "standard":
        raise ValueError(
            f"rejection_sample_method='{speculative.rejection_sample_method}' is a rule of its own: {KEY} needs "
            "'standard'"
        )
    if getattr(vllm_config, "watermark_config", None) is not None:
        raise ValueError(
            f"a watermark lies in what the sampler draws, and {KEY} keeps tokens that were not drawn: serve without "
            f"--watermark-config, or without {KEY}"
        )
    if model.logprobs_mode.startswith("processed"):
        raise ValueError(
            f"logprobs_mode='{model.logprobs_mode}' would show rewritten rows for rescued tokens: with {KEY} use "
            "raw_logprobs or raw_logits"
        )
    verifier = load_verifier(settings)
    commit = commit_of(model.hf_config)
    check_target(verifier.head, model.get_hidden_size(), model.model, commit)
    return verifier
