"""Runs in a process of its own, in an environment with vLLM: ``python vllm_worker.py JOB.json RESULT.json``.

A job is one engine and the requests it gets, or a list of engine arguments of which each must be refused.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import vllm
from vllm import LLM, EngineArgs, SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import StructuredOutputsParams

from hf_judge.integrations.vllm_settings import checked_verifier


def params(values: dict) -> SamplingParams:
    values = {"temperature": 0.0} | values
    if "regex" in values:
        values["structured_outputs"] = StructuredOutputsParams(regex=values.pop("regex"))
    return SamplingParams(**values)


def offline(engine: dict, rounds: list[dict]) -> dict:
    """The tokens of every round of requests, and vLLM's counts over all of them."""
    llm = LLM(**engine, disable_log_stats=False, seed=0)
    answers, logprobs, counts = [], [], []
    for each in rounds:
        prompts = [{"prompt_token_ids": ids} for ids in each["prompts"]]
        found = [output.outputs[0] for output in llm.generate(prompts, [params(p) for p in each["params"]])]
        answers.append([list(output.token_ids) for output in found])
        logprobs.append(
            [
                [position[token].logprob for token, position in zip(output.token_ids, output.logprobs, strict=True)]
                for output in found
                if output.logprobs
            ]
        )
        metrics = {metric.name: metric for metric in llm.get_metrics()}
        names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
        counts.append({name: metrics[f"vllm:spec_decode_{name}"].value for name in names})
    return {"answers": answers, "logprobs": logprobs, "counts": counts}


def refusals(cases: list[dict]) -> list[str | dict]:
    """What vLLM says to each of these engine arguments, or its additional config where it takes them.

    A case may hold `pretend`, what is not to be had on this machine: "version", another vLLM, or "v2", a configuration
    that would use model runner V2 (which needs Triton).
    """
    said = []
    for case in cases:
        pretend = case.pop("pretend", None)
        with contextlib.ExitStack() as stack:
            if pretend == "version":
                stack.enter_context(mock.patch.object(vllm, "__version__", "0.33.1"))
            try:
                config = EngineArgs(**case).create_engine_config()
                if pretend == "v2":
                    stack.enter_context(mock.patch.object(VllmConfig, "use_v2_model_runner", True))
                    checked_verifier(config)
            except (ValueError, TypeError, OSError) as error:
                said.append(f"{type(error).__name__}: {error}")
            else:
                said.append(config.additional_config)
    return said


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    result = offline(job["engine"], job["rounds"]) if "engine" in job else refusals(job["refusals"])
    Path(sys.argv[2]).write_text(json.dumps(result))
