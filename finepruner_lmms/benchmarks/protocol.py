"""By whose rules answers become scores: LLaVA's, which published figures follow, or those of lmms-eval's own tasks.

Prompts are the same under both. What differs is in docs/scoring.md.
"""

from __future__ import annotations

from typing import Literal

from finepruner_lmms.errors import FieldError, nearest

Protocol = Literal["llava", "lmms_eval"]
LLAVA: Protocol = "llava"
LMMS_EVAL: Protocol = "lmms_eval"
PROTOCOLS: tuple[Protocol, ...] = (LLAVA, LMMS_EVAL)
_MODULES = {
    "vqav2": "vqav2", "gqa": "gqa", "vizwiz": "vizwiz", "sqa": "sqa", "pope": "pope", "mme": "mme",
    "mmbench": "mmbench", "mmbench_cn": "mmbench",
}  # fmt: skip
"""The benchmarks that the two score differently, with the module that holds both ways."""


def check_protocol(name: str) -> Protocol:
    """`name` as a protocol; `FieldError` if it is none."""
    for protocol in PROTOCOLS:
        if name == protocol:
            return protocol
    problem = f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}"
    raise FieldError("protocol", problem, value=name)


def applied(task: str, protocol: Protocol) -> Protocol:
    """The protocol that a benchmark is scored by when `protocol` is asked for: LLaVA's where there is only one way."""
    return protocol if task in _MODULES else LLAVA


def protocol_lines(task: str, protocol: Protocol) -> list[str]:
    """The keys of a task file that make it score by `protocol`; none for LLaVA's, which the files say already."""
    if applied(task, protocol) == LLAVA:
        return []
    return [f"process_results: !function finepruner_lmms.benchmarks.{_MODULES[task]}.lmms_eval_results"]
