"""Which source code of this package something runs, and a fingerprint of it that words do not change.

Everything is read from the files with `ast`; nothing is imported. A module needs what its `import` statements name,
those inside functions too, those under `if TYPE_CHECKING:` not. `from package import name` needs the module in which
the name is made, not all that the package's `__init__` imports beside it: the list of all methods ties no method to
another. What is only looked up by name at run time (`import_module` of a computed name) is not seen.

What was found in a file is remembered by the file's content, because parsing a package takes longer than planning a
study with it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from finepruner_lmms.files import cache_dir, content_hash, read_object, write_json

_PACKAGE = Path(__file__).parent
_DIGITS = 12


def short_hash(text: str) -> str:
    """12 hexadecimal digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


class Facts(NamedTuple):
    """What is to know of a source file: all that its syntax tree is parsed for."""

    digest: str
    """Of the code, without comments, docstrings and layout."""
    imports: list[list[str | None]]
    """Module and name of every import that can run; the name is None where the module itself is meant."""
    taken: dict[str, list[str]]
    """Where the names that it takes from elsewhere by `from … import` come from: module and name there."""
    decorators: list[str]
    """The functions whose calls decorate its classes."""


class Sources:
    """The modules of a package, found in its folder and read when they are first needed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._files: dict[str, Path | None] = {}
        self._facts: dict[str, Facts] = {}
        self._needs: dict[str, set[str]] = {}

    def file(self, module: str) -> Path | None:
        """The source file of a module of this package; None if it has none of that name."""
        if module not in self._files:
            self._files[module] = self._find(module)
        return self._files[module]

    def _find(self, module: str) -> Path | None:
        if module != self.name and not module.startswith(f"{self.name}."):
            return None
        path = self.folder.joinpath(*module.split(".")[1:])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file() and candidate != self.folder.with_suffix(".py"):
                return candidate
        return None

    def closure(self, roots: Iterable[str], stop: Callable[[str, str], bool] = lambda _by, _needed: False) -> set[str]:
        """`roots` and all modules of this package that they need, directly or not. `ValueError` for a missing root.

        Where `stop(module, needed)` says so, what a module needs is left out unless it is needed elsewhere.
        """
        found: set[str] = set()
        left = list(roots)
        for root in left:
            if self.file(root) is None:
                raise ValueError(f"{self.name} has no module {root!r}")
        while left:
            module = left.pop()
            if module not in found:
                found.add(module)
                left += [needed for needed in self.needs(module) if not stop(module, needed)]
        return found

    def needs(self, module: str) -> set[str]:
        """The modules of this package that one names in its imports."""
        if module not in self._needs:
            self._needs[module] = self._needed_by(self._read(module)) - {module}
        return self._needs[module]

    def _needed_by(self, facts: Facts) -> set[str]:
        """The modules of this package that a source names in its imports."""
        found = set()
        for module, name in facts.imports:
            assert module is not None
            if (resolved := self._resolve(module, name)) is not None:
                found.add(resolved)
        return found

    def fingerprint(self, modules: Collection[str]) -> str:
        """Of the code of these modules, without comments, docstrings and layout."""
        return short_hash("\n".join(f"{module} {self._read(module).digest}" for module in sorted(modules)))

    def needed_by_files(self, files: Mapping[str, Path]) -> set[str]:
        """The modules of this package that files of another one name in their imports."""
        found: set[str] = set()
        for name, file in files.items():
            if file.suffix == ".py":
                with suppress(SyntaxError, ValueError):
                    found |= self._needed_by(read_facts(file, _package_of(name)))
        return found

    def decorates(self, module: str, decorator: str) -> bool:
        """Whether a module decorates a class by a call of `decorator`."""
        return decorator in self._read(module).decorators

    def _resolve(self, module: str, name: str | None, seen: frozenset[str] = frozenset()) -> str | None:
        """The module in which `name` of `module` is made; None if that is not in this package."""
        if self.file(module) is None:
            return None
        if name is None or not self._is_package(module):
            return module
        if self.file(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        if name in (taken := self._read(module).taken) and (made_in := taken[name][0]) not in seen:
            return self._resolve(made_in, taken[name][1], seen | {module})
        return module

    def _is_package(self, module: str) -> bool:
        file = self.file(module)
        return file is not None and file.name == "__init__.py"

    def _read(self, module: str) -> Facts:
        if module not in self._facts:
            file = self.file(module)
            assert file is not None, module
            package = module if self._is_package(module) else module.rpartition(".")[0]
            self._facts[module] = read_facts(file, package)
        return self._facts[module]


@functools.cache
def own_sources() -> Sources:
    """This package, as its files were when the process first asked."""
    return Sources(_PACKAGE, "finepruner_lmms")


class Foreign(NamedTuple):
    """Code of other packages: its files by their place in them, and the versions of the libraries that it imports."""

    files: dict[str, Path]
    versions: dict[str, str]

    def fingerprint(self) -> str:
        """Of the code, without comments, docstrings and layout; of other files their content."""
        digests = [f"{name} {_digest(name, file)}" for name, file in sorted(self.files.items())]
        return short_hash(
            "\n".join([*digests, *(f"{name} {version}" for name, version in sorted(self.versions.items()))])
        )


def foreign_code(modules: Iterable[str], scripts: Mapping[str, Path], known: Collection[str]) -> Foreign:
    """All that modules from elsewhere are made of: their whole top-level packages, wherever in them the modules lie.

    `scripts` are files that belong to no package.

    What these import counts too: by content where it is of the same distribution or of none (a module that lies beside
    it), by version where it is a library. Packages in `known`, and Python's own, count elsewhere.
    """
    left = {_top(module) for module in modules} - {"__main__"}
    left |= {name for place, file in scripts.items() for name in _imported(place, file)} - {*known}
    left -= sys.stdlib_module_names
    own = {distribution for top in left for distribution in _distributions(top)}
    seen = {*known, *sys.stdlib_module_names}
    found = Foreign(dict(scripts), {})
    while left:
        top = left.pop()
        seen.add(top)
        files = foreign_files(top)
        found.files.update(files)
        for name in {name for place, file in files.items() for name in _imported(place, file)} - seen:
            of = set(_distributions(name))
            if of and not of & own:
                seen.add(name)
                found.versions.update({one: metadata.version(one) for one in of})
            else:
                left.add(name)
    return found


def _top(module: str) -> str:
    """The top-level package of a module; of what `python -m` runs, the one that it is named after."""
    top = module.partition(".")[0]
    spec = getattr(sys.modules.get("__main__"), "__spec__", None) if top == "__main__" else None
    return top if spec is None else str(spec.name).partition(".")[0]


def in_package(module: str) -> bool:
    """Whether a module can be found again by its name, which that of a script or a notebook cannot."""
    return (top := _top(module)) != "__main__" and bool(foreign_files(top))


def foreign_files(top: str) -> dict[str, Path]:
    """The files of a top-level package or module, by their place in it; none where it cannot be found."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # made by a notebook or a test, or no package at all
        spec = None
    if spec is not None and spec.submodule_search_locations:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        return {
            f"{top}/{file.relative_to(folder).as_posix()}": file
            for folder in folders
            for file in sorted(folder.rglob("*"))
            if file.is_file() and _counts(file.relative_to(folder))
        }
    file = None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin)
    return {f"{top}{file.suffix}": file} if file is not None and file.is_file() else {}


