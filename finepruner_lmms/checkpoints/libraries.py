"""What reads checkpoints, loaded when something of it is first used: see `finepruner_lmms.lazy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lazy import Library

if TYPE_CHECKING:
    import huggingface_hub
    import huggingface_hub.errors as hub_errors
    import loguru
    import transformers
    from PIL import Image, ImageFile
else:
    huggingface_hub, hub_errors = Library("huggingface_hub"), Library("huggingface_hub.errors")
    loguru, transformers = Library("loguru"), Library("transformers")
    Image, ImageFile = Library("PIL.Image"), Library("PIL.ImageFile")

__all__ = ["Image", "ImageFile", "hub_errors", "huggingface_hub", "loguru", "transformers"]
