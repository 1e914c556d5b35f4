"""What `finepruner doctor` looks at on the machine: versions, plug-ins, devices, memory, threads, caches."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from finepruner_lmms.doctor.check import Check, writable
from finepruner_lmms.errors import FieldError

_DISTRIBUTION = "finepruner-lmms"
_LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "lmms_eval",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "pyarrow",
    "pillow",
)
_ENOUGH_DISK = 5e9  # bytes: results, answers, and the Arrow copies of small benchmarks


def machine_checks() -> Iterator[Check]:
    """All of them, the cheap ones first."""
    yield from versions()
    yield from program()
    yield from registered()
    yield from methods()
    yield from devices()
    yield memory()
    yield disk(Path.cwd())
    yield threads()
    yield from caches()


def tested_versions() -> Mapping[str, str]:
    """The versions that the tests were run with, from `constraints.txt`: inside the package, or beside a checkout."""
    package = Path(__file__).parents[1]
    for file in (package / "constraints.txt", package.parent / "constraints.txt"):
        if file.is_file():
            pins = (line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
            return {canonicalize_name(name): version.strip() for name, version in pins}
    return {}


def versions() -> Iterator[Check]:
    """Python and the libraries that compute, against what the package asks for and what it was tested with."""
    python = platform.python_version()
    try:
        about = metadata.metadata(_DISTRIBUTION)
        requires = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        text = "the package is not installed, so lmms-eval cannot find llava_finepruner"
        yield Check("finepruner-lmms", "missing", text, "in its checkout", pip("-e", "."))
        return
    wanted = Requirement(f"python{about['Requires-Python'] or ''}").specifier
    inside = wanted.contains(python)
    yield Check("python", "ok" if inside else "missing", python, "" if inside else f"install Python {wanted}")
    ranges = {canonicalize_name(r.name): r.specifier for r in map(Requirement, requires)}
    tested = tested_versions()
    for name in _LIBRARIES:
        key = canonicalize_name(name)
        pin = tested.get(key, "")
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "missing", "not installed", command=pip(f"{name}=={pin}" if pin else name))
            continue
        repair = pip(f"{name}=={pin}") if pin else ""
        if key in ranges and not ranges[key].contains(found, prereleases=True):
            yield Check(name, "missing", f"{found}, but the package asks for {ranges[key]}", command=repair)
        elif pin and Version(found).public != pin:
            yield Check(name, "warning", f"{found}, tested with {pin}", "if results are odd", repair)
        else:
            yield Check(name, "ok", found)


def pip(*what: str) -> str:
    """The line that installs something into this very environment."""
    return shlex.join([sys.executable, "-m", "pip", "install", *what])


def program() -> Iterator[Check]:
    """Whether `finepruner`, as printed commands begin, is this environment's."""
    folder = Path(sys.executable).parent
    found = shutil.which("finepruner")
    if found is not None and Path(found).parent.resolve() == folder.resolve():
        yield Check("command", "ok", found)
    elif (folder / "finepruner").is_file():
        text = f"`finepruner` is {f'another one, {found}' if found else 'not on PATH'}, and commands shown here need it"
        yield Check("command", "warning", text, command=f'export PATH={shlex.quote(str(folder))}:"$PATH"')


def registered() -> Iterator[Check]:
    """Whether lmms-eval knows the model.

    It swallows whatever goes wrong in any package's entry point, and then leaves out those after it.
    """
    from lmms_eval.models import MODEL_REGISTRY_V2

    known = "llava_finepruner" in MODEL_REGISTRY_V2.list_model_names()
    broken = []
    for point in metadata.entry_points(group="lmms_eval.models"):
        try:
            payload = point.load()
            payload() if callable(payload) and not isinstance(payload, type) else payload
        except Exception as error:  # noqa: BLE001 - other people's code may raise anything; it is reported
            owner = point.dist.name if point.dist is not None else "an unknown package"
            broken.append((point, owner, f"{type(error).__name__}: {error}"))
    if known:
        yield Check("lmms-eval model", "ok", "llava_finepruner is registered")
    elif not broken:
        text = "lmms-eval does not know llava_finepruner"
        yield Check("lmms-eval model", "missing", text, "pip install the package again: its entry point is not there")
    for point, owner, reason in broken:
        effect = "" if known else ", and lmms-eval does not know llava_finepruner because of it"
        text = f"the plug-in {point.name!r} of {owner!r} fails ({reason}){effect}"
        yield Check("lmms-eval plug-ins", "warning" if known else "missing", text, f"repair or uninstall {owner}")


def methods() -> Iterator[Check]:
    """Whether the methods of other packages can be loaded."""
    from finepruner_lmms.plugins import VARIABLE, load_files, load_plugins, named_files, plugins

    try:
        load_plugins()
    except RuntimeError as error:
        yield Check("method plug-ins", "missing", str(error), "repair or uninstall it")
        return
    try:
        load_files(named_files(), VARIABLE)
    except FieldError as error:
        yield Check("method plug-ins", "missing", str(error), f"or take it out of {VARIABLE}")
        return
    if found := [*(point.name for point in plugins()), *(file.name for file in named_files())]:
        yield Check("method plug-ins", "ok", ", ".join(found))


def devices() -> Iterator[Check]:
    """The GPUs."""
    import torch

    if not torch.cuda.is_available():
        text = "no GPU that torch can use: everything runs on the CPU"
        yield Check("gpu", "warning", text, "fine for the demo model; for LLaVA-1.5 check nvidia-smi and torch's build")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Check(f"gpu {number}", "ok", f"{about.name}, {about.total_memory / 1e9:.1f} GB")


def memory() -> Check:
    """The memory that is free now."""
    free = free_memory()
    status, fix = (
        ("ok", "") if free > 2e9 else ("warning", "end other programs: a worker needs about 2 GB besides weights")
    )
    return Check("memory", status, f"{free / 1e9:.1f} GB free", fix)  # type: ignore[arg-type]


def free_memory() -> float:
    """Bytes that can be had without swapping, as the kernel estimates."""
    info = Path("/proc/meminfo")
    if info.exists() and (match := re.search(r"MemAvailable:\s+(\d+) kB", info.read_text())):
        return 1024 * int(match[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def disk(folder: Path) -> Check:
    """The room for results."""
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    return Check("disk", "ok", text) if free > _ENOUGH_DISK else Check("disk", "warning", text, "free some space")


def threads() -> Check:
    """Threads of a CPU run. The runner sets what is not set; what the environment says wins."""
    cores = len(os.sched_getaffinity(0))
    given = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    text = f"{cores} cores; " + (
        ", ".join(f"{k}={v}" for k, v in given.items() if v is not None) or "set by the runner"
    )
    number = given["OMP_NUM_THREADS"] or ""
    if number.isdecimal() and int(number) > cores:
        return Check("cpu threads", "warning", text, f"OMP_NUM_THREADS: at most {cores}, divided by the processes")
    if given["OMP_WAIT_POLICY"] == "ACTIVE" or given["GOMP_SPINCOUNT"] not in (None, "0"):
        fix = "threads that spin while they wait slow each other down: OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0"
        return Check("cpu threads", "warning", text, fix)
    return Check("cpu threads", "ok", text)


def caches() -> Iterator[Check]:
    """Where generated data and the Arrow copies of parquet files go."""
    from finepruner_lmms.data.ready import datasets_cache
    from finepruner_lmms.files import cache_dir

    yield writable("cache", cache_dir(), "set FINEPRUNER_CACHE to a folder that can be written")
    yield writable("datasets cache", datasets_cache(), "set HF_DATASETS_CACHE to a folder that can be written")
