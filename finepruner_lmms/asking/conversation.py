"""What a model is asked: the turns of a conversation, with the pictures and videos that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.checkpoints.images import as_rgb
from finepruner_lmms.checkpoints.libraries import Image
from finepruner_lmms.errors import FieldError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, eq=False)
class Video:
    """A video: the path of a file, or its frames in order."""

    source: str | Sequence[Image.Image]


Part = str | Image.Image | Video
"""A piece of a turn: text, a picture in RGB, or a video."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What one side says: `role` is `system`, `user` or `assistant`."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its words alone."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, eq=False)
class Conversation:
    """Turns in order; the model answers the last one, which is the user's.

    A prompt with earlier turns is one prompt: it is read anew for each answer, and pruned as a whole.
    """

    turns: tuple[Turn, ...]

    @property
    def question(self) -> str:
        """The words of the last turn."""
        return self.turns[-1].text if self.turns else ""

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, in order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Image.Image)]

    @property
    def videos(self) -> list[Video]:
        """All videos, in order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Video)]

    def messages(self) -> list[dict[str, Any]]:
        """As a chat template of transformers reads it; pictures and videos are placeholders."""
        return [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in self.turns]


def single(question: str, shown: Sequence[Image.Image | Video] = ()) -> Conversation:
    """One question, after what it shows."""
    return Conversation((Turn("user", (*shown, question)),))


def from_messages(messages: Any, where: str = "messages") -> Conversation:
    """A conversation as lmms-eval and transformers write it: `role`, and `content` as text or as a list of parts.

    `FieldError` saying `where` a part is that no model here can be shown.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise FieldError(where, f"the messages are a {type(messages).__name__}, not a list of turns")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise FieldError(where, f"a message has the role {role!r}; known: {', '.join(ROLES)}", value=role)
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        turns.append(Turn(role, tuple(_part(part, where) for part in parts)))
    if turns[-1].role != "user":
        raise FieldError(where, f"the last message is the {turns[-1].role}'s", fix="end with what the user asks")
    return Conversation(tuple(turns))


def _part(part: Mapping[str, Any], where: str) -> Part:
    kind = part.get("type")
    if kind == "text":
        return str(part["text"])
    if kind in ("image", "video"):
        found = part.get("url", part.get(kind))
        return shown(found, where) if kind == "image" else video(found, where)
    raise FieldError(where, f"shows {kind!r}; text, images and videos can be answered about", value=kind)


def shown(visual: Any, where: str) -> Image.Image | Video:
    """A picture in RGB, or a video where it is the path of one. `FieldError` saying `where` anything else is."""
    if isinstance(visual, Image.Image):
        return as_rgb(visual)
    if isinstance(visual, str) and visual.lower().endswith(_PICTURES):
        with Image.open(visual) as picture:
            return as_rgb(picture)
    return video(visual, where)


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def video(visual: Any, where: str) -> Video:
    """A video: a path, or a list of frames. `FieldError` saying `where` anything else is."""
    if isinstance(visual, str):
        return Video(visual)
    if isinstance(visual, Sequence) and visual and all(isinstance(frame, Image.Image) for frame in visual):
        return Video([as_rgb(frame) for frame in visual])
    raise FieldError(where, f"the visual is a {type(visual).__name__}, not an image")


def _content(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, Video) else "image"}
