"""Visual token pruning for LLaVA in lmms-eval.

    import finepruner_lmms as fp

    model, processor = fp.load_model("demo")
    pruner = fp.build_pruner("fastv", budget=128)
    result = fp.generate(model, pruner, inputs, max_new_tokens=16)

Names are resolved on first use, so that importing the package (which lmms-eval does to find its models) costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "HEAD_STRATEGIES": "heads",
    "METHODS": "pruners",
    "Answer": "asking.answer",
    "Generation": "engine.generation",
    "Pruner": "pruners",
    "Trace": "engine.trace",
    "VisionOutputs": "pruners.vision_outputs",
    "answer": "asking.answer",
    "attach": "engine.decoder_hooks",
    "build_pruner": "pruners",
    "encode_images": "engine.vision_tower",
    "generate": "engine.generate",
    "leaderboard": "matrix.report.opened",
    "load_model": "checkpoints.load",
    "show": "asking.show",
}
_LIVE = ("HEAD_STRATEGIES", "METHODS")  # these grow when something is registered

__all__ = [
    "HEAD_STRATEGIES",
    "METHODS",
    "Answer",
    "Generation",
    "Pruner",
    "Trace",
    "VisionOutputs",
    "answer",
    "attach",
    "build_pruner",
    "encode_images",
    "generate",
    "leaderboard",
    "load_model",
    "show",
]

if TYPE_CHECKING:
    from finepruner_lmms.asking.answer import Answer, answer
    from finepruner_lmms.asking.show import show
    from finepruner_lmms.checkpoints.load import load_model
    from finepruner_lmms.engine.decoder_hooks import attach
    from finepruner_lmms.engine.generate import generate
    from finepruner_lmms.engine.generation import Generation
    from finepruner_lmms.engine.trace import Trace
    from finepruner_lmms.engine.vision_tower import encode_images
    from finepruner_lmms.heads import HEAD_STRATEGIES
    from finepruner_lmms.pruners import METHODS, Pruner, build_pruner
    from finepruner_lmms.pruners.vision_outputs import VisionOutputs

    leaderboard: Any  # of matrix.report.opened, of which rooms below know nothing


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'finepruner_lmms' has no attribute {name!r}")
    value = getattr(import_module(f"finepruner_lmms.{_HOME[name]}"), name)
    if name not in _LIVE:
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
