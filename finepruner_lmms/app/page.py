"""The page itself, of Gradio's components: what is asked on the left, what each method kept on the right."""

from __future__ import annotations

from typing import Any

import gradio as gr

from finepruner_lmms.app.choices import FIRST, Choice, reads_heads, reads_strategy
from finepruner_lmms.app.desk import Desk
from finepruner_lmms.pruners.finepruner import RECOMMENDED

TITLE = "What a pruning method keeps of a picture"
_INTRODUCTION = (
    "A vision-language model reads a picture as hundreds of visual tokens. Methods that prune keep some of them. "
    "Ask about a picture, and see with each method which tokens are left, and what the model then answers."
)
_TO_ANSWERS = "() => { if (innerWidth < 900) document.getElementById('shown').scrollIntoView({behavior: 'smooth'}) }"
"""On a phone the answers stand far below the button."""
_EMPTY = '<div class="kept"><p class="soft">What the methods keep is shown here.</p></div>'


def build(desk: Desk) -> gr.Blocks:
    """The page, with everything it can do; nothing of it is served yet."""
    offer, (file, first) = desk.offer, desk.samples.all[0]
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{_INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    str(file), label="Picture", type="filepath", format="png", image_mode=None, height=280,
                    sources=["upload", "clipboard"], buttons=[], elem_id="picture",
                )  # fmt: skip
                question = gr.Textbox(first.question, label="Question", lines=2, max_lines=6, elem_id="question")
                ask = gr.Button("Ask with every method", variant="primary", elem_id="ask")
                gr.Examples(
                    [[str(one), known.question] for one, known in desk.samples.all],
                    [picture, question], label="Examples", api_name=False,
                )  # fmt: skip
                vision = gr.CheckboxGroup(
                    list(offer.vision), value=[name for name in FIRST if name in offer.vision],
                    label="Methods before the language model", elem_id="vision",
                )  # fmt: skip
                decoder = gr.CheckboxGroup(
                    list(offer.decoder), value=[name for name in FIRST if name in offer.decoder],
                    label="Methods inside it, or in both places", elem_id="decoder",
                )  # fmt: skip
                what = "percent of the visual tokens" if offer.varies else f"visual tokens, of {offer.most}"
                budget = gr.Slider(
                    1, offer.most, offer.usual_budget, step=1, label=f"Budget: {what}",
                    info="What enters a layer, averaged over all layers.", elem_id="budget",
                )  # fmt: skip
                strategy = gr.Dropdown(
                    list(offer.strategies), value=RECOMMENDED, label="Head strategy", elem_id="strategy",
                    info="How methods that are guided by some heads choose them.",
                )  # fmt: skip
                heads = gr.Slider(
                    1, offer.heads, offer.usual_heads, step=1, label=f"Heads, of {offer.heads}", elem_id="heads",
                    info="Read by strategies that rank heads; recommended and consensus say themselves.",
                    interactive=False,
                )  # fmt: skip
                written = gr.Textbox(
                    offer.written, label="More methods", max_lines=2,
                    placeholder="fastv:64:layer=3, divprune+fastv:64:first=288",
                    info="As on the command line: method:budget:parameter=value.", elem_id="written",
                )  # fmt: skip
            with gr.Column(scale=5, min_width=320):
                shown = gr.HTML(_EMPTY, elem_id="shown", apply_default_css=False)

        def usable(before: list[str], inside: list[str], how: str) -> tuple[Any, Any]:
            methods = [*before, *inside]
            return (
                gr.update(interactive=reads_strategy(methods)),
                gr.update(interactive=reads_heads(methods, how)),
            )

        def answer(
            file: str | None, text: str, before: list[str], inside: list[str],
            tokens: float, how: str, count: float, more: str, progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> str:  # fmt: skip
            given = f"{int(tokens)}%" if offer.varies else str(int(tokens))
            choice = Choice([*before, *inside], given, how, int(count), more)
            return desk.answer(
                file, text, choice, lambda done, of, label: progress((done, of), desc=f"asking with {label}")
            )

        for changed in (vision, decoder, strategy):
            changed.change(
                usable, [vision, decoder, strategy], [strategy, heads],
                queue=False, show_progress="hidden", api_visibility="private",
            )  # fmt: skip
        asked = [picture, question, vision, decoder, budget, strategy, heads, written]
        for event in (ask.click, question.submit, written.submit):
            event(None, js=_TO_ANSWERS, api_visibility="private")  # how far it is can be seen there
            answered = event(answer, asked, shown, concurrency_id="model", concurrency_limit=1, api_name="answer")
            answered.then(None, js=_TO_ANSWERS, api_visibility="private")
    return page
