"""A judge for the tests: a real HTTP server on this machine that behaves, or misbehaves, as a test asks."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

Answer = tuple[int, dict[str, str], str]
"""Status, headers, body."""


def says(text: Any, model: str = "judge-1-served") -> Answer:
    """A chat completion."""
    content = {"model": model, "choices": [{"message": {"role": "assistant", "content": text}}]}
    return 200, {}, json.dumps(content | {"usage": {"prompt_tokens": 700, "completion_tokens": 3}})


def fails(status: int, body: str = "", **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


class JudgeServer:
    """`behave(number, prompt)` makes the answer to each request; `requests` are those that came, `url` is the base."""

    def __init__(self, behave: Callable[[int, str], Answer], delay: float = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                    number = len(outer.requests)
                time.sleep(delay)
                status, headers, text = behave(number, body["messages"][0]["content"])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that no longer waits is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> JudgeServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def knows(_number: int, prompt: str) -> Answer:
    """Judges as it should be: 1.0 if the prediction, in the last line, has the ground truth in it."""
    _, truth, prediction, _ = prompt.splitlines()[-1].split(" | ")
    return says("1.0" if any(one.strip() in prediction for one in truth.split("<OR>")) else "0.0")


class RawServer:
    """Says on each connection, once the request has come, whatever `speak` writes: HTTP or not."""

    def __init__(self, speak: Callable[[Callable[[bytes], object]], None]) -> None:
        self.requests = 0
        outer = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                request = b""
                while not re.search(rb"(?s)\r\n\r\n\{.*\}$", request):
                    request += self.request.recv(1 << 16)
                outer.requests += 1
                try:
                    speak(self.request.sendall)
                except OSError:
                    """The client has hung up."""

        class Server(ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An HTTP reply with its length, the last on its connection."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
