"""What a matrix file may say about other machines that do the work: the fields of `launch` that go with `executor`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from finepruner_lmms.errors import show

LOCAL = "local"
"""The executor that is this process itself."""
SLURM = "slurm"
FOR_JOBS = ("nodes", "gpus_per_node", "partition", "account", "time", "extra", "setup")
"""The fields that say something about jobs only."""
_FORMS = (
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
)
_MOST = 366 * 24 * 60  # minutes
# written by us, or refused by what we do with the jobs; some are fields of their own
_OURS = {
    "account": "launch.account", "partition": "launch.partition", "time": "launch.time", "nodes": "launch.nodes",
    "gpus_per_node": "launch.gpus_per_node", "array": "launch.nodes", "ntasks": "", "ntasks_per_node": "", "output": "",
    "error": "", "job_name": "", "signal": "", "wrap": "", "open_mode": "", "chdir": "", "export": "launch.setup",
}  # fmt: skip
_OPTION = re.compile(r"[a-z][a-z0-9_]*")


def minutes(time: str | int) -> int:
    """A time as SLURM writes it, in minutes, rounded up: `90`, `90:00`, `04:00:00`, `2-0`, `2-12:30`, `2-12:30:00`."""
    found = next((match for form in _FORMS if (match := form.fullmatch(str(time)))), None)
    if found is None:
        raise ValueError(f"got {show(time)}; expected minutes, or a time such as '04:00:00' or '2-00:00:00'")
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    seconds = part.get("seconds", 0) + 60 * part.get("minutes", 0)
    total = -(-seconds // 60) + 60 * part.get("hours", 0) + 24 * 60 * part.get("days", 0)
    if not 1 <= total <= _MOST:
        raise ValueError(f"got {show(time)}, which is {total} minutes; expected a minute to a year")
    return total


def _time(value: Any) -> Any:
    minutes(value if isinstance(value, str) or type(value) is int else repr(value))
    return value


def _one_line(value: str) -> str:
    if not value.strip() or not value.isprintable() or value.startswith("-"):
        raise ValueError(f"got {show(value)}; expected a name")
    return value


def _option_names(value: Any) -> Any:
    """Options of `sbatch` by name: `cpus-per-task` and `cpus_per_task` are one."""
    if not isinstance(value, dict):
        return value
    options = {}
    for name, given in value.items():
        key = str(name).replace("-", "_")
        if not _OPTION.fullmatch(key):
            raise ValueError(f"got {show(name)}; expected long options of sbatch, such as cpus-per-task")
        if key in _OURS:
            raise ValueError(f"{name} is not to be given here{f'; use {_OURS[key]}' if _OURS[key] else ''}")
        if key in options:
            raise ValueError(f"{name} is given twice")
        if isinstance(given, str) and not given.isprintable():
            raise ValueError(f"{name}: got {show(given)}; expected one line")
        options[key] = given
    return options


Name = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]
Time = Annotated[str | int, BeforeValidator(_time)]
Options = Annotated[dict[str, bool | int | float | str], BeforeValidator(_option_names)]
Nodes = Annotated[PositiveInt, Field(le=10_000)]
Gpus = Annotated[NonNegativeInt, Field(le=1024)]
