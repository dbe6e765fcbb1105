"""Makes a second object over the same weights, whose class or config can change without touching the user's object."""

from __future__ import annotations

import functools
import types

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
