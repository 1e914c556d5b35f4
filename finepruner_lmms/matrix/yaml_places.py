"""A YAML file in which every mistake has its place: `file:line:column: field: what is wrong`, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from finepruner_lmms.errors import Failure, FieldError
from finepruner_lmms.matrix.yaml_scalars import read_scalar
from finepruner_lmms.matrix.yaml_tree import (
    MOST_BYTES,
    MOST_DEEP,
    MOST_VALUES,
    Fields,
    Items,
    Lines,
    Misread,
    Node,
    Tree,
    Word,
)
from finepruner_lmms.output import plain

Place = tuple[str | int, ...]
"""The way to a part of a file: keys of mappings and places in lists, from the outside in."""
_LONGEST = 60
"""Characters of a key that are shown as they are."""
_SHOWN = 50
"""Mistakes that are listed; the rest is counted."""


class Mistake(NamedTuple):
    """What is wrong, and where it stands in the file; both counts begin at 1, and are 0 for the file as a whole."""

    line: int
    column: int
    text: str

    def at(self, path: Path) -> str:
        """For people: `file:line:column: text`."""
        place = f"{path}:{self.line}:{self.column}" if self.line else path
        return f"{plain(place)}: {self.text}"


class ConfigError(Failure, ValueError):
    """A file is wrong; the text has one line per mistake, in the order of the file."""

    def __init__(self, path: Path, mistakes: Iterable[Mistake]) -> None:
        self.path, self.mistakes = path, sorted(set(mistakes))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One for each mistake; of very many the first."""
        shown = [mistake.at(self.path) for mistake in self.mistakes[:_SHOWN]]
        more = len(self.mistakes) - len(shown)
        return [*shown, *([f"{plain(self.path)}: and {more:,} more mistakes"] if more else [])]

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.mistakes)


class Document:
    """The mapping that a YAML file holds, and the mistakes that were found in it."""

    def __init__(self, path: Path) -> None:
        """Read `path`; `ConfigError` if it cannot be read, is not YAML or holds no mapping.

        What is wrong with single words is a mistake like others; in `data` they are None.
        """
        self.path = path
        self._mistakes: list[Mistake] = []
        self._misread: set[Place] = set()
        self._left = MOST_VALUES
        text = _text(path)
        self._lines = Lines(text)
        try:
            tree = Tree(text)
            for error in tree.mistakes:
                self._note(error)
            if not isinstance(tree.root, Fields):
                raise ConfigError(path, [Mistake(1, 1, "expected a mapping with name, tasks and methods")])
            self._root = tree.root
            self.data: dict[str, Any] = self._build(self._root, ())
        except Misread as error:
            self._note(error)
            self.raise_any()

    def report(self, error: FieldError | str, place: Place | None = None) -> None:
        """Note a mistake, at `place` or else where its field stands. What could not be read is reported once."""
        field = error.field.split(".") if isinstance(error, FieldError) else ()
        place = tuple(field) if place is None else place
        if not any(place[:end] in self._misread for end in range(len(place) + 1)):
            self._mistakes.append(Mistake(*self._lines.at(self._mark(place)), plain(error)))

    def raise_any(self) -> None:
        """`ConfigError` with what was reported until now, if anything was."""
        if self._mistakes:
            raise ConfigError(self.path, self._mistakes)

    def written(self, place: Place) -> str | None:
        """What stands at `place` without quotes, as it was typed: `yes` where `data` has True."""
        node: Node = self._root
        for part in place:
            found = _inside(node, part)
            if found is None:
                return None
            node = found[1]
        return node.text if isinstance(node, Word) and node.plain else None

    def _build(self, node: Node, place: Place) -> Any:
        """The data that a node means; `Misread` where aliases make too much of it."""
        self._left -= 1
        if self._left < 0:
            problem = f"a file holds at most {MOST_VALUES:,} values, repeated ones too"
            raise Misread(self._mark(place[:1]), problem, place[:1])
        if len(place) > MOST_DEEP:
            problem = f"is nested too deeply to be read; at most {MOST_DEEP} levels"
            raise Misread(self._mark(place[:1]), problem, place[:1])
        if isinstance(node, Fields):
            return {name: self._build(value, (*place, name)) for name, (_, value) in node.nodes.items()}
        if isinstance(node, Items):
            return [self._build(item, (*place, number)) for number, item in enumerate(node.nodes)]
        try:
            return read_scalar(node.text, node.plain, node.tag)
        except ValueError as error:
            self._note(Misread(node.at, str(error), place))
            return None

    def _note(self, error: Misread) -> None:
        """A mistake in what is written."""
        text = f"{dotted(error.place)}: {error.problem}" if error.place else error.problem
        self._mistakes.append(Mistake(*self._lines.at(error.at), plain(text)))
        self._misread.add(error.place)

    def _mark(self, place: Place) -> int:
        """Where `place` stands in the file, or as much of it as exists: a key, or an item of a list."""
        node: Node = self._root
        at = node.at
        for part in place:
            found = _inside(node, part)
            if found is None:
                break
            at, node = found
        return at


def _inside(node: Node, part: str | int) -> tuple[int, Node] | None:
    """Where a key or an item of a node stands, and what it holds; None if there is none."""
    if isinstance(node, Fields):
        return node.nodes.get(str(part))
    if isinstance(node, Items) and str(part).isdecimal() and int(part) < len(node.nodes):
        item = node.nodes[int(part)]
        return item.at, item
    return None


def dotted(place: Place) -> str:
    """A place for people: `methods.2.budget`."""
    return ".".join(part if len(part) <= _LONGEST else f"{part[:_LONGEST]}..." for part in map(str, place))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        why = getattr(error, "strerror", None) or error
        raise ConfigError(path, [Mistake(0, 0, f"cannot be read: {why}")]) from error
    if len(content) > MOST_BYTES:
        problem = f"is larger than {MOST_BYTES:,} bytes, which no matrix file is; lists multiply, so name few values"
        raise ConfigError(path, [Mistake(1, 1, problem)])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        place = Lines(before).at(len(before))
        raise ConfigError(path, [Mistake(*place, "is not UTF-8 from here; save it in that encoding")]) from error
