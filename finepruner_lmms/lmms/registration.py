"""How lmms-eval finds the model; imported whenever lmms-eval lists its models, so it imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lmms import heartbeat

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> ModelManifest:
    """The entry of the group `lmms_eval.models`."""
    heartbeat.begin()  # the earliest moment at which a plain `lmms_eval` process runs code of ours
    # importing lmms-eval calls this function: at the top of the module it would find the module half made
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="llava_finepruner",
        simple_class_path="finepruner_lmms.lmms.model.LlavaFinePruner",
        aliases=("finepruner",),
    )
