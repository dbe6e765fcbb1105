"""Judge drafted tokens in vLLM's own speculative decoding: the vLLM plugin.

    vllm serve TARGET --speculative-config '{"model": "DRAFT", "num_speculative_tokens": 8}' \\
        --additional-config '{"hf_judge": {"judge": "user/repo"}}'

vLLM loads `register` in each of its processes (entry point group ``vllm.general_plugins``). Without ``hf_judge`` in the
additional config nothing changes; with it, an engine that cannot be judged is refused at its start, never served
strictly. Drafting, caches, batching and metrics stay vLLM's: the adapters `runner_v1` and `runner_v2` of
`hf_judge.integrations.vllm_plugin` only rewrite the scores of rescued tokens, both with its `flat_rows`. The plugin
relies on vLLM 0.32 and 0.33; this module can be imported without.
"""

from __future__ import annotations

import functools
import logging

from packaging.version import Version

from hf_judge.integrations.vllm_plugin.settings import KEY, JudgeSettings, checked_verifier

logger = logging.getLogger("vllm.hf_judge")  # below vLLM's logger, which has the handlers

SUPPORTED = ("0.32", "0.33")  # minor releases whose hooks tests/test_integrations_vllm_hooks.py has found


def register() -> None:
    """Hook into this process of vLLM; further calls do nothing.

    The front-end process checks the configuration and fixes the commit of a head from the Hub, so that every worker
    reads the same head. A worker checks again and gets a judged rejection sampler.
    """
    from vllm.engine.arg_utils import EngineArgs

    if getattr(EngineArgs.create_engine_config, "is_judged", False):
        return
    EngineArgs.create_engine_config = _checking(EngineArgs.create_engine_config)
    if _version_problem() is None:  # else create_engine_config refuses, and nothing of vLLM is touched
        from vllm.v1.worker.worker_base import WorkerBase

        from hf_judge.integrations.vllm_plugin import metrics

        WorkerBase.__init__ = _installing(WorkerBase.__init__)
        metrics.install()


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
            _adapter(vllm_config).install()
        init(self, vllm_config, *args, **kwargs)

    return judged


def _adapter(vllm_config):
    """Import the adapter of the model runner that this configuration uses; each imports its own half of vLLM."""
    if vllm_config.use_v2_model_runner:
        from hf_judge.integrations.vllm_plugin import runner_v2 as runner
    else:
        from hf_judge.integrations.vllm_plugin import runner_v1 as runner
    return runner


def _version_problem() -> str | None:
    import vllm

    if ".".join(map(str, Version(vllm.__version__).release[:2])) in SUPPORTED:
        return None
    return (
        f"vLLM {vllm.__version__} is not supported by this hf_judge, which supports {', '.join(SUPPORTED)}: "
        f"pip install 'vllm~={SUPPORTED[-1]}.0', or remove '{KEY}' from --additional-config"
    )


def _check_version() -> None:
    problem = _version_problem()
    if problem is not None:
        raise ValueError(problem)
