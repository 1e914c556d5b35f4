"""What a recording takes for granted of a model: its modules, where its weights lie, and that nothing hooks into it.

A replay runs none of the model's Python, so each call makes sure first that all is as it was; in a fraction of a
millisecond, because a GPU may be waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_ATTENTION = ("sdpa", "eager")
_CAPTURING = "transformers.utils.output_capturing"
_OWN = frozenset(("forward", "_hf_hook", "_compiled_call_impl"))  # on an object itself only where somebody put it there


class Snapshot:
    """Some parts of a model as they were, with all that is in them; of `callers` only themselves.

    `config` is the parts' own configuration, `what` their name in a sentence.
    """

    def __init__(self, what: str, parts: Sequence[nn.Module], config: Any, callers: Sequence[nn.Module] = ()) -> None:
        modules = [*callers, *(module for part in parts for module in part.modules())]
        self._what, self._config = what, config
        self._device = next(parts[-1].parameters()).device
        # not the modules themselves: who is done with a model must not find it held here
        self._modules = [(type(module), vars(module)) for module in modules]
        self._children = [(found, tuple(found.values())) for _, own in self._modules if (found := own["_modules"])]
        owners = [own["_parameters"] for _, own in self._modules]
        self._weights = [(own, name, p, p.data_ptr()) for own in owners for name, p in own.items() if p is not None]
        self._reason = self._lasting_reason()

    def holds(self) -> bool:
        """Whether the model has the same modules, and its weights lie where they lay."""
        for children, then in self._children:
            if tuple(children.values()) != then:
                return False
        return all(own[name] is p and p.data_ptr() == at for own, name, p, at in self._weights)

    def why_not(self) -> str | None:
        """Why the model cannot be recorded as it is now; None if it can."""
        if self._reason is not None:
            return self._reason
        if (attention := self._config._attn_implementation) not in _ATTENTION:
            return f"the attention {attention!r} reads lengths back from the device"
        if torch.is_autocast_enabled(self._device.type):
            return "autocast is on"
        for kind, own in self._modules:
            # hundreds of modules, asked before each batch: what is seldom there is looked for in the fastest way
            unusual = own["training"] or own["_forward_hooks"] or own["_forward_pre_hooks"] or not _OWN.isdisjoint(own)
            if unusual and (reason := _reason(kind.__name__, own)) is not None:
                return reason
        return None

    def _lasting_reason(self) -> str | None:
        if len({p.device for _, _, p, _ in self._weights}) > 1 or self._device.type == "meta":
            return f"{self._what} stands on several devices"
        for kind, _ in self._modules:
            if issubclass(kind, nn.Linear) and kind is not nn.Linear:
                return f"its layers are {kind.__module__}.{kind.__name__}, which were not tried"
        return None


def _hooked(own: dict[str, Any]) -> bool:
    """Whether a hook is on a module, other than those by which transformers hands out hidden states.

    It leaves these on for good once it was asked; what they hand out inside a recording is recorded.
    """
    hooks = (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values())
    return any(getattr(hook, "__module__", None) != _CAPTURING for hook in hooks)


def _reason(name: str, own: dict[str, Any]) -> str | None:
    if own["training"]:
        return "it is in training mode"
    if _hooked(own) or "_hf_hook" in own:
        return f"a hook is on its {name}, which a recording would pass by"
    if own.get("_compiled_call_impl") is not None:
        return f"its {name} is compiled"
    return f"the forward of its {name} was replaced" if "forward" in own else None
