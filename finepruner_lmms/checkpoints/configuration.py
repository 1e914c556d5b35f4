"""What a checkpoint's config.json says, for planning: no weights are read, and transformers is not loaded for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finepruner_lmms.budget import keeps_all
from finepruner_lmms.checkpoints.fetch import check_name, fetch_file, resolve
from finepruner_lmms.checkpoints.original_config import is_original, original_shape
from finepruner_lmms.checkpoints.released import RELEASED
from finepruner_lmms.checkpoints.shape import ModelShape, read_plain
from finepruner_lmms.checkpoints.supported import check_supported, check_token
from finepruner_lmms.engine.clip_names import clip_checkpoint
from finepruner_lmms.engine.families.fits import check_fits
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object

if TYPE_CHECKING:
    from finepruner_lmms.pruners import Pruner


def read_raw_config(pretrained: str) -> dict[str, Any]:
    """What a checkpoint's config.json says. `FieldError` if there is none."""
    check_name(pretrained)
    with naming("cannot read the configuration of", pretrained):
        return load_object(fetch_file(resolve(pretrained), "config.json"))


def read_shape(pretrained: str) -> Any:
    """The sizes of a checkpoint's model: a `ModelShape`, or what has them by the same names.

    `FieldError` if it is of no family that can be pruned.
    """
    raw = read_raw_config(pretrained)
    with naming("cannot prune", pretrained):
        return original_shape(raw, resolve(pretrained)) if is_original(raw) else _hugging_face_shape(raw)


def planned_shape(pretrained: str) -> tuple[Any, bool]:
    """The same for a plan: a released checkpoint that cannot be reached now is planned by its known sizes.

    The second value says whether these are what was returned.
    """
    try:
        return read_shape(pretrained), False
    except FieldError:
        if (raw := RELEASED.get(pretrained)) is None:
            raise
        return _hugging_face_shape(raw), True


def _hugging_face_shape(raw: dict[str, Any]) -> Any:
    family = check_supported(raw)
    shape = read_plain(raw) if family.model_type == "llava" else None
    if shape is None:
        from finepruner_lmms.checkpoints.hugging_face import hugging_face_config

        config = hugging_face_config(raw)
        return ModelShape.of(config) if family.model_type == "llava" else config
    check_token(shape.image_token_id, shape.text_config.vocab_size)
    return shape


def read_geometry(pretrained: str) -> tuple[int, int]:
    """Decoder layers and visual tokens per image (the most that papers count, where images differ)."""
    geometry = Geometry.of(read_shape(pretrained))
    return geometry.num_layers, geometry.num_visual_tokens


def check_pruner(pruner: Pruner, config: Any) -> None:
    """Raise `ValueError` where a model of this configuration cannot do what the pruner asks: no weights are read.

    `config` is one of transformers or a `ModelShape`. Where images differ in their number of tokens, whether a budget
    can be reached is asked of each image.
    """
    geometry = Geometry.of(config)
    if not geometry.varies:
        pruner.schedule(geometry.num_layers, geometry.num_visual_tokens)
    pruner.check_heads(geometry.num_heads)
    if pruner.budget is not None and not keeps_all(pruner.budget, geometry.num_visual_tokens):
        check_fits(find_family(getattr(config, "model_type", "llava")), pruner)
    before, _ = pruner.parts(geometry.num_visual_tokens)
    if before is not None and before.reads_question == "clip":
        clip_checkpoint(config, getattr(before, "clip", None))


@contextmanager
def naming(what: str, pretrained: str) -> Iterator[None]:
    """An error inside is one of the argument `pretrained`, as the user wrote it."""
    try:
        yield
    except FieldError as error:
        raise FieldError("pretrained", f"{what} {pretrained!r}: {error}", value=pretrained) from error
