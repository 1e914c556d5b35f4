"""A mirror of the hub on this machine: as much of its interface as huggingface_hub, datasets and transformers use.

Large files are sent as the hub sends them: a redirect to another host, with the declared hash in the headers, by range
where one is asked for. Connections can be cut, content falsified, and every request is written down.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_LARGE = (".parquet", ".safetensors", ".bin")


@dataclass
class Mirror:
    """`root/datasets/<owner>/<name>/…` and `root/models/<owner>/<name>/…` are the repositories.

    `cut`: bytes after which a connection that sends a large file is cut, as often as `cuts` says. `falsify`: names of
    files of which other bytes are sent. `ranges`: whether ranges are honoured. `hold`: bytes of a large file after
    which nothing more is sent until `gate` is set. `odd`: who answers instead, by a large file's name below `root` or
    by path. `logins`: paths and the logins that were sent with them.
    """

    root: Path
    cut: int | None = None
    cuts: int = 0
    falsify: set[str] = field(default_factory=set)
    ranges: bool = True
    hold: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    odd: dict[str, Callable[[BaseHTTPRequestHandler, bytes], object]] = field(default_factory=dict)
    logins: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def folder(self, kind: str, repo: str) -> Path:
        return self.root / kind / repo

    def commit(self, kind: str, repo: str) -> str:
        """Changes with the content, as a commit does."""
        digest = hashlib.sha1()
        for path in self.files(kind, repo):
            digest.update(f"{path} {sha256(self.folder(kind, repo) / path)}\n".encode())
        return digest.hexdigest()

    def files(self, kind: str, repo: str) -> list[str]:
        folder = self.folder(kind, repo)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def fetched(self, name: str) -> list[str | None]:
        """The ranges asked of a large file, in order; None is all of it."""
        return [asked for method, path, asked in self.requests if method == "GET" and path == f"/cdn/{name}"]


def sha256(path: Path) -> str:
    return _hashes(path, path.stat().st_mtime_ns, path.stat().st_size)[0]


def git_hash(path: Path) -> str:
    return _hashes(path, path.stat().st_mtime_ns, path.stat().st_size)[1]


@functools.cache
def _hashes(path: Path, changed: int, size: int) -> tuple[str, str]:
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % size + data).hexdigest()


@contextmanager
def serve(root: Path) -> Iterator[Mirror]:
    mirror = Mirror(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"mirror": mirror}))
    server.daemon_threads = True
    mirror.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        mirror.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mirror: Mirror

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.mirror.requests.append((self.command, path, self.headers.get("Range")))
        self.mirror.logins.append((path, self.headers.get("Authorization")))
        if path in self.mirror.odd:
            self.mirror.odd[path](self, b"")
            return
        if match := re.fullmatch(
            r"/api/(datasets|models)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/(.+))?", path
        ):
            self._api(*match.groups(), parse_qs(url.query))
        elif match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            kind, repo, revision, name = match.groups()
            self._resolve("datasets" if kind else "models", repo, revision, name)
        elif match := re.fullmatch(r"/cdn/(.+)", path):
            self._content(match[1])
        else:
            self._error(404, "EntryNotFound")

    def _api(self, kind: str, repo: str, what: str | None, rest: str | None, query: dict) -> None:
        if not self.mirror.folder(kind, repo).is_dir():
            return self._error(401, "RepoNotFound")
        commit = self.mirror.commit(kind, repo)
        revision, _, below = (rest or "main").partition("/")
        if revision not in ("main", commit):
            return self._error(404, "RevisionNotFound")
        files = self.mirror.files(kind, repo)
        if what in (None, "revision"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": []}
            return self._json(about | {"downloads": 0, "likes": 0, "disabled": False})
        if what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._json(self._tree(kind, repo, files, below, recursive))
        wanted = parse_qs(self.body.decode()).get("paths", []) or json.loads(self.body).get("paths", [])
        return self._json([self._entry(kind, repo, name) for name in files if name in wanted])

    def _tree(self, kind: str, repo: str, files: list[str], below: str, recursive: bool) -> list[dict]:
        inside = [name for name in files if not below or name.startswith(f"{below}/")]
        depth = below.count("/") + 1 if below else 0
        folders = {"/".join(name.split("/")[: n + 1]) for name in inside for n in range(depth, name.count("/"))}
        if not recursive:
            inside = [name for name in inside if name.count("/") == depth]
            folders = {folder for folder in folders if folder.count("/") == depth}
        entries = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        return entries + [self._entry(kind, repo, name) for name in inside]

    def _entry(self, kind: str, repo: str, name: str) -> dict:
        path = self.mirror.folder(kind, repo) / name
        entry = {"type": "file", "path": name, "size": path.stat().st_size, "oid": git_hash(path)}
        if name.endswith(_LARGE):
            entry["lfs"] = {"oid": sha256(path), "size": path.stat().st_size, "pointerSize": 134}
        return entry

    def _resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        path = self.mirror.folder(kind, repo) / name
        commit = self.mirror.commit(kind, repo) if path.parent.exists() else ""
        if revision not in ("main", commit):
            return self._error(404, "RevisionNotFound")
        if not path.is_file():
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        about = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not name.endswith(_LARGE):
            return self._send(200, path.read_bytes(), about | {"ETag": f'"{git_hash(path)}"'})
        about |= {"X-Linked-Etag": f'"{sha256(path)}"', "X-Linked-Size": str(path.stat().st_size)}
        location = f"http://localhost:{self.mirror.port}/cdn/{kind}/{repo}/{name}"
        return self._send(302, b"", about | {"Location": location, "ETag": f'"{sha256(path)}"'})

    def _content(self, name: str) -> None:
        """A large file, from another host than the hub's."""
        if self.headers.get("Authorization"):
            self.mirror.leaked.append(name)
        data = (self.mirror.root / name).read_bytes()
        if name in self.mirror.odd:
            self.mirror.odd[name](self, data)
            return
        if Path(name).name in self.mirror.falsify:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, headers, start = 200, {"ETag": '"cdn"', "Accept-Ranges": "bytes"}, 0
        if self.mirror.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            start, end = int(match[1]), int(match[2]) if match[2] else len(data) - 1
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data = data[start : end + 1]
        self._send(status, data, headers, may_cut=True)

    def _send(self, status: int, data: bytes, headers: dict, may_cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = len(data)
        with self.mirror.lock:
            if may_cut and self.mirror.cut is not None and self.mirror.cuts > 0 and len(data) > self.mirror.cut:
                self.mirror.cuts -= 1
                limit = self.mirror.cut
        try:
            for at in range(0, limit, 1 << 16):
                if may_cut and self.mirror.hold is not None and at >= self.mirror.hold:
                    self.mirror.gate.wait()
                self.wfile.write(data[at : min(at + (1 << 16), limit)])
        except OSError:
            self.close_connection = True
            return
        if limit < len(data):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, **(headers or {})})
