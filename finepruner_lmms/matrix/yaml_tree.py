"""A YAML text as a tree in which every part knows its place: what a parser's events make, within bounds.

Nothing but mappings, lists and words comes out of it, whatever tags ask for. Merge keys (`<<`) are worked in, aliases
are the nodes they name, and a text that is too deep, too long or multiplies by aliases is refused before it is built.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from finepruner_lmms.errors import show

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
"""Keys, items and words of a file, aliases and merges multiplied out."""
MOST_DEEP = 20
_HINTS = {
    "cannot start any token": "indent with spaces, not tabs, and put a text that begins with @, % or ` in quotes",
    "',' or ']'": "close the list with ]",
    "',' or '}'": "close the mapping with }",
    "mapping values are not allowed": "put a text that holds ': ' in quotes, or correct the indentation",
    "expected ':'": "write `field: value`",
    "expected key": "correct the indentation",
    "block end": "correct the indentation",
    "'-' indicator": "correct the indentation",
    "unexpected end of stream": "close the quotes",
    "escape": "double the backslash, or write the text in single quotes",
}
"""What often puts right what the parser complains of."""
_MERGE = "tag:yaml.org,2002:merge"
_TAG = {"map": "tag:yaml.org,2002:map", "seq": "tag:yaml.org,2002:seq"}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster, where it was built


class Misread(Exception):
    """What is wrong with the text, where (an index into it), and in which part of the tree."""

    def __init__(self, at: int, problem: str, place: tuple[str | int, ...] = ()) -> None:
        super().__init__(problem)
        self.at, self.problem, self.place = at, problem, place


@dataclass
class Word:
    """A scalar: its text, and whether it stands without quotes."""

    at: int
    text: str
    plain: bool
    tag: str | None


@dataclass
class Items:
    """A list."""

    at: int
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Fields:
    """A mapping: by key where the key stands, and its value. What a merge brought in stands where it was written."""

    at: int
    nodes: dict[str, tuple[int, Node]] = field(default_factory=dict)


Node = Word | Items | Fields


class Lines:
    """Where an index into a text stands: line and column, both from 1, as editors count them."""

    def __init__(self, text: str) -> None:
        self._ends = [match.end() for match in re.finditer("\n", text)]

    def at(self, index: int) -> tuple[int, int]:
        """Line and column of an index."""
        line = bisect.bisect_right(self._ends, index)
        return line + 1, index - (self._ends[line - 1] if line else 0) + 1


class Tree:
    """The one document of a text: `root`, None if there is none; `mistakes` that do not hinder reading the rest."""

    def __init__(self, text: str) -> None:
        """`Misread` where the text is no YAML or breaks a bound."""
        self.mistakes: list[Misread] = []
        self.root: Node | None = None
        self._anchors: dict[str, Node | None] = {}  # None while what it names is not complete
        self._place: list[str | int] = []
        self._values = 0
        self._at = 0
        self.lines = Lines(text)
        if odd := yaml.reader.Reader.NON_PRINTABLE.search(text):
            raise Misread(odd.start(), f"the character {odd.group()!r} cannot stand in YAML; take it out")
        try:
            self._document(yaml.parse(text, Loader=_Loader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = str(error.problem or error.context)
            fix = next((fix for words, fix in _HINTS.items() if words in problem), "")
            problem += f"; {fix}" if fix else ""
            raise Misread(mark.index if mark else self._at, problem, tuple(self._place)) from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as an escape beyond Unicode
            raise Misread(self._at, f"cannot be read as YAML: {error}", tuple(self._place)) from error

    def _document(self, events: Iterator[Any]) -> None:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if self.root is not None:
                    raise Misread(_start(event), "a second document begins here; give each a file of its own")
            elif isinstance(event, yaml.NodeEvent):
                self.root = self._node(event, events)

    def _node(self, event: Any, events: Iterator[Any]) -> Node:
        self._at = _start(event)
        self._count(1)
        if isinstance(event, yaml.AliasEvent):
            return self._named(str(event.anchor))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        found: Node
        if isinstance(event, yaml.ScalarEvent):
            found = Word(self._at, event.value, event.style in (None, ""), event.tag)
        elif len(self._place) >= MOST_DEEP:
            raise Misread(self._at, f"is nested too deeply to be read; at most {MOST_DEEP} levels", (self._place[0],))
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, "seq")
            found = self._items(events)
        else:
            self._check_tag(event, "map")
            found = self._fields(events)
        if event.anchor is not None:
            self._anchors[event.anchor] = found
        return found

    def _named(self, anchor: str) -> Node:
        if anchor not in self._anchors:
            raise Misread(self._at, f"no anchor &{anchor} stands before this alias", tuple(self._place))
        found = self._anchors[anchor]
        if found is None:
            raise Misread(self._at, f"*{anchor} stands inside of what it names", tuple(self._place))
        return found

    def _items(self, events: Iterator[Any]) -> Items:
        found = Items(self._at)
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            self._place.append(len(found.nodes))
            found.nodes.append(self._node(event, events))
            self._place.pop()
        return found

    def _fields(self, events: Iterator[Any]) -> Fields:
        found, merged = Fields(self._at), list[Fields]()
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            at = _start(event)
            if isinstance(event, yaml.AliasEvent):
                self._at = at
                key: Node | None = self._named(str(event.anchor))
            else:
                key = self._node(event, events) if isinstance(event, yaml.ScalarEvent) else None
            if not isinstance(key, Word):
                raise Misread(at, "a key is a single word", tuple(self._place))
            self._place.append(key.text)
            value = self._node(next(events), events)
            if key.tag == _MERGE or (key.text == "<<" and key.plain and key.tag is None):
                merged += self._merged(value)
            elif key.text in found.nodes:
                first, _ = self.lines.at(found.nodes[key.text][0])
                self._mistake(at, f"given twice (first in line {first})")
            else:
                found.nodes[key.text] = at, value
            self._place.pop()
        for source in merged:  # what is written here goes before, and what is named first before the rest
            self._count(len(source.nodes))
            for name, pair in source.nodes.items():
                found.nodes.setdefault(name, pair)
        return found

    def _merged(self, value: Node) -> list[Fields]:
        """The mappings that a merge key names."""
        sources = value.nodes if isinstance(value, Items) else [value]
        for source in sources:
            if not isinstance(source, Fields):
                self._mistake(self._at, "expected a mapping such as *shared, or a list of them")
        return [source for source in sources if isinstance(source, Fields)]

    def _check_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG[kind]):
            self._mistake(self._at, f"the tag {show(event.tag)} is not read; leave it out")

    def _mistake(self, at: int, problem: str) -> None:
        self.mistakes.append(Misread(at, problem, tuple(self._place)))

    def _count(self, more: int) -> None:
        self._values += more
        if self._values > MOST_VALUES:
            raise Misread(self._at, f"a file holds at most {MOST_VALUES:,} values", tuple(self._place[:1]))


def _start(event: Any) -> int:
    """The index into the text at which an event begins."""
    return int(event.start_mark.index)
