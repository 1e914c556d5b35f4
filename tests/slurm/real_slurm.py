"""A real SLURM on this machine: munged, slurmctld and two slurmd, in a folder of its own and for root alone.

Nothing of the system is touched: munge has a key and a socket of its own, the daemons free ports, the two nodes are
virtual. Their GPUs are clones of the null device: SLURM hands them out and sets `CUDA_VISIBLE_DEVICES`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from finepruner_lmms.matrix.launch import tethered

_DAEMONS = ("munged", "slurmctld", "slurmd")
_CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_GPUS = 4

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# cred_expire is also how long a job that was put back waits before it may start again
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
MpiDefault=none
KillWait=10
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last} CPUs=16 RealMemory=8000 Gres=gpu:{gpus} \
State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no SLURM here, or nothing."""
    lacking = [name for name in (*_DAEMONS, *_CLIENTS) if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_gpu(Path(folder) / "gpu")
        except OSError as error:
            return f"no device can be made here, and SLURM's GPUs are devices ({error.strerror})"
    return ""


class NoSlurm(RuntimeError):
    """The daemons did not come up; the text says which, and why."""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Start the daemons; the path of `slurm.conf`, for `SLURM_CONF`. They and all jobs are gone afterwards."""
    folder.chmod(0o755)
    conf = _configure(folder)
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": _PATH}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / f"{Path(command[0]).name}{len(daemons)}.out").open("wb") as out:
            daemons.append(
                subprocess.Popen(
                    tethered(list(command)),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    try:
        munge = [
            f"--{name}={folder}/munge.{name}" for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")
        ]
        start("munged", "--foreground", "--force", *munge)
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        start("slurmctld", "-D", "-f", str(conf))
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-f", str(conf), "-N", node)
        _wait(lambda: _idle(environment) == 2, "two idle nodes", folder)
        yield conf
    finally:
        subprocess.run(
            ["scancel", "--signal=KILL", "--full", "--user=root"], env=environment, capture_output=True, timeout=20
        )
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=20)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _configure(folder: Path) -> Path:
    for name in ("state", "spool-n1", "spool-n2", "gpus"):
        (folder / name).mkdir()
    key = folder / "munge.key-file"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for number in range(_GPUS):
        _make_gpu(folder / "gpus" / f"gpu{number}")
    host = socket.gethostname().partition(".")[0]
    controller, first = _free_port(), _two_free_ports()
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(host=host, folder=folder, controller=controller, first=first, last=first + 1, gpus=_GPUS)
    )
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpus/gpu[0-{_GPUS - 1}]\n")
    return conf


def _make_gpu(path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # a clone of the null device


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _two_free_ports() -> int:
    while True:
        first = _free_port()
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", first + 1))
            return first


def _idle(environment: dict[str, str]) -> int:
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "gpu", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=20
    )
    return found.stdout.split().count("idle")


def _wait(ready, what: str, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in sorted(folder.glob("*.log*"))
            )
            raise NoSlurm(f"{what} did not come within {seconds:g} s\n{logs}")
        time.sleep(0.05)
