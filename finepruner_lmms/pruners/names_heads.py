"""Methods that are told which heads to listen to: by a profile, and in which layers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads.profile import HeadProfile
from finepruner_lmms.heads.profiles import find_profile


class NamesHeads:
    """For a pruner with the parameters `profile`, `shuffle` and `score_layers`: what they stand for."""

    profile: str | None
    shuffle: int | None
    score_layers: int | str | None

    @cached_property
    def named_layers(self) -> tuple[int, ...]:
        """The layers of `score_layers`, ascending."""
        return joined_numbers("score_layers", self.score_layers, "layers")

    @cached_property
    def head_profile(self) -> HeadProfile:
        """The profile, its weights on other heads where `shuffle` says so."""
        found = find_profile("profile", self.profile)
        return found if self.shuffle is None else found.shuffled(self.shuffle)


def joined_numbers(field: str, given: Any, what: str) -> tuple[int, ...]:
    """Different numbers joined by `+`, ascending."""
    texts = str(given).split("+")
    if not all(text.strip().isdecimal() for text in texts) or len(set(map(int, texts))) < len(texts):
        problem = f"got {given!r}; expected different {what}, counted from 0, such as 3 or '3+5'"
        raise FieldError(field, problem, value=given)
    return tuple(sorted(map(int, texts)))
