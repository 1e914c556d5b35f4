"""One request to a judge: what is tried again, what is not, and what an error may say."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NoReturn

from finepruner_lmms.errors import Failure, first_line
from finepruner_lmms.judge.settings import JudgeServer
from finepruner_lmms.lazy import httpx, tenacity

_PASSING = {408, 429, 500, 502, 503, 504}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds, doubled from try to try
_LONGEST_REQUESTED = 600.0  # seconds that a server may ask us to wait
_QUOTED = 300  # characters of a reply in an error
_MAX_TOKENS = 128


class JudgeError(Failure, RuntimeError):
    """A question could not be judged; the text says why."""

    exit_status = 1


class JudgeUnavailable(JudgeError):
    """No question can be judged now: the server refuses us, cannot be reached, or we were stopped."""


class _Passing(JudgeUnavailable):
    """Another try may succeed, after `wait` seconds if the server says so."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


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
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            wait=_wait,
            stop=tenacity.stop_after_attempt(server.retries + 1),
            sleep=tenacity.sleep_using_event(self._stopped),
            retry_error_callback=_give_up,
        )

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
        return self._retrying(self._post, body)

    def _post(self, body: dict[str, Any]) -> Reply:
        """One try."""
        if self._stopped.is_set():
            raise JudgeUnavailable(self._about("stopped"))
        try:
            response = self._http.post(self.server.url, json=body)
        except httpx.TimeoutException:
            raise _Passing(self._about(f"no answer within {self.server.timeout:g} seconds")) from None
        except httpx.RequestError as error:
            raise _Passing(self._about(f"cannot be reached: {self._safe(first_line(error))}")) from None
        if not response.is_success:
            raise self._problem(response)
        return self._read(response)

    def _problem(self, response: httpx.Response) -> JudgeError:
        """What a refusal means: whether another try, or another question, could be answered."""
        status, problem = response.status_code, self._describe(response)
        if status in (401, 403):
            where = self.server.key_env
            hint = f"the key in {where} is not accepted" if self._key else f"no key was sent, as {where} is not set"
            return JudgeUnavailable(self._about(f"{problem}; {hint}"))
        if status == 404:
            return JudgeUnavailable(self._about(f"{problem}; check url and model ({self.server.model!r})"))
        if status == 429 and "insufficient_quota" in response.text:
            return JudgeUnavailable(self._about(problem))
        if status not in _PASSING:
            return JudgeError(self._about(problem))
        wait = _retry_after(response)
        if wait is not None and wait > _LONGEST_REQUESTED:
            return JudgeUnavailable(self._about(f"{problem}; it asks us to wait {wait:.0f} seconds"))
        return _Passing(self._about(problem), wait)

    def _read(self, response: httpx.Response) -> Reply:
        try:
            content = json.loads(self._safe(response.text))
            text = content["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise GarbledReply(self._about(f"not a chat completion: {self._quote(response.text)}")) from None
        if not isinstance(text, str) or not text.strip():
            raise GarbledReply(self._about(f"an empty message: {self._quote(response.text)}"))
        usage, model = content.get("usage"), content.get("model")
        text = text.encode(errors="replace").decode()  # JSON may hold half a character, which no file takes
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


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the server asks for, or twice as long each time; not in step with others."""
    if asked := _passing(state).wait:
        return asked + random.uniform(0, _FIRST_WAIT)
    return tenacity.wait_exponential(_FIRST_WAIT, _LONGEST_WAIT)(state) * random.uniform(0.5, 1.5)


def _give_up(state: tenacity.RetryCallState) -> NoReturn:
    raise JudgeUnavailable(f"{_passing(state)} (tried {state.attempt_number} times)")


def _passing(state: tenacity.RetryCallState) -> _Passing:
    """Why the last try failed."""
    error = state.outcome and state.outcome.exception()
    assert isinstance(error, _Passing)
    return error


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
