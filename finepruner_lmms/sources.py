"""Which source code of this package something runs, and a fingerprint of it that words do not change.

Everything is read from the files with `ast`; nothing is imported. A module needs what its `import` statements name,
those inside functions too, those under `if TYPE_CHECKING:` not. `from package import name` needs the module in which
the name is made, not all that the package's `__init__` imports beside it: the list of all methods ties no method to
another. What is only looked up by name at run time (`import_module` of a computed name) is not seen.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

_PACKAGE = Path(__file__).parent
_DIGITS = 12


def short_hash(text: str) -> str:
    """12 hexadecimal digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


class Sources:
    """The modules of a package, found in its folder and read when they are first needed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._trees: dict[str, ast.Module] = {}
        self._digests: dict[str, str] = {}
        self._needs: dict[str, set[str]] = {}

    def file(self, module: str) -> Path | None:
        """The source file of a module of this package; None if it has none of that name."""
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
            package = module if self._is_package(module) else module.rpartition(".")[0]
            self._needs[module] = self.needed_by(self._tree(module), package) - {module}
        return self._needs[module]

    def needed_by(self, tree: ast.Module, package: str) -> set[str]:
        """The modules of this package that a source in `package` names in its imports."""
        found = set()
        for module, name in _imports(tree, package):
            if (resolved := self._resolve(module, name)) is not None:
                found.add(resolved)
        return found

    def fingerprint(self, modules: Collection[str]) -> str:
        """Of the code of these modules, without comments, docstrings and layout."""
        return short_hash("\n".join(f"{module} {self._digest(module)}" for module in sorted(modules)))

    def needed_by_files(self, files: Mapping[str, Path]) -> set[str]:
        """The modules of this package that files of another one name in their imports."""
        return {module for name, file in files.items() for module in self.needed_by(parse(file), _package_of(name))}

    def decorates(self, module: str, decorator: str) -> bool:
        """Whether a module decorates a class by a call of `decorator`."""
        return any(
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator
            for node in self._tree(module).body
            if isinstance(node, ast.ClassDef)
            for call in node.decorator_list
        )

    def _resolve(self, module: str, name: str | None, seen: frozenset[str] = frozenset()) -> str | None:
        """The module in which `name` of `module` is made; None if that is not in this package."""
        if self.file(module) is None:
            return None
        if name is None or not self._is_package(module):
            return module
        if self.file(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        for other, (made_in, original) in self._re_exports(module).items():
            if other == name and made_in not in seen:
                return self._resolve(made_in, original, seen | {module})
        return module

    def _re_exports(self, package: str) -> dict[str, tuple[str, str]]:
        """The names that a package's `__init__` takes from elsewhere and defines nowhere itself."""
        found: dict[str, tuple[str, str]] = {}
        for node in _running(self._tree(package).body):
            if isinstance(node, ast.ImportFrom):
                module = _absolute(node, package)
                found |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        return found

    def _is_package(self, module: str) -> bool:
        file = self.file(module)
        return file is not None and file.name == "__init__.py"

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            file = self.file(module)
            assert file is not None, module
            self._trees[module] = parse(file)
        return self._trees[module]

    def _digest(self, module: str) -> str:
        if module not in self._digests:
            self._digests[module] = short_hash(repr(_meaning(self._tree(module))))
        return self._digests[module]


@functools.cache
def own_sources() -> Sources:
    """This package, as its files were when the process first asked."""
    return Sources(_PACKAGE, "finepruner_lmms")


def foreign_files(module: str) -> dict[str, Path]:
    """The source files of the whole top-level package of a module from elsewhere, by their place in it; none of a
    script.
    """
    top = module.partition(".")[0]
    spec = None if top == "__main__" else importlib.util.find_spec(top)
    if spec is not None and spec.submodule_search_locations:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        return {
            f"{top}/{file.relative_to(folder).as_posix()}": file
            for folder in folders
            for file in sorted(folder.rglob("*.py"))
        }
    return {f"{top}.py": Path(spec.origin)} if spec is not None and spec.origin else {}


def files_fingerprint(files: Mapping[str, Path]) -> str:
    """Of the code in files that are given by name, without comments, docstrings and layout."""
    return short_hash("\n".join(f"{name} {short_hash(repr(_meaning(parse(files[name]))))}" for name in sorted(files)))


def parse(file: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(file.read_bytes(), filename=str(file))


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
