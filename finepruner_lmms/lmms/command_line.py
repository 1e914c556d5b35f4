"""What `lmms_eval --model llava_finepruner --model_args …` gives the model, and how it ends where that is wrong."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_eval.utils import simple_parse_args_string

from finepruner_lmms.errors import Failure, FieldError, show
from finepruner_lmms.output import one_line

_NAME = re.compile(r"(?:^|,)\s*([^=,\s]+)\s*=")
_UNSAID = {"batch_size": ("1", 1)}
"""What lmms-eval passes where its command line says nothing."""


def read_arguments(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model: `--model_args` as lmms-eval reads it, and the options of its command line.

    `FieldError` for what is no `name=value`, and for what is given twice, of which lmms-eval would take the last.
    """
    for name, times in Counter(_NAME.findall(text)).items():
        if times > 1:
            raise FieldError(name, f"is given {times} times in --model_args", fix="give it once")
    try:
        found = dict(simple_parse_args_string(text))
    except ValueError as error:
        part = next((part for part in text.split(",") if "=" not in part), text)
        problem = f"got {show(part.strip())}; expected name=value, such as method=fastv,budget=64"
        raise FieldError("model_args", problem, value=text) from error
    for name, value in options.items():
        if value is None or (name in found and value in _UNSAID.get(name, ())):
            continue
        if name in found and str(found[name]) != str(value):
            problem = f"got {show(found[name])} in --model_args, but --{name} says {show(value)}"
            raise FieldError(name, problem, value=found[name], fix="give one of them")
        found[name] = value
    return found


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A failure that is expected ends lmms-eval's command line with one line and its status.

    lmms-eval itself would print a traceback and end as if all were well. Whoever calls it as a library gets the error.
    """
    try:
        yield
    except Failure as error:
        if not _is_command_line():
            raise
        if os.environ.get("RANK", "0") == "0":  # the first hears of what went wrong on others
            sys.stderr.write("".join(f"{one_line(line)}\n" for line in error.lines()))
        sys.stderr.flush()
        raise SystemExit(error.exit_status) from None


def _is_command_line() -> bool:
    """Whether this process is `python -m lmms_eval` or its console script."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else Path(getattr(main, "__file__", None) or "").name
    return name.replace("-", "_").partition(".")[0] == "lmms_eval"
