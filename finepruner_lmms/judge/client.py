"""Asking a judge: what is tried again, what is not, and what an error may say."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from finepruner_lmms.errors import Failure
from finepruner_lmms.judge.exchange import Exchange, NoReply, Said, Stopped
from finepruner_lmms.judge.settings import JudgeServer, show_variable
from finepruner_lmms.lazy import tenacity

_PASSING = {408, 429, 500, 502, 503, 504}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds, doubled from try to try
_LONGEST_REQUESTED = 600.0  # seconds that a server may ask us to wait
_MAX_TOKENS = 128
_LONGEST_TEXT, _LONGEST_NAME = 20_000, 200  # characters of a reply and of a model's name that are believed
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


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
    usage: dict[str, int]


class ChatClient:
    """Asks one server. Safe to use from several threads; a context manager. After `stop`, every thread gives up."""

    def __init__(self, server: JudgeServer) -> None:
        self.server = server
        self._has_key = server.key() is not None
        self._exchange = Exchange(server)
        self._stopped = threading.Event()
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            wait=_wait,
            stop=tenacity.stop_after_attempt(server.retries + 1),
            sleep=tenacity.sleep_using_event(self._stopped),
            retry_error_callback=_give_up,
        )

    def __enter__(self) -> ChatClient:
        self._exchange.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange.__exit__(kind, error, trace)

    def stop(self) -> None:
        """Let every thread that waits, for an answer or for its next try, give up at once."""
        self._stopped.set()
        self._exchange.stop()

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
        try:
            said = self._exchange.post(body)
        except Stopped:
            raise JudgeUnavailable(self._about("stopped")) from None
        except NoReply as error:
            raise _Passing(self._about(str(error))) from None
        if not 200 <= said.status < 300:
            raise self._problem(said)
        return self._read(said)

    def _problem(self, said: Said) -> JudgeError:
        """What a refusal means: whether another try, or another question, could be answered."""
        status, problem = said.status, f"{said.name}: {said.quote}"
        if status in (401, 403):
            where = show_variable(self.server.key_env)
            hint = f"the key in {where} is not accepted" if self._has_key else f"no key was sent, as {where} is not set"
            return JudgeUnavailable(self._about(f"{problem}; {hint}"))
        if 300 <= status < 400:
            where = f" to {said.location!r}" if said.location else ""
            hint = "it is not followed, since the key would go there; give that address as url if it is right"
            return JudgeUnavailable(self._about(f"{said.name}: it sends us elsewhere{where}; {hint}"))
        if status == 404:
            return JudgeUnavailable(self._about(f"{problem}; check url and model ({self.server.model!r})"))
        if status == 429 and "insufficient_quota" in said.quote:
            return JudgeUnavailable(self._about(problem))
        if status not in _PASSING:
            return JudgeError(self._about(problem))
        if said.wait is not None and said.wait > _LONGEST_REQUESTED:
            return JudgeUnavailable(self._about(f"{problem}; it asks us to wait {said.wait:.0f} seconds"))
        return _Passing(self._about(problem), said.wait)

    def _read(self, said: Said) -> Reply:
        content = said.content
        try:
            text = content["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            why = f" ({said.problem})" if said.problem else ""
            kind = f" but {said.kind!r}" if said.kind not in ("", "application/json") else ""
            raise GarbledReply(self._about(f"not a chat completion{kind}{why}: {said.quote}")) from None
        if not isinstance(text, str) or not text.strip():
            raise GarbledReply(self._about(f"an empty message: {said.quote}"))
        if len(text) > _LONGEST_TEXT:
            raise GarbledReply(self._about(f"a message of {len(text):,} characters: {said.quote}"))
        text = text.encode(errors="replace").decode()  # JSON may hold half a character, which no file takes
        return Reply(text, _name(content.get("model")) or self.server.model, _counts(content.get("usage")))

    def _about(self, problem: str) -> str:
        return f"judge {self.server.url}: {problem}"


def _name(model: Any) -> str:
    """What a server calls its model, or "" where that is no name."""
    whole = isinstance(model, str) and len(model) <= _LONGEST_NAME and model.isprintable()
    return model.strip() if whole else ""


def _counts(usage: Any) -> dict[str, int]:
    """The tokens that a server counted; whatever else it says there is left out."""
    given = usage if isinstance(usage, dict) else {}
    return {name: given[name] for name in _COUNTS if type(given.get(name)) is int and 0 <= given[name] < 1 << 53}


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
