"""The pruning methods, one a file. Importing this package registers all of them."""

from finepruner_lmms.pruners import fastv, finepruner, random, uniform, vanilla
from finepruner_lmms.pruners.base import (
    DecoderContext,
    DecoderPruner,
    Pruner,
    Selection,
    Stage,
    VisionPruner,
    build_pruner,
    known_methods,
    method_class,
    parameter_names,
    register,
)

METHODS = known_methods()

__all__ = [
    "METHODS",
    "DecoderContext",
    "DecoderPruner",
    "Pruner",
    "Selection",
    "Stage",
    "VisionPruner",
    "build_pruner",
    "fastv",
    "finepruner",
    "method_class",
    "parameter_names",
    "random",
    "register",
    "uniform",
    "vanilla",
]
