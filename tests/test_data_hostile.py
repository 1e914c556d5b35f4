"""`prepare` and a hub that answers oddly: that file fails with a reason, the rest goes on, nothing half is ready."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_content import environment, file_of, lay_out
from mirror import Mirror, serve, sha256

from finepruner_lmms.data import hub, hub_http
from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.data.jobs import task_jobs
from finepruner_lmms.data.plan import Options
from finepruner_lmms.data.ready import missing_data
from finepruner_lmms.data.session import prepare_all
from finepruner_lmms.output import console

POPE, MME = file_of("pope"), file_of("mme")


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("content")
    lay_out(root)
    for name in (POPE, MME):  # a few rows are enough
        table = pq.read_table(root / name).slice(0, 4)
        pq.write_table(table, root / name)
    return root


@pytest.fixture
def mirror(content, monkeypatch, tmp_path) -> Iterator[Mirror]:
    """A mirror that this process takes for the hub, without pauses between tries."""
    from huggingface_hub import constants

    with serve(content) as mirror:
        for name, value in environment(mirror, tmp_path / "home").items():
            if name.startswith("HF_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", mirror.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", mirror.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
        yield mirror


def prepare(root: Path, *names: str) -> tuple[int, str]:
    """How many failed, and what was said."""
    with (root.parent / "said.txt").open("w+") as said:
        failed = prepare_all(root, task_jobs(names, {}), Options(accept_rows=True), False, console(said))
        said.seek(0)
        return failed, said.read()


def html(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    send(handler, b"<html>log in</html>", **{"Content-Type": "text/html; charset=utf-8"})


def send(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, length: bool = True, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if length:
        handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
    handler.close_connection = True


def chunked(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for at in range(0, len(data), 65536):
        piece = data[at : at + 65536]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")
    handler.close_connection = True


def to(place: Callable[[BaseHTTPRequestHandler], str]):
    return lambda handler, data: send(handler, b"", 302, Location=place(handler))


def same(text: str):
    return lambda handler, data: send(handler, data, **{"Content-Range": text}, status=206)


ODD = {
    "an HTML portal": (html, "it is not the file, but an HTML page"),
    "an error page": (lambda h, data: send(h, b'{"error": "no"}'), r"it has 15 bytes, not the declared [\d,]+"),
    "an error page of the right size": (lambda h, data: send(h, b"x" * len(data)), "it was thrown away"),
    "one byte more": (lambda h, data: send(h, data + b"x"), r"it has \d+ bytes, not the declared"),
    "one byte more, in chunks": (lambda h, data: chunked(h, data + b"x"), "it is longer than the declared"),
    "more without a length": (lambda h, data: send(h, data * 2, length=False), "it is longer than the declared"),
    "always cut off": (lambda h, data: send(h, data[:999], length=False), r"5 times in a row .*; 999 of"),
    "one byte at a time": (lambda h, data: send(h, data[:1], length=False), r"5 times in a row .*; 1 of"),
    "nothing": (lambda h, data: send(h, b""), "it has 0 bytes, not the declared"),
    "no answer": (lambda h, data: setattr(h, "close_connection", True), "5 times in a row"),
    "gzip": (lambda h, data: send(h, data, Content_Encoding="gzip"), "it is sent compressed"),
    "another range": (same("bytes 5-9/10"), "were asked for, and others came: 'bytes 5-9/10'"),
    "a range without words": (same("all"), "were asked for, and others came: 'all'"),
    "a redirect to itself": (to(lambda h: h.path), "from one address to the next, 10 times"),
    "a redirect to no address": (to(lambda h: "file:///etc/passwd"), "sends us to 'file:///etc/passwd'"),
    "a redirect to nobody": (to(lambda h: "http://127.0.0.1:9/x"), "5 times in a row"),
    "401": (lambda h, data: send(h, b"", 401), "status 401; set HF_TOKEN"),
    "403": (lambda h, data: send(h, b"", 403), "status 403; set HF_TOKEN"),
    "404": (lambda h, data: send(h, b"", 404), "status 404"),
    "416": (lambda h, data: send(h, b"", 416), "status 416"),
    "418": (lambda h, data: send(h, b"", 418), "status 418"),
    "429": (lambda h, data: send(h, b"", 429), r"5 times in a row \(status 429\)"),
    "429 for ages": (lambda h, data: send(h, b"", 429, Retry_After="99999999"), "asks us to wait 99999999 seconds"),
    "500": (lambda h, data: send(h, b"", 500), r"5 times in a row \(status 500\)"),
    "no HTTP": (lambda h, data: h.wfile.write(b"SSH-2.0\r\n") and setattr(h, "close_connection", True), "5 times"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_answer_fails_its_file_with_a_reason_and_the_rest_goes_on(mirror, tmp_path, case):
    odd, reason = ODD[case]
    mirror.odd[POPE] = odd
    failed, said = prepare(tmp_path / "root", "pope", "mme")
    (line,) = [line for line in said.splitlines() if line.startswith("- pope: ")]
    assert failed == 1 and re.search(reason, line), said
    assert "failed, 1 of 2; what was fetched is kept, the same command goes on from here:" in said
    assert re.search(r"^pope +failed$", said, re.MULTILINE) and re.search(r"^mme .* prepared$", said, re.MULTILINE)
    assert sha256(tmp_path / "root" / "mme" / Path(MME).name) == sha256(mirror.root / MME)
    size = (mirror.root / POPE).stat().st_size
    assert all(part.stat().st_size <= size for part in (tmp_path / "root").rglob("*.part"))
    assert not (tmp_path / "root" / "pope").exists() and missing_data(str(tmp_path / "root"), ["pope"])
    assert mirror.leaked == []
    mirror.odd.clear()
    assert prepare(tmp_path / "root", "pope", "mme")[0] == 0
    assert sha256(tmp_path / "root" / "pope" / Path(POPE).name) == sha256(mirror.root / POPE)


def test_of_several_files_each_that_fails_is_listed_and_the_others_are_kept(mirror, tmp_path):
    questions, images = file_of("gqa", 0), file_of("gqa", 1)
    mirror.odd[questions] = html
    failed, said = prepare(tmp_path / "root", "gqa")
    assert failed == 1 and "- gqa: lmms-lab-encoder/GQA: testdev_balanced_instructions/" in said
    assert len(mirror.fetched(images)) == 1  # although the first had failed
    mirror.odd[images] = html
    (tmp_path / "root" / ".incoming" / "gqa" / "testdev_balanced_images" / Path(images).name).unlink()
    failed, said = prepare(tmp_path / "root", "gqa")
    assert failed == 1 and said.count("- gqa: ") == 2
    mirror.odd.clear()
    assert prepare(tmp_path / "root", "gqa")[0] == 0


def test_a_file_never_grows_beyond_its_declared_size(mirror, tmp_path, monkeypatch):
    size, most = (mirror.root / POPE).stat().st_size, []
    taken = hub._Arrived.take

    def take(self, reply) -> None:
        try:
            taken(self, reply)
        finally:
            self._file.flush()
            most.append(os.fstat(self._file.fileno()).st_size)

    monkeypatch.setattr(hub._Arrived, "take", take)
    mirror.odd[POPE] = lambda handler, data: send(handler, data + b"x" * 10_000_000, length=False)
    tells = []
    remote = hub.Remote(f"data/{Path(POPE).name}", size, sha256(mirror.root / POPE))
    part = tmp_path / "x.part"
    part.write_bytes(b"y" * (size + 5))  # and what is too long from before is dropped
    commit = mirror.commit("datasets", FACTS["pope"].repo)
    with pytest.raises(DataError, match="longer than the declared"):
        hub.fetch(FACTS["pope"].repo, "dataset", commit, remote, part, tells.append)
    assert max(most) <= size and sum(tells) == 0 and part.stat().st_size == 0


@pytest.mark.parametrize(
    "answer, reason",
    [
        (b"<html>", "does not answer as the hub does: the answer is not JSON, but an HTML page"),
        (b"[" * 100_000, "the answer is not JSON"),
        (b"[]", "does not name a commit"),
        (b'{"sha": "../../x"}', "does not name a commit"),
        (b'{"sha": 3}', "does not name a commit"),
    ],
)
def test_a_hub_that_is_none_is_told(mirror, tmp_path, answer, reason):
    mirror.odd[f"/api/datasets/{FACTS['pope'].repo}/revision/main"] = lambda handler, data: send(
        handler, answer, Content_Type="text/html"
    )
    failed, said = prepare(tmp_path / "root", "pope", "mme")
    assert failed == 1 and reason in said and re.search(r"^mme .* prepared$", said, re.MULTILINE)


@pytest.mark.parametrize(
    "entries, reason",
    [
        ({"path": "x"}, "the answer is not a list of files"),
        ([3], "the answer is not a list of files"),
        (
            [{"type": "file", "path": "../data/test-0.parquet", "size": 1, "oid": "0" * 40}],
            "named '../data/test-0.parq",
        ),
        ([{"type": "file", "path": "/etc/test-0.parquet", "size": 1, "oid": "0" * 40}], "which is not taken"),
        ([{"type": "file", "path": "data/test-\n.parquet", "size": 1, "oid": "0" * 40}], "which is not taken"),
        ([{"type": "file", "path": "data\\test-0.parquet", "size": 1, "oid": "0" * 40}], "which is not taken"),
        ([{"type": "file", "path": "data/test-0.parquet", "size": -1, "oid": "0" * 40}], "with the size -1"),
        ([{"type": "file", "path": "data/test-0.parquet", "size": "9", "oid": "0" * 40}], "with the size '9'"),
        ([{"type": "file", "path": "data/test-0.parquet", "size": 9, "lfs": {"oid": "../x"}}], "the hash '../x'"),
        ([{"type": "file", "path": "data/test-0.parquet", "size": 9, "lfs": {"oid": "0" * 64, "size": 8}}], "size 9"),
        ([{"type": "file", "path": 5}, {"type": "directory"}, {}], "holds no files like data/test-*.parquet"),
    ],
)
def test_an_odd_listing_is_refused(mirror, tmp_path, entries, reason):
    commit = mirror.commit("datasets", FACTS["pope"].repo)
    mirror.odd[f"/api/datasets/{FACTS['pope'].repo}/tree/{commit}"] = lambda handler, data: send(
        handler, json.dumps(entries).encode()
    )
    failed, said = prepare(tmp_path / "root", "pope")
    assert failed == 1 and reason in said and not (tmp_path / "root" / "pope").exists()


def test_a_listing_without_end_is_refused(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_MOST_PAGES", 5)
    commit = mirror.commit("datasets", FACTS["pope"].repo)
    mirror.odd[f"/api/datasets/{FACTS['pope'].repo}/tree/{commit}"] = lambda handler, data: send(
        handler, b"[]", Link=f'<{handler.path}>; rel="next"'
    )
    assert "has more than 5 pages" in prepare(tmp_path / "root", "pope")[1]
    monkeypatch.setattr(hub_http, "_MOST_BYTES", 1000)
    mirror.odd[f"/api/datasets/{FACTS['pope'].repo}/tree/{commit}"] = lambda handler, data: send(handler, b"[" * 5000)
    assert "the answer is longer than 1,000 bytes" in prepare(tmp_path / "root", "pope")[1]


def test_a_server_that_crawls_is_given_up(mirror, tmp_path, monkeypatch):
    def crawl(handler: BaseHTTPRequestHandler, data: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):  # the client hangs up
            for at in range(1000):
                handler.wfile.write(data[at : at + 1])
                threading.Event().wait(0.02)

    monkeypatch.setattr(hub, "_SPELL", 0.1)
    mirror.odd[POPE] = crawl
    said = prepare(tmp_path / "root", "pope")[1]
    assert re.search(r"no answer 5 times in a row \(only \d+ bytes came in 0 seconds\)", said)


def test_a_hub_that_is_busy_is_asked_again(mirror, tmp_path):
    place, busy = f"/api/datasets/{FACTS['pope'].repo}/revision/main", [503, 429]

    def answer(handler: BaseHTTPRequestHandler, data: bytes) -> None:
        send(handler, b"", busy.pop())
        if not busy:
            mirror.odd.clear()

    mirror.odd[place] = answer
    assert prepare(tmp_path / "root", "pope")[0] == 0
    mirror.odd[place] = lambda handler, data: send(handler, b"", 503)
    failed, said = prepare(tmp_path / "other", "pope")
    assert failed == 1 and "does not answer: status 503" in said
    assert sum(path == place for _, path, _ in mirror.requests) == 3 + 5


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"files": 3}, "files"),
        ({"files": [{"path": "x"}]}, "files"),
        ({"files": [{"path": "../x", "origin": "x", "size": 1, "sha256": "0", "compared": True}]}, "'../x'"),
        ({"files": [{"path": "x", "origin": "x", "size": "a", "sha256": "0", "compared": True}]}, "size"),
        ({"rows": {"": "many"}}, "rows"),
        ({"schema_version": 99}, "is not a manifest of this version"),
    ],
)
def test_a_manifest_that_is_none_is_told(mirror, tmp_path, change, reason):
    prepare(tmp_path / "root", "mme")
    file = tmp_path / "root" / "mme" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (problem,) = missing_data(str(tmp_path / "root"), ["mme"])
    assert str(file) in str(problem) and reason in str(problem)


# -- the login --------------------------------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[tuple[str, list[str | None]]]:
    """The address of another server on this machine, and the logins that it was sent."""
    logins: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization"))
            send(self, b"[]")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", logins
    server.shutdown()
    server.server_close()


def test_a_login_follows_no_redirect_and_no_link_to_another_server(mirror, other, tmp_path):
    url, logins = other
    repo = FACTS["pope"].repo
    mirror.odd[POPE] = lambda handler, data: send(handler, b"", 302, Location=f"{url}/file")
    assert "it has 2 bytes" in prepare(tmp_path / "root", "pope")[1] and logins == [None]
    tree = f"/api/datasets/{repo}/tree/{mirror.commit('datasets', repo)}"
    mirror.odd[tree] = lambda handler, data: send(handler, b"[]", Link=f'<{url}/next>; rel="next"')
    assert "holds no files like" in prepare(tmp_path / "root", "pope")[1] and logins == [None, None]
    mirror.odd[tree] = lambda handler, data: send(handler, b"", 307, Location=f"{url}/tree")
    prepare(tmp_path / "root", "pope")
    assert logins == [None, None, None]
    asked = [login for path, login in mirror.logins if path.startswith("/api/")]
    assert asked and set(asked) == {"Bearer secret"}  # the hub itself is sent it


def test_the_login_is_not_on_the_screen_when_the_hub_says_it(mirror, tmp_path):
    mirror.odd[POPE] = lambda handler, data: send(handler, b"", 302, Location="file:///secret")
    failed, said = prepare(tmp_path / "root", "pope")
    assert failed == 1 and "secret" not in said and "[key]" in said
