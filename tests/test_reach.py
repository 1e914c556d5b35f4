"""A hub that cannot be reached is said at once, and what the cache has is used: a login node without network."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from finepruner_lmms.checkpoints import reach
from finepruner_lmms.checkpoints.fetch import fetch_file, fetch_small, fetch_weights
from finepruner_lmms.checkpoints.reach import unreachable
from finepruner_lmms.errors import FieldError


@pytest.fixture
def nobody(monkeypatch, tmp_path) -> str:
    """A hub at an address where nobody listens, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return endpoint


def test_it_is_said_at_once_and_by_one_line(nobody, capfd, tmp_path):
    began = time.monotonic()
    for fetch in (lambda: fetch_file("some/body", "config.json"), lambda: fetch_small("some/body"),
                  lambda: fetch_weights("some/body", tmp_path)):  # fmt: skip
        with pytest.raises(FieldError, match=f"cannot fetch .*'some/body': {nobody} cannot be reached"):
            fetch()
    assert time.monotonic() - began < 20  # the hub's client takes 23 seconds for one of them
    assert capfd.readouterr() == ("", "")


def test_what_the_cache_has_is_used(nobody, tmp_path):
    folder = tmp_path / "models--some--body"
    commit = "0123456789" * 4
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert fetch_file("some/body", "config.json") == snapshot / "config.json"
    assert fetch_small("some/body") == snapshot
    with pytest.raises(FieldError, match=f"weights: cannot fetch 'some/body': {nobody} cannot be reached .*has none"):
        fetch_weights("some/body", snapshot)
    (snapshot / "model.safetensors").write_bytes(b"")
    fetch_weights("some/body", snapshot)


def test_a_proxy_is_asked_and_offline_asks_nobody(nobody, monkeypatch):
    assert "cannot be reached" in unreachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert unreachable() == ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example:1234")
    monkeypatch.setenv("no_proxy", "")
    for name in ("http_proxy", "all_proxy"):
        with monkeypatch.context() as alone:
            alone.setenv(name, "http://127.0.0.1:9")
            assert unreachable() == ""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:99999")  # for the hub's client to refuse
    assert unreachable() == ""


def test_an_address_that_answers_nothing_is_not_waited_for(nobody, monkeypatch):
    waited: list[float] = []

    class Silent(socket.socket):
        def connect(self, address):
            waited.append(self.gettimeout())
            time.sleep(self.gettimeout())
            raise TimeoutError("timed out")

    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 443))] * 9
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", Silent)
    monkeypatch.setattr(reach, "_EACH", 0.2)
    monkeypatch.setattr(reach, "_SECONDS", 0.5)
    assert "cannot be reached (timed out)" in unreachable()
    assert waited[0] == 0.2 and 2 <= len(waited) <= 3 and sum(waited) <= 0.5  # of nine addresses


def test_a_hub_that_listens_is_reachable(nobody, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert unreachable() == ""
    finally:
        server.shutdown()
        server.server_close()
