"""Which CLIP checkpoint a LLaVA's vision tower comes from, by sizes and names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object

# the vision towers of LLaVA checkpoints that do not name theirs, by width, layers, image and patch size
_TOWERS = {
    (1024, 24, 336, 14): "openai/clip-vit-large-patch14-336",
    (1024, 24, 224, 14): "openai/clip-vit-large-patch14",
}


def clip_checkpoint(config: Any, given: str | None = None) -> str:
    """The CLIP checkpoint whose vision tower a LLaVA has. `ValueError` if neither it nor the caller names one."""
    tower = config.vision_config
    sizes = [getattr(tower, name, None) for name in ("hidden_size", "num_hidden_layers", "image_size", "patch_size")]
    known = next((name for of, name in _TOWERS.items() if list(of) == sizes), None)  # others have lists for some
    name = given or getattr(config, "mm_vision_tower", None) or known
    if not name:
        raise FieldError(
            "relevance",
            "'clip' needs the text tower of the CLIP checkpoint that the vision tower comes from, and this model names "
            "none",
            value="clip",
            fix="give it as clip=<hub id or folder>, or use relevance='embedding'",
        )
    file = Path(name) / "config.json"
    if file.is_file() and (kind := load_object(file).get("model_type")) != "clip":
        raise FieldError(
            "relevance",
            f"'clip' needs a CLIP checkpoint with its text tower, and {str(name)!r} is a {kind!r}",
            value="clip",
            fix="give the whole one as clip=<hub id or folder>, or use relevance='embedding'",
        )
    return str(name)
