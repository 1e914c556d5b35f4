"""The demo page in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from finepruner_lmms.errors import check_choice


def app(
    pretrained: Annotated[str, typer.Option(help="A checkpoint: hub id, folder, or demo.")] = "demo",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where it is served.", show_default="the first free from 7860")
    ] = None,
    host: Annotated[str, typer.Option(help="Who may reach it: 0.0.0.0 is everybody in the network.")] = "127.0.0.1",
    share: Annotated[str, typer.Option(help="yes: a public address by Gradio's servers, for a week.")] = "no",
    tokens: Annotated[int, typer.Option(help="New tokens of an answer, at most.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16")] = "auto",
) -> None:
    """Serve a page to try methods on: picture, question, sliders; what each keeps, its answer and times."""
    from finepruner_lmms.commands.preflight import check_address
    from finepruner_lmms.extras import need

    check_choice("--share", share, ("no", "yes"))
    check_address(host, port)
    need("gradio", "app", "app")
    import finepruner_lmms as fp
    from finepruner_lmms.app.serve import serve

    model, processor = fp.load_model(pretrained, dtype=dtype, device=device)
    about = f"{pretrained}, {str(model.dtype).removeprefix('torch.')}, on {model.device}"
    serve(model, processor, about, tokens=tokens, host=host, port=port, share=share == "yes")
