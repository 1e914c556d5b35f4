"""Libraries that take long to import, loaded when something of them is first used.

To plan a study and to show one takes the names and parameters of methods, not tensors. What these commands import has
its libraries from here: `from finepruner_lmms.lazy import np, torch`; types for annotations come under
`if TYPE_CHECKING`. `tests/test_structure.py` checks that no such command loads one.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Library(ModuleType):
    """Stands for a module. Each name is looked up there when it is used, so that nothing is held twice."""

    def __getattr__(self, name: str) -> Any:
        # a loop asks a hundred thousand times, and `import_module` takes ten times as long as this
        module = sys.modules.get(self.__name__)
        if module is None or getattr(module.__spec__, "_initializing", False):
            module = import_module(self.__name__)
        return getattr(module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(import_module(self.__name__), name, value)


if TYPE_CHECKING:
    import anyio
    import anyio.from_thread
    import httpx
    import numpy as np
    import tenacity
    import torch
else:
    np, torch = Library("numpy"), Library("torch")
    anyio, httpx, tenacity = Library("anyio"), Library("httpx"), Library("tenacity")

__all__ = ["Library", "anyio", "httpx", "np", "tenacity", "torch"]
