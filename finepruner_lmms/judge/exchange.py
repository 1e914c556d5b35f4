"""One request to a server and what it said: within limits, and without the key, whatever the server does.

All that a server says passes `Exchange.post`, which decodes it and takes the key out; nothing else reads a reply.
"""

from __future__ import annotations

import json
import threading
import zlib
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any

from finepruner_lmms.errors import first_line
from finepruner_lmms.judge.settings import JudgeServer
from finepruner_lmms.lazy import anyio, httpx
from finepruner_lmms.redaction import Secret

MOST_BYTES = 1 << 20
"""Of a reply's body, as it comes and inflated."""
_QUOTED = 300  # characters of a reply in an error
_LONGEST_HEADER = 200  # characters of one that is read
_PATIENCE = 1.0  # seconds for closing connections
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class NoReply(Exception):
    """The server said nothing that is a reply; the text says what happened instead, without the key."""


class Stopped(Exception):
    """`stop` was called."""


@dataclass(frozen=True)
class Said:
    """A reply, without the key.

    `content` is the body's JSON, None where it is none; `quote` is the body for an error, cut; `problem` says what
    makes the body unreadable, or ""; `kind` is its type as declared; `wait` the seconds until another try that the
    server asks for; `location` where it sends us.
    """

    status: int
    content: Any
    quote: str
    problem: str
    kind: str
    wait: float | None
    location: str

    @property
    def name(self) -> str:
        """The status with its standard words: a server may choose its own."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


class Exchange:
    """A server that can be posted to from several threads; a context manager.

    The requests themselves run in one thread with an event loop, in which each can be ended at any moment: when its
    time is over, which no server can draw out by sending a byte now and then, and by `stop`.
    """

    def __init__(self, server: JudgeServer) -> None:
        key = server.key()
        self._server, self._secret = server, Secret(key)
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        self._headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        self._lock = threading.Lock()
        self._in_flight: set[Future[Said]] = set()
        self._stopped = threading.Event()

    def __enter__(self) -> Exchange:
        with ExitStack() as opened:
            opened.enter_context(self._secret.hidden_in_logs())
            self._portal = opened.enter_context(anyio.from_thread.start_blocking_portal(name="judge-http"))
            self._http = httpx.AsyncClient(headers=self._headers, timeout=None, follow_redirects=False)
            opened.callback(self._portal.call, self._close)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._opened.close()

    def stop(self) -> None:
        """End every request at once, and refuse more."""
        self._stopped.set()
        with self._lock:
            for request in self._in_flight:
                request.cancel()

    def post(self, body: dict[str, Any]) -> Said:
        """What the server says to a JSON body. `NoReply`, or `Stopped`."""
        with self._lock:
            if self._stopped.is_set():
                raise Stopped
            request: Future[Said] = self._portal.start_task_soon(self._post, body)
            self._in_flight.add(request)
        try:
            return request.result()
        except CancelledError:
            raise Stopped from None
        finally:
            with self._lock:
                self._in_flight.discard(request)

    async def _post(self, body: dict[str, Any]) -> Said:
        """One request. What is raised here has no cause: that of httpx may hold the key, or be anything."""
        seconds = self._server.timeout
        try:
            with anyio.fail_after(seconds):
                async with self._http.stream("POST", self._server.url, json=body) as response:
                    return self._said(response, *await _read(response))
        except TimeoutError:
            problem = f"no answer within {seconds:g} seconds"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            problem = f"cannot be reached: {self._cut(self._secret.hide(first_line(error)))}"
        raise NoReply(problem)

    async def _close(self) -> None:
        with anyio.move_on_after(_PATIENCE):
            await self._http.aclose()

    def _said(self, response: httpx.Response, data: bytes, problem: str) -> Said:
        """The reply, decoded first and then without the key."""
        text, content = data.decode(errors="replace"), None
        try:
            content = self._secret.hide_all(json.loads(data.decode()))
            quote = json.dumps(content, ensure_ascii=False)
        except UnicodeDecodeError:
            problem = problem or "it is not UTF-8"
            quote = self._secret.hide(text)
        except (ValueError, RecursionError):  # not JSON, numbers of thousands of digits, nested beyond all measure
            quote = self._secret.hide(text)
        header = response.headers.get
        return Said(
            response.status_code,
            None if problem else content,
            repr(self._cut(" ".join(quote.split()))),
            problem,
            self._secret.hide(header("content-type", "").partition(";")[0].strip()[:_LONGEST_HEADER]),
            _seconds(header("retry-after", "").strip()[:_LONGEST_HEADER]),
            self._secret.hide(header("location", "")[:_LONGEST_HEADER]),
        )

    def _cut(self, text: str) -> str:
        return text[:_QUOTED] + ("…" if len(text) > _QUOTED else "")


async def _read(response: httpx.Response) -> tuple[bytes, str]:
    """The body, inflated, and what is wrong with it, or ""; never more than the limit."""
    data = bytearray()
    async for block in response.aiter_raw():
        data += block
        if len(data) > MOST_BYTES:
            return bytes(data[:MOST_BYTES]), f"it is longer than {MOST_BYTES:,} bytes"
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return bytes(data), ""
    if encoding not in _WINDOW_BITS:
        return b"", "it is compressed in a way that was not asked for"
    try:
        inflated = zlib.decompressobj(_WINDOW_BITS[encoding]).decompress(bytes(data), MOST_BYTES + 1)
    except zlib.error:
        return b"", f"it is not the {encoding} that it says it is"
    if len(inflated) > MOST_BYTES:
        return inflated[:MOST_BYTES], f"it is longer than {MOST_BYTES:,} bytes when inflated"
    return inflated, ""


def _seconds(value: str) -> float | None:
    """Of a `Retry-After`, given as seconds or as a date."""
    if value.isascii() and value.replace(".", "", 1).isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
