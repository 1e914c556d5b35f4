"""Requests made ready for the model: their pictures, and batches of prompts of about the same length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from finepruner_lmms.checkpoints.images import as_rgb, whole_files
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.image_encoding import Picture

_WINDOW = 8  # batches


@dataclass(frozen=True)
class Prepared:
    """A request, ready to be batched: `ids` are the prompt's, with a placeholder per visual token of `image`."""

    task: str
    doc_id: int
    question: str
    ids: list[int]
    image: Picture | None
    decoding: dict[str, Any]
    key: str
    """Tells it from every other question of the evaluation."""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)

    @property
    def decoding_key(self) -> str:
        """The same text for requests that can share a call of `generate`."""
        return str(sorted(self.decoding.items()))


def windows(count: int, batch_size: int) -> Iterator[slice]:
    """The requests in runs of 1, 2, 4 and then always 8 batches.

    Inside a window requests are sorted by length: little padding, and answers still come in order. Nothing can be
    answered before the first window is read, so that one is small; each is read while the one before is answered.
    """
    start, size = 0, batch_size
    while start < count:
        yield slice(start, min(start + size, count))
        start, size = start + size, min(2 * size, _WINDOW * batch_size)


def batches(prepared: Sequence[Prepared], batch_size: int) -> Iterator[list[int]]:
    """The requests' numbers in batches: decoded alike, prompts of about the same length together."""
    order = sorted(range(len(prepared)), key=lambda i: (prepared[i].decoding_key, prepared[i].length, i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or prepared[i].decoding_key != prepared[batch[0]].decoding_key):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def read_picture(read: Callable[[], Any], doc_to_visual: Callable[[Any], Any], where: str) -> Image.Image | None:
    """The picture of a document in RGB, read to its end; None if it has none. `FieldError` saying `where` it is."""
    try:
        with whole_files():
            visuals = list(doc_to_visual(read()) or [])
            if len(visuals) > 1:
                raise FieldError(where, f"{len(visuals)} images; LLaVA-1.5 answers about one")
            if visuals and not isinstance(visuals[0], Image.Image):
                raise FieldError(where, f"the visual is a {type(visuals[0]).__name__}, not an image")
            return as_rgb(visuals[0]) if visuals else None
    except (OSError, SyntaxError) as error:  # Pillow raises either where a file is damaged
        raise FieldError(where, f"its image cannot be read ({error})") from error


def count_output(row: list[int], ends: set[int]) -> int:
    """Generated tokens up to and including the end token."""
    return next((place for place, token in enumerate(row, 1) if token in ends), len(row))
