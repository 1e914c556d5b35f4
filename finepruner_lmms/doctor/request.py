"""What `doctor` is to look at, as given on the command line."""

from __future__ import annotations

from pathlib import Path

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data.jobs import task_jobs
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.doctor.report import Request
from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.files import expand_home


def request(data: str | None, pretrained: str | None, tasks: str) -> Request:
    """`tasks`: names separated by commas, or nothing for all. `FieldError` or `DataError` naming the option."""
    names = [job.name for job in task_jobs(tasks.split(","), {})] if tasks else list(BENCHMARKS)
    data = None if data is None else expand_home(data)
    if data is not None and data not in ("hub", *MINIATURES) and not Path(data).is_dir():
        raise FieldError("data", f"{show(data)} is neither 'hub', 'demo' nor an existing folder", value=data)
    return Request("hub" if data is None and tasks else data, names, pretrained)
