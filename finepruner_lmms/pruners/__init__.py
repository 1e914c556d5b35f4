"""The pruning methods, one a file. Importing this package registers all of them, and those of installed plug-ins."""

from finepruner_lmms.pruners import (
    cdpruner,
    divprune,
    fastervlm,
    fastv,
    finepruner,
    pdrop,
    pool,
    random,
    sparsevlm,
    uniform,
    vanilla,
    visionzip,
    vispruner,
)
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Reduction, Stage, VisionPruner
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.plugins import load_plugins
from finepruner_lmms.pruners.registry import (
    build_pruner,
    canonical_name,
    known_methods,
    method_class,
    parameter_names,
    register,
)

load_plugins()
METHODS = known_methods()

__all__ = [
    "METHODS",
    "DecoderContext",
    "DecoderPruner",
    "Pruner",
    "Reduction",
    "Selection",
    "Stage",
    "VisionPruner",
    "build_pruner",
    "canonical_name",
    "cdpruner",
    "divprune",
    "fastervlm",
    "fastv",
    "finepruner",
    "method_class",
    "parameter_names",
    "pdrop",
    "pool",
    "random",
    "register",
    "sparsevlm",
    "uniform",
    "vanilla",
    "visionzip",
    "vispruner",
]