def _counts(file: Path) -> bool:
    """Whether a file of a package may change what it does: no bytecode, no hidden file, no text for people."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts)
    return not hidden and file.suffix not in (".pyc", ".pyo", ".md", ".rst", ".pyi")


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _distributions(top: str) -> list[str]:
    """The installed distributions that a top-level package comes from; none for one that lies on the path."""
    return list(_owners().get(top, []))


def _imported(place: str, file: Path) -> set[str]:
    """The top-level packages that a file imports."""
    if file.suffix != ".py":
        return set()
    try:
        return {str(module).partition(".")[0] for module, _ in read_facts(file, _package_of(place)).imports} - {""}
    except (SyntaxError, ValueError):
        return set()


def _digest(place: str, file: Path) -> str:
    if file.suffix == ".py":
        try:
            return read_facts(file, _package_of(place)).digest
        except (SyntaxError, ValueError):  # a template, or of another Python: nobody can import it
            pass
    return content_hash(file)


def read_facts(file: Path, package: str) -> Facts:
    """What is to know of a source file of a package, remembered by its content."""
    content = file.read_bytes()
    key = hashlib.sha256(package.encode() + b"\0" + content).hexdigest()
    memory = _memory()
    if (found := memory.get(key)) is None:
        found = memory.add(key, _find_facts(ast.parse(content, filename=str(file)), package))
    return found


def _find_facts(tree: ast.Module, package: str) -> Facts:
    imports = [list(pair) for pair in _imports(tree, package)]
    taken = {
        alias.asname or alias.name: [_absolute(node, package), alias.name]
        for node in _running(tree.body)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    decorators = {
        call.func.id
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    return Facts(short_hash(repr(_meaning(tree))), imports, taken, sorted(decorators))


class _Memory:
    """Facts of files that were read before, in our cache folder: of this very code, in this version of Python."""

    def __init__(self) -> None:
        version = ".".join(map(str, sys.version_info[:3]))
        self._file = cache_dir() / f"sources-{short_hash(version + Path(__file__).read_text(encoding='utf-8'))}.json"
        self._known: dict[str, Any] = read_object(self._file) or {}
        self._new = False

    def get(self, key: str) -> Facts | None:
        found = self._known.get(key)
        return None if found is None else Facts(*found)

    def add(self, key: str, facts: Facts) -> Facts:
        self._known[key] = facts
        self._new = True
        return facts

    def save(self) -> None:
        if self._new:
            with suppress(OSError):  # where there is no place to remember, files are parsed each time
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._file, self._known)
                self._new = False


@functools.cache
def _memory() -> _Memory:
    return _Memory()


def remember_sources() -> None:
    """Keep for later processes what this one found in source files."""
    _memory().save()


def _package_of(name: str) -> str:
    """`other.part` of `other/part/module.py`."""
    return ".".join(name.split("/")[:-1])


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str | None]]:
    """Module and name of every import that can run."""
    for node in _running([tree]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield _absolute(node, package), None if alias.name == "*" else alias.name


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from` names, which may be relative to the package."""
    parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
    return ".".join([*parts, *([node.module] if node.module else [])])


def _running(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes and all below them, but for what is there for type checkers only."""
    for node in nodes:
        yield node
        yield from _running(node.orelse if _is_for_checkers(node) else ast.iter_child_nodes(node))


def _is_for_checkers(node: Any) -> TypeGuard[ast.If]:
    """Whether this is `if TYPE_CHECKING:`."""
    test = node.test if isinstance(node, ast.If) else None
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _meaning(node: Any) -> Any:
    """A syntax tree as tuples: no places, docstrings, or what only type checkers see.

    Empty fields are left out, because newer Pythons have more of them for the same code.
    """
    if isinstance(node, ast.AST):
        fields = ((name, _meaning(value)) for name, value in ast.iter_fields(node))
        return (type(node).__name__, *(field for field in fields if field[1] not in (None, [])))
    if isinstance(node, list):
        return [part for item in node for part in _parts(item)]
    return (type(node).__name__, repr(node)) if isinstance(node, float | complex | bool) else node


def _parts(item: Any) -> list[Any]:
    """What is left of an item of a list: nothing of a string that stands by itself, which documents something."""
    if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
        return []
    return [_meaning(part) for part in item.orelse] if _is_for_checkers(item) else [_meaning(item)]
