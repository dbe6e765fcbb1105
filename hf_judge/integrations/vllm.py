"""The vLLM plugin: judged verification in vLLM's own speculative decoding.

    vllm serve TARGET --speculative-config '{"model": "DRAFT", "num_speculative_tokens": 8}' \\
        --additional-config '{"hf_judge": {"judge": "user/repo"}}'

vLLM loads `register` in each of its processes (entry point group ``vllm.general_plugins``). Without ``hf_judge`` in the
additional config nothing changes; with it, whatever cannot be judged is refused when the engine starts, never served
strictly. vLLM's drafting, caches, batching and metrics stay its own: `vllm_sampler` only rewrites the rows of rescued
tokens. Importable without vLLM. Relies on vLLM 0.32, model runner V1.
"""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import dataclass, fields

from packaging.version import Version

from hf_judge.binding import check_target
from hf_judge.config import check_threshold
from hf_judge.head import JudgeHead
from hf_judge.upstream.forward import commit_of
from hf_judge.verify import JudgeCandidateVerifier

logger = logging.getLogger("vllm.hf_judge")  # below vLLM's logger, which has the handlers

KEY = "hf_judge"
SUPPORTED = ("0.32",)  # minor releases that `make test-vllm` has passed on
WITHOUT_SAMPLER = ("extract_hidden_states",)  # speculative methods that verify nothing


@dataclass(frozen=True)
class JudgeSettings:
    """What ``--additional-config '{"hf_judge": {...}}'`` may hold."""

    judge: str
    """A directory or a repository on the Hub."""
    threshold: float | None = None
    """Between 0 (lenient) and 1 (strict); None: the head's own."""
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
        """The settings in vLLM's additional config; None: it does not ask for a judge.

        Raises:
            ValueError: unknown or missing keys.
            TypeError: a value of the wrong type.
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
    """The judge of these settings, read by the strict loader.

    Raises:
        ValueError: no head, or one that reads what vLLM does not hand out.
        OSError: the repository cannot be read.
    """
    head = JudgeHead.from_pretrained(
        settings.judge, revision=settings.revision, subfolder=settings.subfolder, strict_base=settings.strict_base
    )
    if head.config.hidden_state != "post_norm":
        raise ValueError(
            f"the head '{settings.judge}' reads the {head.config.hidden_state} state; vLLM hands out the post_norm one "
            "only (the input of the LM head): train a head with hidden_state='post_norm'"
        )
    if head.config.draft_hidden_size is not None:
        raise ValueError(
            f"the head '{settings.judge}' reads the draft's state beside the target's, which vLLM does not hand out: "
            "train one without draft features"
        )
    if head.config.extra_features:
        names = ", ".join(head.config.extra_features)
        raise ValueError(
            f"the head '{settings.judge}' reads numbers beside the state ({names}), which the vLLM plugin does not "
            "compute: train one without extra features"
        )
    return JudgeCandidateVerifier(head, settings.threshold, rescue_stop_tokens=settings.rescue_stop_tokens)


def checked_verifier(vllm_config) -> JudgeCandidateVerifier | None:
    """The judge that a vLLM configuration asks for, once everything about both is known to fit.

    Args:
        vllm_config: `vllm.config.VllmConfig`, of the target.

    Returns:
        The verifier; None where no judge is asked for.

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
    if vllm_config.use_v2_model_runner:
        raise ValueError(
            f"{KEY} supports vLLM's model runner V1 and this engine would use V2: set VLLM_USE_V2_MODEL_RUNNER=0 in "
            "the environment"
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


def register() -> None:
    """Hook into this process of vLLM; may be called again and again.

    The front-end process checks the configuration and fixes the commit of a head from the Hub, so that every worker
    reads the same one. A worker checks again and gets a judged rejection sampler.
    """
    from vllm.engine.arg_utils import EngineArgs

    if getattr(EngineArgs.create_engine_config, "is_judged", False):
        return
    EngineArgs.create_engine_config = _checking(EngineArgs.create_engine_config)
    if _version_problem() is None:  # else create_engine_config refuses, and nothing of vLLM is touched
        from vllm.v1.worker.worker_base import WorkerBase

        WorkerBase.__init__ = _installing(WorkerBase.__init__)


def _checking(create_engine_config):
    @functools.wraps(create_engine_config)
    def judged(self, *args, **kwargs):
        if JudgeSettings.of(self.additional_config) is not None:
            _check_version()  # before anything else of this vLLM is relied on
        vllm_config = create_engine_config(self, *args, **kwargs)
        verifier = checked_verifier(vllm_config)
        if verifier is not None:
            source = verifier.head.source
            if source is not None:
                settings = vllm_config.additional_config[KEY] | {"revision": source.rpartition("@")[2]}
                vllm_config.additional_config = vllm_config.additional_config | {KEY: settings}
            logger.info(
                "hf_judge: drafted tokens are judged by %s at threshold %g: output may differ from the target's own",
                source or vllm_config.additional_config[KEY]["judge"],
                verifier.threshold,
            )
        return vllm_config

    judged.is_judged = True
    return judged


def _installing(init):
    @functools.wraps(init)
    def judged(self, vllm_config, *args, **kwargs):
        if checked_verifier(vllm_config) is not None:
            from hf_judge.integrations.vllm_sampler import install

            install()
        init(self, vllm_config, *args, **kwargs)

    return judged


def _version_problem() -> str | None:
    import vllm

    if ".".join(map(str, Version(vllm.__version__).release[:2])) in SUPPORTED:
        return None
    return (
        f"vLLM {vllm.__version__} is not supported by this hf_judge, which knows {', '.join(SUPPORTED)}: "
        f"pip install 'vllm~={SUPPORTED[-1]}.0', or remove '{KEY}' from --additional-config"
    )


def _check_version() -> None:
    problem = _version_problem()
    if problem is not None:
        raise ValueError(problem)
