"""What the plugin relies on in vLLM's sources, read without importing them.

It reads the vLLM that is installed, and, if the variable HF_JUDGE_VLLM_SOURCES names folders (separated as in PATH),
the unpacked wheels there: so the hooks of a release that cannot run on this machine can be checked. Skipped
without either.
"""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Class and method, and the arguments that the plugin passes by position, in their order.
HOOKS = {
    "engine/arg_utils.py": {"EngineArgs.create_engine_config": ["self"]},
    "v1/core/sched/scheduler.py": {
        "Scheduler.update_from_output": ["self", "scheduler_output", "model_runner_output"],
        "Scheduler.make_stats": ["self"],
    },
    "v1/metrics/loggers.py": {
        "StatLoggerManager.__init__": ["self", "vllm_config"],
        "StatLoggerManager.record": ["self", "scheduler_stats"],
    },
    "v1/worker/worker_base.py": {"WorkerBase.__init__": ["self", "vllm_config"]},
    "v1/worker/gpu_model_runner.py": {
        "GPUModelRunner.__init__": ["self", "vllm_config", "device"],
        "GPUModelRunner.sample_tokens": ["self", "grammar_output"],
    },
    "v1/sample/rejection_sampler.py": {
        "RejectionSampler.__init__": ["self", "sampler", "spec_config", "device"],
        "RejectionSampler.forward": ["self", "metadata", "draft_probs", "logits", "sampling_metadata"],
        "RejectionSampler.apply_logits_processors": ["self", "logits", "sampling_metadata", "metadata"],
    },
    "v1/worker/gpu/model_runner.py": {
        "GPUModelRunner.load_model": ["self"],
        "GPUModelRunner.sample": ["self", "hidden_states", "input_batch", "grammar_output"],
        "GPUModelRunner.sample_tokens": ["self", "grammar_output"],
    },
    "v1/worker/gpu/model_states/interface.py": {"ModelState.custom_sampler": ["self", "sampler"]},
    "v1/worker/gpu/spec_decode/rejection_sampler.py": {
        "RejectionSampler.__init__": ["self", "sampler", "spec_config", "device"],
        "RejectionSampler.__call__": ["self", "logits", "input_batch", "draft_logits", "invalid_drafts"],
    },
    "v1/worker/gpu/sample/logits_processor/interface.py": {
        "LogitsProcessor.add_request": ["self", "req_idx", "sampling_params"],
        "LogitsProcessor.apply_staged_writes": ["self"],
        "LogitsProcessor.apply": ["self", "logits", "ctx"],
    },
}
# Names whose meaning the adapters rely on; a release without one of them needs a new look.
NAMES = {
    "v1/worker/gpu_model_runner.py": [
        "rejection_sampler", "execute_model_state", "spec_decode_metadata", "sample_hidden_states",
    ],
    "v1/worker/gpu/model_runner.py": ["rejection_sampler", "batch_sharder", "logits_indices", "is_last_pp_rank"],
    "v1/worker/gpu/sample/sampler.py": ["logits_processors", "req_states", "needs_logits_processing"],
    "v1/worker/gpu/sample/logits_processor/interface.py": ["input_ids", "expanded_idx_mapping", "expanded_local_pos"],
    "v1/worker/gpu/async_utils.py": ["get_output"],
    "v1/metrics/stats.py": ["kv_connector_stats"],
    "config/vllm.py": ["use_v2_model_runner", "additional_config"],
}  # fmt: skip


def sources() -> list[Path]:
    named = [Path(folder) for folder in os.environ.get("HF_JUDGE_VLLM_SOURCES", "").split(os.pathsep) if folder]
    installed = find_spec("vllm")
    return [folder / "vllm" for folder in named] + ([Path(installed.origin).parent] if installed else [])


pytestmark = pytest.mark.skipif(not sources(), reason="vLLM is not installed: make test-vllm")


@pytest.fixture(params=sources(), ids=str)
def source(request) -> Path:
    return request.param


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", HOOKS)
def test_hooks(source, file):
    found = {
        f"{owner.name}.{method.name}": [argument.arg for argument in method.args.args]
        for owner in read(source / file).body
        if isinstance(owner, ast.ClassDef)
        for method in owner.body
        if isinstance(method, ast.FunctionDef)
    }
    for name, arguments in HOOKS[file].items():
        assert found.get(name, [])[: len(arguments)] == arguments, name


@pytest.mark.parametrize("file", NAMES)
def test_names(source, file):
    found = set()
    for node in ast.walk(read(source / file)):
        found |= {getattr(node, field) for field in ("attr", "arg", "id", "name") if hasattr(node, field)}
    assert set(NAMES[file]) <= found


def test_the_judge_is_the_last_constraint(source):
    """A sampler runs processors before the thinking budget and before what only shapes the distribution."""
    tree = read(source / "v1/worker/gpu/sample/sampler.py")
    body = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "apply_sampling_params")
    text = ast.unparse(body)
    order = [
        "processor.apply(",
        "thinking_budget_state.apply(",
        "apply_temperature(",
        "apply_min_p(",
        "apply_top_k_top_p(",
    ]
    places = [text.index(step) for step in order]
    assert places == sorted(places)
