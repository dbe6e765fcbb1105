"""Compiles the engine's two forwards, and remembers which shapes are ready."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from hf_judge.ragged.cache import Buffers

N_SHAPES = 512  # shapes that one function may be compiled for; torch gives up at 8 otherwise

# model -> shapes that it was compiled for in this process
_ready: weakref.WeakKeyDictionary[PreTrainedModel, set] = weakref.WeakKeyDictionary()
# model -> function -> idle cache buffers, one for each call that ran at the same time
_buffers: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, list[Buffers]]] = weakref.WeakKeyDictionary()
# (function, options) -> compiled function
_compiled: dict[tuple[Callable, str], Callable] = {}


def take_buffers(model: PreTrainedModel, function: Callable) -> Buffers:
    """Return the buffers that an earlier call left, or new ones if there are none or another call uses them."""
    left = _free(model, function)
    return left.pop() if left else Buffers()


def give_back(model: PreTrainedModel, function: Callable, buffers: Buffers) -> None:
    """Leave buffers for the next call."""
    _free(model, function).append(buffers)


def _free(model: PreTrainedModel, function: Callable) -> list[Buffers]:
    return _buffers.setdefault(model, {}).setdefault(function.__name__, [])


class Compiled:
    """Compiles functions with the options of a call, once in each process.

    Args:
        config: upstream's compile options.
    """

    def __init__(self, config: CompileConfig):
        options = config.to_dict()
        # shapes come in buckets, each compiled for itself: symbolic ones cost 5 to 10% on every step
        options["dynamic"] = bool(options.get("dynamic"))
        self._options = {name: value for name, value in options.items() if value is not None}
        self._key = repr(sorted(self._options.items(), key=lambda item: item[0]))

    def of(self, function: Callable) -> Callable:
        """Return the compiled function."""
        compiled = _compiled.get((function, self._key))
        if compiled is None:
            compiled = _compiled[function, self._key] = _compile(function, self._options)
        if not torch.cuda.is_available():
            return compiled

        def run(*args, **kwargs):
            # a CUDA graph overwrites the outputs of its last run
            torch.compiler.cudagraph_mark_step_begin()
            return _cloned(compiled(*args, **kwargs))

        return run

    def is_new(self, model: PreTrainedModel, function: Callable, shape: tuple) -> bool:
        """Tell whether a model, function and shape still must be compiled; True once for each."""
        ready, key = _ready.setdefault(model, set()), (function.__name__, self._key, *shape)
        if key in ready:
            return False
        ready.add(key)
        return True

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Let torch compile a function for more shapes than its default, during first calls."""
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        accumulated = f"accumulated_{limit}"
        with torch._dynamo.config.patch({limit: N_SHAPES, accumulated: 8 * N_SHAPES}):
            yield


def compile_for(model: PreTrainedModel, draft: PreTrainedModel, config: GenerationConfig) -> Compiled | None:
    """Return what compiles the forwards of this call; None: they are not compiled.

    `compile_config=` compiles on any device. `cache_implementation="static"` alone compiles on accelerators only, as in
    upstream: on a CPU the first answers would wait for a compiler.
    """
    if config.disable_compile or not all(_can_compile(one) for one in (model, draft)):
        return None
    if config.compile_config is not None:
        return Compiled(config.compile_config)
    if config.cache_implementation == "static" and model.device.type != "cpu":
        return Compiled(CompileConfig())
    return None


def _can_compile(model: PreTrainedModel) -> bool:
    quantizer = getattr(model, "hf_quantizer", None)
    offloaded = {"cpu", "disk"} & set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    on_cpu_alone = model.device.type == "cpu" and offloaded == {"cpu"}
    return (quantizer is None or quantizer.is_compileable) and (not offloaded or on_cpu_alone)


def _compile(function: Callable, options: dict) -> Callable:
    if "recompile_limit" in inspect.signature(torch.compile).parameters:  # else `compiling` raises it for a while
        options = options | {"recompile_limit": N_SHAPES}
    return torch.compile(function, **options)


def _cloned(found):
    if isinstance(found, torch.Tensor):
        return found.clone()
    if isinstance(found, tuple):
        return tuple(_cloned(part) for part in found)
    found.logits = found.logits.clone()
    if found.get("hidden_states") is not None:
        found.hidden_states = tuple(None if state is None else state.clone() for state in found.hidden_states)
    return found
