"""Takes cells as the worker does, and answers each by waiting `FAKE_SECONDS`; `FAKE_LOG` says who did what when."""

import json
import os
import sys
import time
from pathlib import Path

from finepruner_lmms.matrix.attempts import begin, take
from finepruner_lmms.matrix.results import write_result

_SHOWN = (
    "CUDA_VISIBLE_DEVICES",
    "SLURMD_NODENAME",
    "RANK",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "OF_SETUP",
    "SLURM_RESTART_COUNT",
)

plan = json.loads(Path(sys.argv[1]).read_text())
events = Path(sys.argv[1]).with_name("events.jsonl").open("a", buffering=1)
environment = {name: os.environ.get(name) for name in _SHOWN}
job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in os.environ \
    else os.environ["SLURM_JOB_ID"]  # fmt: skip


def say(event, **facts):
    events.write(json.dumps({"event": event, **facts}) + "\n")


def log(what, cell):
    with Path(os.environ["FAKE_LOG"]).open("a") as file:
        entry = {"what": what, "cell": cell["id"], "job": job, "pid": os.getpid(), "at": time.time()}
        file.write(json.dumps(entry | environment) + "\n")


say("loading")
for cell in plan["cells"]:
    claim = take(Path(cell["path"]), cell["attempts"])
    if claim is None:
        continue
    begin(claim, plan["launch"])
    say("start", cell=cell["id"])
    log("start", cell)
    time.sleep(float(os.environ["FAKE_SECONDS"]))
    result = {"id": cell["id"], "metrics": {"exact_match,none": 0.5}, "percent": 50.0, "standard_error": 1.0}
    result |= {"answered": 1, "expected": 1, "seconds": 1.0, "spec": {"task": cell["task"]}}
    write_result(Path(cell["path"]), result, [{"doc_id": 0}])
    log("done", cell)
    say("done", cell=cell["id"])
say("end")
