"""Copies, moves and watches modules and tensors by what torch and accelerate do not promise to keep."""

from __future__ import annotations

import functools
import types

import torch
from torch import nn

# what nn.Module keeps in dicts of its own: copied, so that adding a module or a hook to the view leaves the original
# alone
_OWN_DICTS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


def shared_view(module: nn.Module, cls: type | None = None) -> nn.Module:
    """Return a new object with the parameters, buffers and submodules of `module`; only the outermost object is new.

    Its class or config can change without touching the user's object.

    Args:
        module: any module.
        cls: the class of the view; default: that of `module`.

    Returns:
        The view. Weights are shared: training or moving one moves the other.
    """
    view = object.__new__(cls or type(module))
    view.__dict__.update(module.__dict__)
    for name in _OWN_DICTS:
        if name in module.__dict__:
            view.__dict__[name] = module.__dict__[name].copy()
    if "_hf_hook" in module.__dict__ and isinstance(module.__dict__.get("forward"), functools.partial):
        # accelerate (1.x) binds its offloading forward to the object it was put on
        view.forward = functools.partial(module.forward.func, view)
        if isinstance(module._old_forward, types.MethodType):
            view._old_forward = types.MethodType(module._old_forward.__func__, view)
    return view


class KeepsDtype(nn.Module):
    """A module whose numbers move between devices with the model that it hangs on, but keep their dtype.

    `Module.to`, `half()` and their kin all go through `_apply` (torch 2.6 to 2.15).
    """

    def _apply(self, fn, recurse=True):
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            found = fn(tensor)
            cast = tensor.is_floating_point() and found.dtype != tensor.dtype
            return tensor.to(found.device) if cast and found.device.type != "meta" else found.to(tensor.dtype)

        return super()._apply(moved, recurse)


def version_of(tensor: torch.Tensor) -> int | None:
    """Return how often a tensor was changed in place; None: torch does not count (tensors of inference mode)."""
    return None if tensor.is_inference() else tensor._version
