"""Under which name of lmms-eval a checkpoint is run. Loads no tensors."""

from __future__ import annotations

LLAVA, ANY = "llava_finepruner", "finepruner"
"""Both read messages and answer for all families; the first is that under which LLaVA-1.5 always ran."""


def model_name(pretrained: str) -> str:
    """`--model` for a checkpoint, by its config.json. `FieldError` where that cannot be read."""
    from finepruner_lmms.checkpoints.configuration import read_raw_config
    from finepruner_lmms.checkpoints.original_config import is_original

    raw = read_raw_config(pretrained)
    return LLAVA if is_original(raw) or raw.get("model_type") == "llava" else ANY
