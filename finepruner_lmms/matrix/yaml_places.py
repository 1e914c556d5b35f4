"""A YAML file in which every mistake has its place: `file:line:column: field: what is wrong`, all of them at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finepruner_lmms.errors import Failure, FieldError, show

Place = tuple[str | int, ...]
"""The way to a part of a file: keys of mappings and places in lists, from the outside in."""
_MERGE = "tag:yaml.org,2002:merge"


class Mistake(NamedTuple):
    """What is wrong, and where it stands in the file; both counts begin at 1, and are 0 for the file as a whole."""

    line: int
    column: int
    text: str

    def at(self, path: Path) -> str:
        """For people: `file:line:column: text`."""
        place = f"{path}:{self.line}:{self.column}" if self.line else path
        return f"{place}: {self.text}"


class ConfigError(Failure, ValueError):
    """A file is wrong; the text has one line per mistake, in the order of the file."""

    def __init__(self, path: Path, mistakes: Iterable[Mistake]) -> None:
        self.path, self.mistakes = path, sorted(set(mistakes))
        super().__init__("\n".join(mistake.at(path) for mistake in self.mistakes))

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.mistakes)


class Document:
    """The mapping that a YAML file holds, and the mistakes that were found in it."""

    def __init__(self, path: Path) -> None:
        """Read `path`; `ConfigError` if it cannot be read, is not YAML or holds no mapping."""
        self.path = path
        self._mistakes: list[Mistake] = []
        text = _text(path)
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            self.data: Any = None if node is None else loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise ConfigError(path, [Mistake(line, column, str(error.problem or error.context))]) from error
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            problem = f"the character {chr(error.character)!r} cannot stand in YAML"
            raise ConfigError(path, [Mistake(*_end(before), problem)]) from error
        except RecursionError:
            raise ConfigError(path, [Mistake(1, 1, "is nested too deeply to be read")]) from None
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(path, [Mistake(1, 1, "expected a mapping with name, tasks and methods")])
        self._root = node

    def report(self, error: FieldError | str, place: Place | None = None) -> None:
        """Note a mistake, at `place` or else where its field stands."""
        field = error.field.split(".") if isinstance(error, FieldError) else ()
        mark = self._mark(tuple(field) if place is None else place)
        self._mistakes.append(Mistake(mark.line + 1, mark.column + 1, str(error)))

    def raise_any(self) -> None:
        """`ConfigError` with what was reported until now, if anything was."""
        if self._mistakes:
            raise ConfigError(self.path, self._mistakes)

    def _mark(self, place: Place) -> yaml.Mark:
        """Where `place` stands in the file, or as much of it as exists: a key, or an item of a list."""
        node: yaml.Node = self._root
        found = node.start_mark
        for part in place:
            if isinstance(node, yaml.MappingNode):
                # the last: what a merge brings in comes first
                pair = next((pair for pair in reversed(node.value) if pair[0].value == str(part)), None)
                if pair is None:
                    break
                node, found = pair[1], pair[0].start_mark
            elif isinstance(node, yaml.SequenceNode) and str(part).isdecimal() and int(part) < len(node.value):
                node = node.value[int(part)]
                found = node.start_mark
            else:
                break
        return found


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(path, [Mistake(0, 0, f"cannot be read: {error.strerror or error}")]) from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        raise ConfigError(path, [Mistake(*_end(before), "is not UTF-8 from here")]) from error


def _end(text: str) -> tuple[int, int]:
    """Line and column of what follows `text`."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is a mistake, and what is none of its kind has a place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):  # of Python's int(), date(), ...
            kind, given = node.tag.rpartition(":")[2], show(getattr(node, "value", None))
            raise yaml.constructor.ConstructorError(
                None, None, f"got {given}, which cannot be read as YAML's {kind!r}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a single word", key_node.start_mark)
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node)
            if key in lines:
                problem = f"{key}: given twice (first in line {lines[key]})"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)
