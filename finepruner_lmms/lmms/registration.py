"""How lmms-eval finds the model; imported whenever lmms-eval lists its models, so it imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lmms import heartbeat
from finepruner_lmms.lmms.names import ANY, LLAVA

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """The entries of the group `lmms_eval.models`.

    `llava_finepruner` has a class for each of lmms-eval's two interfaces: the chat one is taken unless lmms-eval is
    told `--force_simple`. `finepruner` knows the chat interface alone.
    """
    heartbeat.begin()  # the earliest moment at which a plain `lmms_eval` process runs code of ours
    # importing lmms-eval calls this function: at the top of the module it would find the module half made
    from lmms_eval.models.registry_v2 import ModelManifest

    home = "finepruner_lmms.lmms.model"
    return [
        ModelManifest(LLAVA, f"{home}.LlavaFinePruner", f"{home}.FinePruner"),
        ModelManifest(ANY, None, f"{home}.FinePruner"),
    ]
