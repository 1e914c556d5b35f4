"""What transformers says of the weights it read: a model is used only if each of them is the checkpoint's own."""

from __future__ import annotations

import re
from typing import Any

from finepruner_lmms.errors import FieldError, list_names

COMPUTED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
"""Buffers that older versions wrote: computed, not learnt."""


def check_report(report: dict[str, Any], field: str, where: str, kind: str) -> None:
    """Raise `FieldError` of `field` where transformers made weights up, or left some out.

    `report` is what `from_pretrained(output_loading_info=True)` returns, `where` the folder or hub id, `kind` what the
    model is.
    """
    missing = sorted(report["missing_keys"])
    unknown = sorted(name for name in report["unexpected_keys"] if not COMPUTED.search(name))
    shapes = [
        f"{name} is {list(given)}, by config.json {list(wanted)}"
        for name, given, wanted in sorted(report["mismatched_keys"])
    ]
    problems = [f"lacks {list_names(missing)}"] if missing else []
    problems += [f"holds {list_names(unknown)}, which {kind} does not have"] if unknown else []
    problems += [f"holds weights of another shape: {list_names(shapes)}"] if shapes else []
    if problems:
        raise FieldError(field, f"{where!r} {' and '.join(problems)}", value=where)
