"""Methods, head strategies and queries from elsewhere: installed packages, and files that somebody names.

A package names a module in the entry-point group `GROUP`; it is imported once, when a name is asked for that is not
one of ours, or all names are listed. A file (`plugins:` of a matrix file, or the variable `FINEPRUNER_PLUGINS`) is
imported under its own name, with its folder last on `sys.path`, so that what lies beside it can be imported and hides
nothing. Processes that are started afterwards find the same files.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from finepruner_lmms.errors import FieldError, first_line, show

GROUP = "finepruner_lmms.methods"
"""The entry point group in which a package names a module that registers something."""
VARIABLE = "FINEPRUNER_PLUGINS"
"""Files to import as well, separated as in `PATH`."""
_asked = False


def plugins() -> list[EntryPoint]:
    """What installed packages name, in a fixed order."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def ask_plugins() -> None:
    """Import all plug-ins, once. `RuntimeError` naming a package's that cannot be, `FieldError` naming a file."""
    global _asked
    if _asked:
        return
    _asked = True  # before, because what is loaded may ask for names itself
    try:
        load_plugins()
        load_files(named_files(), VARIABLE)
    except BaseException:
        _asked = False
        raise


def load_plugins() -> None:
    """Import the modules that packages name. `RuntimeError` naming one that cannot be."""
    for point in plugins():
        try:
            point.load()
        except Exception as error:
            owner = point.dist.name if point.dist is not None else "an unknown package"
            raise RuntimeError(
                f"plug-in {point.name!r} ({point.value}) of {owner!r} cannot be loaded, so repair or uninstall that "
                f"package: {type(error).__name__}: {error}"
            ) from error


def named_files() -> list[Path]:
    """The files of `FINEPRUNER_PLUGINS`."""
    return [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def name_files(files: Iterable[Path]) -> None:
    """Have `ask_plugins` import these files as well, here and in processes started from here on."""
    known = [str(path) for path in named_files()]
    known += [name for file in files if (name := os.path.abspath(file)) not in known]  # noqa: PTH100
    if known:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(known))


def load_files(files: Sequence[Path], field: str = "plugins") -> None:
    """Import files that register something, and name them to processes started later.

    `FieldError` of `field.<number>` for one that is not there, cannot be imported, or whose name another module has.
    """
    for number, file in enumerate(files):
        _load(f"{field}.{number}", Path(os.path.abspath(file)))  # noqa: PTH100 - a link keeps its own name
    name_files(files)


def _load(field: str, file: Path) -> None:
    shown = show(str(file))
    if not os.path.isfile(file) or file.suffix != ".py":  # noqa: PTH113 - whatever the name is, this raises nothing
        problem = f"{shown} is no Python file" if os.path.exists(file) else f"{shown} is not there"  # noqa: PTH110
        raise FieldError(field, problem, value=str(file), fix="name a file such as my_method.py")
    name, folder = file.stem, str(file.parent)
    if not name.isidentifier() or os.pathsep in folder:
        problem = f"{shown} is no name by which a module can be found again"
        raise FieldError(field, problem, value=str(file), fix="rename it")
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except Exception as error:
        problem = f"{file.name!r} cannot be imported: {_what(error, file)}"
        raise FieldError(field, problem, value=str(file)) from error
    found = getattr(module, "__file__", None)
    if found is None or not file.samefile(found):
        problem = f"{file.name!r} has the name of another module ({found or name})"
        raise FieldError(field, problem, value=str(file), fix="rename the file")


def _what(error: Exception, file: Path) -> str:
    """An error in one line, with the line of the file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


__all__ = ["GROUP", "VARIABLE", "ask_plugins", "load_files", "load_plugins", "name_files", "named_files", "plugins"]
