"""One request to the hub or a mirror of it: within limits, and with the login for its own host only.

huggingface_hub lends its client (proxies, certificates, offline mode) and its headers, the login among them. Its own
requests are not used: they follow links and redirects of a listing with the login, wait as long as a server asks, and
read answers of any length.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finepruner_lmms.errors import first_line
from finepruner_lmms.redaction import Secret

if TYPE_CHECKING:
    import httpx2

SILENCE = 30.0
"""Seconds without a byte after which a connection is given up."""
_REDIRECTS = 10
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0  # seconds that a server may ask us to wait
_MOST_BYTES = 64 << 20  # of a listing's page
_MOST_TIME = 120.0  # seconds for it
_KEPT_HEADER = 200  # characters of one that is read


class Odd(Exception):
    """An answer that is not what was asked for; the text says what it is instead, and what that may mean."""


class Refused(Odd):
    """A refusal: `status`, and `code`, the hub's own word for the reason, or ""."""

    def __init__(self, status: int, code: str, problem: str) -> None:
        super().__init__(problem)
        self.status, self.code = status, code


class Passing(Exception):
    """No answer, or one that may be another next time; `wait` is how many seconds the server asks us to wait."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


class Offline(Exception):
    """The network is switched off (HF_HUB_OFFLINE)."""


@contextmanager
def get(url: str, offset: int = 0, silence: float = SILENCE) -> Iterator[httpx2.Response]:
    """The reply to a request for `url`, from byte `offset` on, as it comes. `Odd`, `Passing` or `Offline`.

    Redirects are followed, but the login goes to the hub's own address only: scheme, host and port.
    """
    import httpx2
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not listed in its module
        build_hf_headers,
        get_session,
    )

    secret, client, home = Secret(get_token()), get_session(), httpx2.URL(constants.ENDPOINT)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        reply = _follow(client, httpx2.URL(url), headers, home, secret, silence)
        try:
            _check_status(reply)
            yield reply
        finally:
            reply.close()
    except OfflineModeIsEnabled:
        raise Offline from None
    except httpx2.TransportError as error:
        raise Passing(secret.hide(first_line(error))[:_KEPT_HEADER]) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Odd(secret.hide(first_line(error))[:_KEPT_HEADER]) from None


def get_json(url: str, silence: float = SILENCE) -> tuple[Any, str]:
    """The JSON at `url`, and the address of the next page, or "". `Odd`, `Passing` or `Offline`."""
    started, data = time.monotonic(), bytearray()
    with get(url, silence=silence) as reply:
        for block in body(reply):
            data += block
            if len(data) > _MOST_BYTES:
                raise Odd(f"the answer is longer than {_MOST_BYTES:,} bytes")
            if time.monotonic() - started > _MOST_TIME:
                raise Passing(f"the answer is not there after {_MOST_TIME:.0f} seconds")
        following = reply.links.get("next", {}).get("url", "")
        page = str(reply.url.join(following)) if following else ""
        kind = kind_of(reply)
    try:
        return json.loads(data.decode()), page
    except (ValueError, RecursionError):
        raise Odd(f"the answer is not JSON{portal(kind)}") from None


def body(reply: httpx2.Response) -> Iterator[bytes]:
    """The bytes of a reply as they come. `Odd` where they are packed in some way."""
    if reply.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Odd("it is sent compressed, which was not asked for")
    yield from reply.iter_raw()


def kind_of(reply: httpx2.Response) -> str:
    """The type of content that a reply says it has."""
    return str(reply.headers.get("content-type", "")).partition(";")[0].strip().lower()[:_KEPT_HEADER]


def portal(kind: str) -> str:
    """What a page may be that comes where none was asked for."""
    return ", but an HTML page (of a login, or of a proxy?)" if kind == "text/html" else ""


def _follow(
    client: httpx2.Client, url: httpx2.URL, headers: dict[str, str], home: httpx2.URL, secret: Secret, silence: float
) -> httpx2.Response:
    for _ in range(_REDIRECTS):
        own = _origin(url) == _origin(home)
        sent = headers if own else {name: value for name, value in headers.items() if name.lower() != "authorization"}
        request = client.build_request("GET", url, headers=sent, timeout=silence)
        if not own:
            request.headers.pop("cookie", None)
        reply = client.send(request, stream=True, follow_redirects=False)
        location = reply.headers.get("location")
        if not 300 <= reply.status_code < 400 or location is None:
            return reply
        reply.close()
        url = url.join(location)
        if url.scheme not in ("http", "https") or not url.host:
            raise Odd(f"it sends us to {secret.hide(location)[:_KEPT_HEADER]!r}, which is no address")
    raise Odd(f"it sends us from one address to the next, {_REDIRECTS} times")


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _check_status(reply: httpx2.Response) -> None:
    status = reply.status_code
    if status in (200, 206):
        return
    if status in _PASSING:
        wait = _seconds(reply.headers.get("retry-after", ""))
        if wait > _LONGEST_WAIT:
            raise Refused(status, "", f"status {status}, and it asks us to wait {wait:.0f} seconds")
        raise Passing(f"status {status}", wait)
    code = reply.headers.get("x-error-code", "")
    hint = "; set HF_TOKEN to a login that may read it" if status in (401, 403) else ""
    raise Refused(status, code if re.fullmatch(r"\w{1,40}", code) else "", f"status {status}{hint}")


def _seconds(value: str) -> float:
    """Of a `Retry-After` in seconds; 0 where there is none, or a date."""
    value = value.strip()[:_KEPT_HEADER]
    return float(value) if value.isascii() and value.isdecimal() else 0.0
