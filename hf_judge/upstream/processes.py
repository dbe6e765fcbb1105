"""Keeps the processes that run one sharded target together in agreement.

Under tensor parallelism every process runs the whole decoding loop, and each forward of the target is a collective: two
processes that disagree about one token wait for each other for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel

from hf_judge.upstream.private_names import is_deepspeed_zero3_enabled, is_fsdp_managed_module, private


class Ranks:
    """The processes of one tensor-parallel group; the first of them decides.

    A sharded target gives every process the same logits and states bit for bit. Three things need not be the same:
    random draws, the drafts of a model that each process has a copy of, and criteria that look at a clock. With these
    settled by the first process, the answers are its answers everywhere.

    Args:
        group: the processes; None: this one alone, so that nothing has to be agreed on.
        device: device from which the group's tensors are sent; random draws there are shared too.
        draft_alone: each process has a whole draft: the first one drafts and verifies, the others receive.

    Attributes:
        alone: whether this process runs the target on its own.
        decides: whether this process drafts and verifies itself.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
        *,
        draft_alone: bool = True,
    ):
        self._group, self._device = group, torch.device(device)
        self.alone = group is None
        self._first = None if group is None else dist.get_global_rank(group, 0)
        self._is_first = group is None or dist.get_rank() == self._first
        self.decides = self._is_first or not draft_alone

    @classmethod
    def of(cls, model: PreTrainedModel, *, draft_alone: bool) -> Ranks:
        """Return the processes that hold the shards of `model` after `from_pretrained` (transformers 5.19 to 5.24)."""
        if (model.tp_size or 1) == 1:
            return cls()
        mesh = private(model, "_device_mesh")["tp"]
        return cls(mesh.get_group(), model.get_input_embeddings().weight.device, draft_alone=draft_alone)

    def agree(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the first process's `tensor`, which has the same shape and dtype in every process."""
        if self.alone:
            return tensor
        shared = tensor.to(self._device, copy=True).contiguous()
        dist.broadcast(shared, self._first, group=self._group)
        return shared.to(tensor.device)

    def agree_on_width(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the first process's `tensor`, (batch, n), where n may differ between processes."""
        if self.alone:
            return tensor
        width = int(self.agree(torch.tensor([tensor.shape[1]])))
        return self.agree(torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])))

    @contextlib.contextmanager
    def one_random_stream(self) -> Iterator[None]:
        """Let every process draw what the first would have drawn alone, whatever their seeds are.

        Afterwards the first process's stream has moved on and the others' are as they were before.
        """
        if self.alone:
            yield
            return
        streams = [(torch.random.get_rng_state, torch.random.set_rng_state)]
        if self._device.type != "cpu":
            module = torch.get_device_module(self._device)
            streams.append((module.get_rng_state, module.set_rng_state))
        own = [get() for get, _ in streams]
        for (_, put), state in zip(streams, own, strict=True):
            put(self.agree(state))
        try:
            yield
        finally:
            if not self._is_first:
                for (_, put), state in zip(streams, own, strict=True):
                    put(state)


def is_sharded(model: torch.nn.Module) -> bool:
    """Tell whether processes with prompts of their own gather this model's weights for each forward (FSDP 1 and 2)."""
    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


def waits_for_others(model: PreTrainedModel, synced_gpus: bool | None) -> bool:
    """Tell whether other processes wait for each forward of this model.

    Args:
        synced_gpus: what the caller of `generate()` said; None: found out as upstream does (5.19 to 5.24), and also for
            torch's own `fully_shard`, which upstream does not look for.
    """
    if synced_gpus is not None:
        return synced_gpus
    shared = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model) or is_sharded(model)
    return shared and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
