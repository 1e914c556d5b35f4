"""A judge's server that repeats the key, never ends, or says what is not HTTP; and a key given where a name belongs."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import time
import zlib
from urllib.parse import quote

import pytest
from judge_server import JudgeServer as Server
from judge_server import RawServer, fails, knows, reply, says
from test_judge import TWELVE, score, settings_of
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.judge import client as client_module
from finepruner_lmms.judge.client import ChatClient, JudgeError
from finepruner_lmms.judge.exchange import MOST_BYTES
from finepruner_lmms.judge.settings import JudgeServer, from_environment
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.redaction import WITHHELD, Secret

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.01)
    for name in ("FINEPRUNER_JUDGE", "FINEPRUNER_JUDGE_MODEL", "FINEPRUNER_JUDGE_KEY_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" for c in text)


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


FORMS = {
    "as it is": KEY,
    "upper case": KEY.upper(),
    "a part": KEY[:14],
    "JSON": escaped(KEY),
    "JSON in part": f"{KEY[:4]}{escaped(KEY[4])}{KEY[5:11]}{escaped(KEY[11:])}",
    "JSON in JSON": escaped(KEY).replace("\\", "\\\\"),
    "backslashes": KEY.replace("-", "\\-"),
    "bytes of Python": "".join(f"\\x{ord(c):02x}" for c in KEY),
    "URL": "".join(f"%{ord(c):02X}" for c in KEY),
    "URL in URL": quote("".join(f"%{ord(c):02X}" for c in KEY)),
    "HTML": "".join(f"&#{ord(c)};" for c in KEY),
    "base64": coded(KEY),
    "base64 of a header": coded(f"Bearer {KEY}"),
    "base64 of a login": coded(f"me:{KEY}"),
    "base32": base64.b32encode(f"x{KEY}".encode()).decode(),
    "hexadecimal": KEY.encode().hex(),
    "spaced": " ".join(KEY),
    "wide": "".join(chr(ord(c) + 0xFEE0) for c in KEY),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_taken_out_in_any_spelling(form):
    secret = Secret(KEY)
    hidden = secret.hide(f"before {FORMS[form]} after")
    assert hidden in (WITHHELD, "before [key] after")
    assert secret.hide_all({"a": [FORMS[form], 1], FORMS[form]: None}) == {"a": [secret.hide(FORMS[form]), 1]} | {
        secret.hide(FORMS[form]): None
    }


def test_what_holds_no_key_stays_as_it_is():
    for text in ("0.5", "a secret sk- 0123", "50%20 &amp; \\n \\u00e9 c2VjcmV0", "\u2028é", ""):
        assert Secret(KEY).hide(text) == text == Secret(None).hide(text) == Secret("x").hide(text)


def in_json(text: str) -> str:
    """Inside a JSON string, as the form itself is written."""
    return text if "\\" in text else json.dumps(text)[1:-1]


def chat(content: str = "0.5", model: str = "judge-1-served", more: str = "") -> str:
    said = f'{{"model": "{model}", "choices": [{{"message": {{"content": "{content}"}}}}]{more}}}'
    return said


CHANNELS = {
    "reason": lambda key: reply(b"no", status=f"401 {key}"),
    "header": lambda key: reply(b"no", f"X-Said: {key}", f"Content-Type: {key}", status="400 Bad"),
    "pause": lambda key: reply(b"no", f"Retry-After: {key}", status="503 Bad"),
    "broken header": lambda key: f"HTTP/1.1 200 OK\r\n{key} bad\x00: {key}\r\n\r\n".encode(),
    "no HTTP": lambda key: key.encode(),
    "redirect": lambda key: reply(b"", f"Location: http://other/{key}", status="302 Found"),
    "text": lambda key: reply(f"invalid key {key}".encode(), status="401 Unauthorized"),
    "error": lambda key: reply(f'{{"error": {{"message": "bad {in_json(key)}", "code": 1}}}}'.encode(), status="400 B"),
    "name": lambda key: reply(f'{{"{in_json(key)}": 1}}'.encode(), status="400 B"),
    "answer": lambda key: reply(chat(content=f"0.5 {in_json(key)}").encode()),
    "model": lambda key: reply(chat(model=in_json(key)).encode()),
    "usage": lambda key: reply(
        chat(more=f', "usage": {{"total_tokens": 3, "{in_json(key)}": 5, "by": "{in_json(key)}"}}').encode()
    ),
    "beside": lambda key: reply(chat(content="", more=f', "id": "{in_json(key)}"').encode()),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_no_channel_brings_the_key_to_disk_or_screen(caplog, channel):
    caplog.set_level(logging.DEBUG)
    forms = iter(spellings := [form for form in FORMS.values() if form.isascii()])
    with (
        RawServer(lambda send: send(CHANNELS[channel](next(forms)))) as server,
        ChatClient(settings_of(server, retries=0)) as client,
    ):
        for form in spellings:
            try:
                said = repr(client.ask("?"))  # all of a reply that is stored
            except JudgeError as error:
                said = str(error)
                assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
            for text in (said, caplog.text):
                assert form not in text and form not in text.replace("\\\\", "\\")
                assert all(Secret(KEY).hide(line) == line for line in text.splitlines())  # nothing is left to take out
            caplog.clear()
    assert server.requests == len(spellings)


# -- servers without end or sense -------------------------------------------------------------------------------------


def drip(start: bytes, piece: bytes):
    def speak(send) -> None:
        send(start)
        while True:
            send(piece)
            time.sleep(0.02)

    return speak


def flood(start: bytes, piece: bytes):
    def speak(send) -> None:
        send(start)
        while True:
            send(piece)

    return speak


def says_raw(*arguments: object, **more: str):
    content = reply(*arguments, **more)
    return lambda send: send(content)


def inflating(size: int = 300 * MOST_BYTES) -> bytes:
    """So many blanks, as gzip: a few hundred kilobytes."""
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packed.compress(b" " * MOST_BYTES) for _ in range(size // MOST_BYTES)), packed.flush()])


OK = b"HTTP/1.1 200 OK\r\n"
CASES = {
    "a body byte by byte": (drip(OK + b"Content-Length: 9999\r\n\r\n", b" "), "no answer within 0.5 seconds"),
    "chunks without end": (drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), "no answer within 0.5"),
    "headers byte by byte": (drip(OK, b"X"), "no answer within 0.5 seconds"),
    "interim replies without end": (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "no answer within 0.5 seconds"),
    "headers without end": (flood(OK, b"X: " + b"y" * 1000 + b"\r\n"), "cannot be reached"),
    "a body without end": (flood(OK + b"\r\n", b"x" * 65536), "it is longer than 1,048,576 bytes"),
    "an error without end": (flood(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536), "500 Internal Server Error: 'xxx"),
    "gzip that inflates": (
        says_raw(inflating(), "Content-Encoding: gzip"),
        "longer than 1,048,576 bytes when inflated",
    ),
    "deflate that is none": (says_raw(b"abc", "Content-Encoding: deflate"), "it is not the deflate that it says it is"),
    "br": (says_raw(b"abc", "Content-Encoding: br"), "compressed in a way that was not asked for"),
    "gzip in gzip": (says_raw(b"abc", "Content-Encoding: gzip, gzip"), "compressed in a way that was not asked for"),
    "HTML": (says_raw(b"<html>", "Content-Type: text/html"), "not a chat completion but 'text/html': '<html>'"),
    "no UTF-8": (says_raw(chat("0.5 \xff").encode("latin-1")), "it is not UTF-8"),
    "another charset": (says_raw(b"x", "Content-Type: application/json; charset=zlib"), "not a chat completion: 'x'"),
    "nested": (says_raw(b"[" * 200_000), "not a chat completion: '[[["),
    "a number of many digits": (says_raw(b'{"choices": ' + b"9" * 9999 + b"}"), "not a chat completion"),
    "a list": (says_raw(b"[1]"), "not a chat completion: '[1]'"),
    "a message of a megabyte": (says_raw(chat("0.5 " * 9999).encode()), "a message of 39,996 characters"),
    "nothing": (says_raw(b""), "not a chat completion: ''"),
    "no HTTP": (lambda send: send(b"SSH-2.0-OpenSSH\r\n"), "cannot be reached"),
    "hung up": (lambda send: None, "cannot be reached"),
    "cut off": (lambda send: send(OK + b"Content-Length: 99\r\n\r\n{"), "cannot be reached"),
    "a pause of ages": (says_raw(b"", f"Retry-After: {'9' * 190}", status="503 No"), "it asks us to wait 1000000000"),
    "no pause": (says_raw(b"", "Retry-After: Thu, 01 Jan 99999999999 00:00:00 GMT", status="503 No"), "503 Service Un"),
    "a status of its own": (says_raw(b"no", status="599 Nothing"), "599: 'no'"),
    "escape sequences": (says_raw(b"\x1b[2J\x1b]0;x\x07", status="400 B"), r"400 Bad Request: '\x1b[2J"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_server_without_end_or_sense_is_a_clean_error_in_time(tmp_path, case):
    speak, problem = CASES[case]
    with RawServer(speak) as server, pytest.raises(JudgeError) as error:
        started = time.monotonic()
        score(settings_of(server, retries=0, timeout=0.5), TWELVE[:1], tmp_path / "j")
    assert time.monotonic() - started < 15  # three tries at most
    text = str(error.value)
    assert problem in text and text.isprintable() == ("\n" not in text) and len(text) < 1000
    assert (tmp_path / "j").read_text() == ""


def test_a_reply_that_is_compressed_all_the_same_is_read(tmp_path):
    for packed, encoding in ((gzip.compress(chat().encode()), "gzip"), (zlib.compress(chat().encode()), "deflate")):
        with RawServer(says_raw(packed, f"Content-Encoding: {encoding}")) as server:
            assert score(settings_of(server, retries=0), TWELVE[:1], tmp_path / encoding) == [0.5]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_since_the_key_would_go_there(tmp_path, status):
    with Server(knows) as other, Server(lambda *_: fails(status, Location=f"{other.url}/v1")) as server:
        with pytest.raises(JudgeError, match=f"sends us elsewhere to '{other.url}/v1'; it is not followed"):
            score(settings_of(server, retries=3), TWELVE[:1], tmp_path / "j")
        assert len(server.requests) == 1 and other.requests == []


@pytest.mark.parametrize("said", ["0.55", "1.0000001", "1e-1", "infinity", "0x1", "٠", "1_0", "2", "-0.5"])
def test_a_score_that_the_rubric_does_not_know_is_refused(tmp_path, said):
    with (
        Server(lambda *_: says(said)) as server,
        pytest.raises(JudgeError, match=r"expected a score from 0\.0 to 1\.0"),
    ):
        score(settings_of(server), TWELVE[:1], tmp_path / "j")


# -- a key given where a name belongs ---------------------------------------------------------------------------------

MISTAKEN = [
    "sk-proj-abcDEF0123456789",
    "hf_abcdefGHIJ0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "deadbeef00112233445566778899aabb",
]
MATRIX = "name: m\nmodel: {{pretrained: demo}}\ndata: demo\ntasks: [mmvet]\nmethods: [vanilla]\njudge: {judge}\n"
PLACES = [
    "{{url: 'http://h', model: m, key_env: {key}}}",
    "{{url: 'http://h', model: m, key_env: [{key}]}}",
    "{{url: 'http://h', model: m, timeout: {key}}}",
    "{{url: 'http://h', model: m, retries: [{key}]}}",
    "{{url: {key}, model: m}}",
    "{{url: 'http://{key}@h', model: m}}",
    "{{url: 'http://h', model: m, api_key: {key}}}",
    "{key}",
    "[{key}]",
]


@pytest.mark.parametrize("key", MISTAKEN)
@pytest.mark.parametrize("place", PLACES)
def test_a_key_in_a_matrix_file_is_refused_and_not_repeated(tmp_path, key, place):
    config = tmp_path / "m.yaml"
    config.write_text(MATRIX.format(judge=place.format(key=key)))
    done = CliRunner().invoke(app, ["plan", str(config), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2 and f"{config}:6:" in done.output and "judge" in done.output
    assert key not in done.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", MISTAKEN)
@pytest.mark.parametrize("option", ["--key-env", "--url", "variable"])
def test_a_key_on_the_command_line_or_in_the_environment_is_refused_and_not_repeated(
    tmp_path, monkeypatch, key, option
):
    store = Store(tmp_path / "run")
    store.save_study(Study(name="s", model="m", num_layers=2, num_visual_tokens=4, tasks=("mmvet",), rows=(), cells=()))
    arguments = ["judge", str(store.root), "--url", "http://127.0.0.1:1", "--model", "m"]
    if option == "variable":
        monkeypatch.setenv("FINEPRUNER_JUDGE", "http://127.0.0.1:1")
        monkeypatch.setenv("FINEPRUNER_JUDGE_MODEL", "m")
        monkeypatch.setenv("FINEPRUNER_JUDGE_KEY_ENV", key)
        arguments = arguments[:2]
    else:
        arguments += [option, key]
    before = (store.root / "matrix.json").read_bytes()
    done = CliRunner().invoke(app, arguments)
    where = ("FINEPRUNER_JUDGE_KEY_ENV: ", "--key-env: ") if option == "variable" else f"{option}: "
    assert done.exit_code == 2 and key not in done.output and done.output.startswith(where)
    assert (store.root / "matrix.json").read_bytes() == before


def test_a_key_in_the_environment_of_a_plain_run_is_not_repeated(monkeypatch, tmp_path):
    key = "deadbeef00112233445566778899aabb"  # may be a name
    given = {"FINEPRUNER_JUDGE_MODEL": "m", "FINEPRUNER_JUDGE_KEY_ENV": key}
    with Server(lambda *_: fails(401)) as server:
        judge = from_environment({"FINEPRUNER_JUDGE": server.url} | given)
        with pytest.raises(JudgeError, match=r"as the variable that key_env names .* is not set") as refused:
            score(judge, TWELVE[:1], tmp_path / "j")
    assert key not in str(refused.value)
    for variable in ("FINEPRUNER_JUDGE", "FINEPRUNER_JUDGE_RETRIES", "FINEPRUNER_JUDGE_KEY_ENV"):
        with pytest.raises(ValueError, match="FINEPRUNER_JUDGE") as refused:
            from_environment({"FINEPRUNER_JUDGE": "http://h"} | given | {variable: f"{KEY}"})
        assert KEY not in str(refused.value)


def test_the_key_is_no_name_of_a_model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "mykey-0123456789")
    with pytest.raises(ValueError, match="stands in url or model") as refused:
        from_environment({"FINEPRUNER_JUDGE": "http://h", "FINEPRUNER_JUDGE_MODEL": "mykey-0123456789"})
    assert "mykey-0123456789" not in str(refused.value)
    for model in ("gpt-4-0613", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "meta-llama/Llama-3.3-70B-Instruct"):
        assert JudgeServer(url="http://h", model=model).model == model
