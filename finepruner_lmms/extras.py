"""Optional packages: what is not installed is one line that names the extra."""

from __future__ import annotations

import importlib
from typing import Any

from finepruner_lmms.errors import FieldError


def need(module: str, extra: str, field: str) -> Any:
    """The module; `FieldError` of what asked for it where it is not installed, or does not load."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        problem = f"needs the package {module.partition('.')[0]}, which cannot be imported here ({error})"
        raise FieldError(field, problem, value=module, fix=f"pip install 'finepruner-lmms[{extra}]'") from None
