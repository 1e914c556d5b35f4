"""The demo page: what it offers, what it says of bad input, and the whole of it clicked through in a browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from browser import Window, chromium
from typer.testing import CliRunner

import finepruner_lmms as fp
from finepruner_lmms import extras
from finepruner_lmms.app.choices import FIRST, Choice, Offer, reads_heads, reads_strategy
from finepruner_lmms.app.desk import Desk
from finepruner_lmms.app.samples import Samples
from finepruner_lmms.cli import app
from finepruner_lmms.demo.scenes import make_scene
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads import HEAD_STRATEGIES
from finepruner_lmms.testing.families import tiny_model

CHOICE = Choice(["fastv"], "64", "recommended", 4)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(*fp.load_model("demo"), "demo", 4, Samples(tmp_path_factory.mktemp("samples")))


def said(desk: Desk, file: object, question: str, choice: Choice = CHOICE) -> str:
    return desk.answer(None if file is None else str(file), question, choice, lambda done, of, label: None)


def labels(choice: Choice) -> list[str]:
    return [label for label, _ in choice.pruners()]


def test_every_registered_method_and_strategy_can_be_chosen(desk):
    offer = desk.offer
    dropping = {name for name in fp.METHODS if fp.build_pruner(name).side != "none"}
    assert {*offer.vision, *offer.decoder} == dropping and set(FIRST) <= dropping
    assert {*HEAD_STRATEGIES, "recommended", "consensus"} == set(offer.strategies)
    assert (offer.most, offer.heads, offer.usual_heads) == (576, 8, 4)
    assert labels(Choice([], "64", "recommended", 4, offer.written))[1] == "finepruner 64 heads=4 head_strategy=sum"


def test_a_budget_is_a_share_where_pictures_have_more_or_fewer_tokens():
    offer = Offer.of(tiny_model("llava_next").config)
    assert offer.varies and offer.most == 100 and offer.usual_budget == 11


def test_heads_go_to_the_methods_and_strategies_that_read_them():
    assert labels(Choice(["fastv", "finepruner"], "32", "sparsity", 3)) == [
        "vanilla", "fastv 32", "finepruner 32 heads=3 head_strategy=sparsity",
    ]  # fmt: skip
    assert labels(Choice(["finepruner"], "32", "recommended", 3))[1] == "finepruner 32 head_strategy=recommended"
    assert reads_strategy(["fastv", "finepruner"]) and not reads_strategy(["fastv"])
    assert reads_heads(["finepruner"], "sparsity") and not reads_heads(["finepruner"], "consensus")


def test_methods_can_be_written_as_on_the_command_line_and_none_comes_twice():
    choice = Choice(["fastv"], "25%", "sum", 4, "fastv, fastv:64:layer=3,divprune+fastv:64:first=288")
    assert labels(choice)[1:] == ["fastv 25%", "fastv 64 layer=3", "divprune+fastv 64 first=288"]
    with pytest.raises(FieldError, match=r"more methods: .*fastvv.*did you mean 'fastv'"):
        Choice([], "64", "sum", 4, "fastvv").pruners()
    with pytest.raises(FieldError, match=r"^finepruner\.heads: "):
        Choice(["finepruner"], "64", "sum", 0).pruners()


def test_an_example_brings_its_right_answer_and_another_picture_none(desk, tmp_path):
    file, first = desk.samples.all[0]
    shown = said(desk, file, first.question)
    assert f"Right answer: {first.expected}" in shown and '<span class="right">✓' in shown
    assert shown.count("<figure>") == 2 and "30 of 576, from layer 2; " in shown and "% of the evidence" in shown
    assert "Traceback" not in shown
    other = tmp_path / "other.png"
    make_scene("test", 77).image().save(other)
    assert "Right answer" not in said(desk, other, first.question)
    assert len(desk.samples.all) == 6 and all(known.expected and known.evidence for _, known in desk.samples.all)


def test_bad_input_is_said_in_the_page_with_what_to_do(desk, tmp_path):
    file, _ = desk.samples.all[0]
    broken = tmp_path / "half.png"
    broken.write_bytes(file.read_bytes()[:2000])
    assert "picture: there is none; upload one" in said(desk, None, "?")
    assert "question: is empty" in said(desk, file, " \n")
    assert "question: has 5000 characters" in said(desk, file, "x" * 5000)
    shown = said(desk, broken, "?")
    assert "picture: the file cannot be read as one; give a PNG" in shown and str(tmp_path) not in shown
    assert 'role="alert"' in shown and "<figure" not in shown
    assert "known: " in said(desk, file, "?", Choice(["fastv"], "64", "summ", 4, "finepruner:64:head_strategy=summ"))


def test_a_question_runs_nothing_in_the_page(desk):
    asked = "<script>alert(1)</script>${alert(2)}{{value}}<img src=x onerror=alert(3)>\x1b[2J"
    shown = said(desk, desk.samples.all[0][0], asked)
    assert "<script" not in shown and "<img src=x" not in shown and "\x1b" not in shown and "&lt;script&gt;" in shown


def one_line(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["app", *arguments])
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.output
    return done.stderr


def test_a_wrong_request_is_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert re.match(
            rf"--port: cannot serve at 127.0.0.1:{port} \(Address already in use\)", one_line("--port", str(port))
        )
    assert one_line("--share", "maybe").startswith("--share: got 'maybe'")
    assert one_line("--host", "192.0.2.1").startswith("--host: cannot serve at 192.0.2.1")

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    assert "needs the package gradio" in (line := one_line()) and "pip install 'finepruner-lmms[app]'" in line


@contextmanager
def served() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a user starts it, and the address that it says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "finepruner_lmms.cli", "app", "--port", str(port), "--tokens", "4"]
    log = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            assert line == f"open http://127.0.0.1:{port}/\n"
            yield process, line.split()[1]
        finally:
            process.kill()


def asked(window: Window) -> str:
    """What the page shows after the button was pressed: what comes anew, not what was there."""
    page = window.page
    page.evaluate("document.querySelector('#shown .kept').dataset.old = 1")
    page.get_by_role("button", name="Ask with every method").click()
    page.wait_for_selector("#shown .kept:not([data-old])", timeout=120_000)
    return page.locator("#shown").inner_text()


@pytest.mark.slow
def test_the_page_is_clicked_through_in_a_browser_without_a_network(tmp_path):
    with chromium() as browser, served() as (process, address):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.set_default_timeout(60_000)
        window = Window(context.new_page())
        page = window.page
        page.goto(address)
        page.wait_for_selector("#shown .kept")

        shown = asked(window)  # what is there when the page opens
        assert "Right answer: 2" in shown and "finepruner 64 head_strategy=recommended" in shown
        assert "finepruner 64 heads=4 head_strategy=sum" in shown  # the code base's, under its name
        assert page.locator("#shown figure").count() == 6 and re.search(r"\d (ms|s)\b", shown)

        page.locator("#vision").get_by_label("random").uncheck()
        page.locator("#vision").get_by_label("vispruner").uncheck()
        page.locator("#decoder").get_by_label("pdrop").check()
        heads = page.locator("#heads input[type=number]")
        assert heads.is_disabled()
        page.locator("#strategy input").click()
        page.get_by_role("option", name="sparsity", exact=True).click()
        page.wait_for_function("!document.querySelector('#heads input[type=number]').disabled")
        heads.fill("2")
        page.locator("#budget input[type=number]").fill("128")
        page.get_by_text("How many").click()  # an example
        page.wait_for_function("document.querySelector('#question textarea').value.startsWith('How many')")
        shown = asked(window)
        assert "finepruner 128 heads=2 head_strategy=sparsity" in shown and "Right answer: 3" in shown
        assert page.locator("#shown figure").count() == 1 + 1 + 1 + 4 + 1  # pdrop has four stages

        page.locator("#question textarea").fill("<img src=x onerror=alert(1)> ${alert(2)} {{7*7}}")
        assert "<img src=x onerror=alert(1)> ${alert(2)} {{7*7}}" in asked(window)
        page.locator("#written textarea, #written input").fill("fastvv")
        assert "did you mean 'fastv'" in asked(window)
        page.locator("#question textarea").fill("")
        assert "question: is empty" in asked(window)
        assert "Traceback" not in page.content()

        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#question textarea").fill("How many?")
        page.locator("#written textarea, #written input").fill("")
        assert "vanilla" in asked(window)
        page.wait_for_function("document.querySelector('#shown').getBoundingClientRect().top < innerHeight / 2")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        assert window.wrong == []
        assert window.broken() == []
        assert {re.split("[/:]+", url)[1] for url in window.asked if url.startswith("http")} == {"127.0.0.1"}
        assert page.evaluate("[...document.fonts].length") == 0
        context.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
