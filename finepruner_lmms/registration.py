"""How lmms-eval finds the model; imported whenever lmms-eval lists its models, so it imports nothing heavy."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> ModelManifest:
    """The entry of the group `lmms_eval.models`."""
    return ModelManifest(
        model_id="llava_finepruner",
        simple_class_path="finepruner_lmms.lmms_model.LlavaFinePruner",
        aliases=("finepruner",),
    )
