"""Serving the page from this machine: nothing is fetched from elsewhere, and what was uploaded goes when it ends."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from finepruner_lmms.app.samples import Samples
from finepruner_lmms.asking.show_page import STYLE
from finepruner_lmms.errors import FieldError

_WAITING = 16
"""Questions that wait for the model; who comes then is told so."""
_LARGEST = "20mb"
"""Of a file that is uploaded."""
_STYLE = """
.kept{--ink:var(--body-text-color);--soft:var(--body-text-color-subdued);--line:var(--border-color-primary);
--right:#176f34;--wrong:#b3261e;color:var(--ink);font-size:15px;line-height:1.5}
.dark .kept{--right:#5fce84;--wrong:#ff8a80}
.kept .problem{border:1px solid var(--wrong);border-radius:.4rem;padding:.6rem .8rem;overflow-wrap:anywhere}
"""


def serve(model: Any, processor: Any, about: str, *, tokens: int, host: str, port: int | None, share: bool) -> None:
    """Serve the page until somebody stops it. `port=None` takes the first free one from 7860 on.

    With `share` Gradio's servers give it a public address, for a week; `FieldError` where they do not.
    """
    with tempfile.TemporaryDirectory(prefix="finepruner-app-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        # its own first request must not go through a proxy
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, [direct, "localhost", "127.0.0.1"]))
        from finepruner_lmms.app.desk import Desk
        from finepruner_lmms.app.page import build

        page = build(Desk(model, processor, about, tokens, Samples(Path(folder))))
        page.queue(max_size=_WAITING)
        _, local, public = page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, show_error=True,
            theme=_theme(), css=STYLE + _STYLE, footer_links=[], run_history=False, ssr_mode=False, pwa=False,
            max_file_size=_LARGEST, inbrowser=False,
        )  # fmt: skip
        try:
            if share and not public:
                fix = "leave it out, or reach this address through `ssh -L`"
                raise FieldError("--share", "Gradio's servers gave no public address", value="yes", fix=fix)
            for address in filter(None, (local, public)):
                sys.stdout.write(f"open {address}\n")
            sys.stdout.write("Ctrl-C ends it\n")
            sys.stdout.flush()
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _theme() -> Any:
    """Gradio's own, with fonts that are there and colours that can be read."""
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    for dark, soft in (("", "#5c5c61"), ("_dark", "#a5a5ad")):
        words = (
            "body_text_color_subdued",
            "block_info_text_color",
            "block_label_text_color",
            "input_placeholder_color",
        )
        colours = {f"{word}{dark}": soft for word in words}
        colours |= {f"button_primary_background_fill{dark}": "*primary_700"}
        theme.set(**colours | {f"button_primary_background_fill_hover{dark}": "*primary_800"})
    return theme
