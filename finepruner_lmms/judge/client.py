"""One request to a judge: what is tried again, what is not, and what an error may say."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from finepruner_lmms.judge.settings import JudgeServer

_PASSING = {408, 429, 500, 502, 503, 504}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds, doubled from try to try
_LONGEST_REQUESTED = 600.0  # seconds that a server may ask us to wait
_QUOTED = 300  # characters of a reply in an error
_MAX_TOKENS = 128


class JudgeError(RuntimeError):
    """A question could not be judged; the text says why."""


class JudgeUnavailable(JudgeError):
    """No question can be judged now: the server refuses us, cannot be reached, or we were stopped."""


class GarbledReply(JudgeError):
    """The judge said something that is not what it was asked for; asking again may help."""


@dataclass(frozen=True)
class Reply:
    """What the judge said, the model's name as the server gives it, and the tokens it counted."""

    text: str
    model: str
    usage: dict[str, Any]


class ChatClient:
    """Asks one server. Safe to use from several threads; a context manager. After `stop`, waiting threads give up."""

    def __init__(self, server: JudgeServer) -> None:
        self.server = server
        self._key = server.key()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._http = httpx.Client(timeout=server.timeout, headers=headers)
        self._stopped = threading.Event()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def stop(self) -> None:
        """Let every thread that waits for its next try give up."""
        self._stopped.set()

    def ask(self, prompt: str, temperature: float = 0.0) -> Reply:
        """The judge's reply. `GarbledReply`, `JudgeUnavailable`, or `JudgeError` if this very prompt is refused."""
        body = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": _MAX_TOKENS,
        }
        problem = ""
        for tried in range(self.server.retries + 1):
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2**tried) * random.uniform(0.5, 1.5)
            if self._stopped.is_set():
                break
            try:
                response = self._http.post(self.server.url, json=body)
            except httpx.TimeoutException:
                problem = f"no answer within {self.server.timeout:g} seconds"
            except httpx.TransportError as error:
                problem = f"cannot be reached: {self._safe(str(error) or type(error).__name__)}"
            else:
                if response.is_success:
                    return self._read(response)
                problem = self._describe(response)
                self._raise_final(response, problem)
                if (requested := _retry_after(response)) is not None:
                    if requested > _LONGEST_REQUESTED:
                        raise JudgeUnavailable(self._about(f"{problem}; it asks us to wait {requested:.0f} seconds"))
                    wait = requested + random.uniform(0, _FIRST_WAIT) if requested else wait
            if tried < self.server.retries and self._stopped.wait(wait):
                break
        if self._stopped.is_set():
            raise JudgeUnavailable(self._about("stopped"))
        raise JudgeUnavailable(self._about(f"{problem} (tried {self.server.retries + 1} times)"))

    def _raise_final(self, response: httpx.Response, problem: str) -> None:
        """What another try would not change."""
        status = response.status_code
        if status in (401, 403):
            where = self.server.key_env
            hint = f"the key in {where} is not accepted" if self._key else f"no key was sent, as {where} is not set"
            raise JudgeUnavailable(self._about(f"{problem}; {hint}"))
        if status == 404:
            raise JudgeUnavailable(self._about(f"{problem}; check url and model ({self.server.model!r})"))
        if status == 429 and "insufficient_quota" in response.text:
            raise JudgeUnavailable(self._about(problem))
        if status not in _PASSING:
            raise JudgeError(self._about(problem))

    def _read(self, response: httpx.Response) -> Reply:
        try:
            content = json.loads(self._safe(response.text))
            text = content["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise GarbledReply(self._about(f"not a chat completion: {self._quote(response.text)}")) from None
        if not isinstance(text, str) or not text.strip():
            raise GarbledReply(self._about(f"an empty message: {self._quote(response.text)}"))
        usage, model = content.get("usage"), content.get("model")
        return Reply(text, str(model or self.server.model), usage if isinstance(usage, dict) else {})

    def _describe(self, response: httpx.Response) -> str:
        reason = f" {response.reason_phrase}" if response.reason_phrase else ""
        return f"{response.status_code}{reason}: {self._quote(response.text)}"

    def _about(self, problem: str) -> str:
        return f"judge {self.server.url}: {problem}"

    def _quote(self, text: str) -> str:
        shown = self._safe(" ".join(text.split()))
        return repr(shown[:_QUOTED] + ("…" if len(shown) > _QUOTED else ""))

    def _safe(self, text: str) -> str:
        """Without the key, should a server repeat it to us."""
        return text if self._key is None else text.replace(self._key, "[key]")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks us to wait, given as seconds or as a date."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.replace(".", "", 1).isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
