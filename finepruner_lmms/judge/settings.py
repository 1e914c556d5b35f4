"""Who judges: `later`, `exact`, or a server; from a matrix file, a command line or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from finepruner_lmms.errors import FieldError, explain_problem
from finepruner_lmms.redaction import has_shape_of_key, may_be_key, show_unless_key

VARIABLE = "FINEPRUNER_JUDGE"
"""What a plain lmms-eval run reads: `exact`, `later`, or the address of a server."""
OPTIONAL = frozenset({"mmbench", "mmbench_cn"})
"""The benchmarks that are judged only if a judge is told to."""
_OPTIONS = ("model", "key_env", "timeout", "retries", "workers", "times")
_KEY = re.compile(r"[\x21-\x7e]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_DEFAULT_VARIABLE = "OPENAI_API_KEY"
_SHORT_KEY = 8  # characters; a shorter one may stand anywhere by chance
_TELLING = {"API", "KEY", "TOKEN", "SECRET", "PASSWORD"}
_NO_KEY = "the key belongs in an environment variable, which key_env names, and in none of our files"


class JudgeServer(BaseModel):
    """A language model behind an OpenAI-compatible endpoint.

    `timeout` is in seconds per request; `retries` come after the first try.
    `times`: how often each answer to MM-Vet is judged; its score is the mean (MM-Vet's authors judge five times).
    `mmbench`: whether it also finds the options that answers to MMBench mean, where no letter can be read.

    `url` is the server's address with or without `/v1`, or the full one of its chat completions. The key is read from
    the environment variable `key_env` when it is needed, and is written nowhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str = Field(min_length=1)
    key_env: str = _DEFAULT_VARIABLE
    timeout: float = Field(default=60, gt=0)
    retries: int = Field(default=5, ge=0, le=50)
    workers: int = Field(default=8, ge=1, le=256)
    mmbench: bool = False
    times: int = Field(default=1, ge=1, le=20)

    @field_validator("url")
    @classmethod
    def _endpoint(cls, url: str) -> str:
        return completions_url(url)

    @field_validator("key_env", mode="before")
    @classmethod
    def _variable(cls, name: Any) -> str:
        # never quoted: it may be the key itself
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name) or has_shape_of_key(name):
            raise ValueError(f"is not the name of an environment variable; {_NO_KEY}")
        return name

    @field_validator("url", "model", "timeout", "retries", "workers", "mmbench", "times", mode="before")
    @classmethod
    def _no_key(cls, value: Any, info: ValidationInfo) -> Any:
        # a model's name may look random; a text elsewhere that does is wrong in any case
        suspect = has_shape_of_key if info.field_name in ("url", "model") and isinstance(value, str) else may_be_key
        if suspect(value):
            raise ValueError(f"is what looks like a key, and is not shown; {_NO_KEY}")
        return value

    @property
    def name(self) -> str:
        """What its judgements are stored under."""
        return self.model

    @property
    def scored_as(self) -> str:
        """What its scores are kept under: means over several judgements are others than single ones."""
        return self.model if self.times == 1 else f"{self.model} ×{self.times}"

    @property
    def also(self) -> frozenset[str]:
        """The benchmarks that have a score without a judge, and are judged by this one all the same."""
        return OPTIONAL if self.mmbench else frozenset()

    @property
    def host(self) -> str:
        """Host and port of the address."""
        return urlsplit(self.url).netloc

    def key(self) -> str | None:
        """The key, or None where the variable is not set. `FieldError` if no header can carry it."""
        key = os.environ.get(self.key_env, "").strip()
        if key and not _KEY.fullmatch(key):
            problem = "holds a blank or a character that no key has"  # not quoted: it is a secret
            raise FieldError(self.key_env, problem, fix="set it again")
        return key or None

    def key_problem(self, named: bool) -> str:
        """What is wrong with the key, or ""; `named` says whether the user gave `key_env`, which then must be set."""
        key = self.key()
        if key is None:
            return f"{show_variable(self.key_env)} is not set; export it, or leave key_env out" if named else ""
        if len(key) >= _SHORT_KEY and any(key in text for text in (self.url, self.model)):
            return f"the key that {self.key_env} holds also stands in url or model; {_NO_KEY}"
        return ""


def _word(judge: Any) -> Any:
    if judge not in ("later", "exact"):
        raise ValueError(
            f"got {show_unless_key(judge)}; expected 'later', 'exact', or a server: {{url: ..., model: ...}}"
        )
    return judge


Judge = Annotated[
    Annotated[Literal["later", "exact"], BeforeValidator(_word), Tag("word")] | Annotated[JudgeServer, Tag("server")],
    Discriminator(lambda judge: "server" if isinstance(judge, dict | JudgeServer) else "word"),
]
"""`later`: answers now, `finepruner judge` afterwards; `exact`: string match; else a server."""


def judge_name(judge: Judge) -> str | None:
    """The name that scores are kept under; None for `later`, which takes whoever judged."""
    if isinstance(judge, JudgeServer):
        return judge.scored_as
    return None if judge == "later" else judge


def show_variable(name: str) -> str:
    """The name of an environment variable for a message, unless a key may have been given in its place."""
    plain = name == name.upper() and _TELLING & set(name.split("_"))
    if name == _DEFAULT_VARIABLE or name in os.environ or plain:
        return name
    return "the variable that key_env names (not shown, since it may be the key itself)"


def completions_url(url: str) -> str:
    """The full address of the chat completions of a server; `ValueError` naming what is wrong with `url`.

    `http://host` and `http://host/v1` become `http://host/v1/chat/completions`, which stays as it is.
    """
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # a bracket that does not close; not quoted: a secret may stand there
        raise ValueError("is no address; expected one such as http://localhost:8000/v1") from None
    if "@" in parts.netloc or parts.query or parts.fragment:  # not quoted: a secret may stand there
        raise ValueError("holds a user, a password, a query or a fragment; the key belongs in an environment variable")
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
        raise ValueError(f"got {show_unless_key(url)}; expected an address such as http://localhost:8000/v1")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        has_version = any(re.match(r"v\d", part) for part in path.split("/"))
        path += "/chat/completions" if has_version else "/v1/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _has_port(parts: SplitResult) -> bool:
    """Whether a port that is given is one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def parse_server(
    given: Mapping[str, Any], names: Mapping[str, str] | None = None, must_have: bool = False
) -> JudgeServer:
    """A checked server; `FieldError` with the field under its name in `names`, the value and what is wrong.

    `must_have`: a `key_env` other than the default must be set. (Not all servers ask for a key.)
    """
    names = names or {}
    try:
        server = JudgeServer.model_validate(dict(given))
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise FieldError(names.get(field, field), explain_problem(problem)) from None
    if wrong := server.key_problem(must_have and server.key_env != _DEFAULT_VARIABLE):
        raise FieldError(names.get("key_env", "key_env"), wrong)
    return server


def from_environment(environment: Mapping[str, str] | None = None) -> Judge:
    """The judge that a plain lmms-eval run names; `FieldError` naming the variable, or the ways out if there is none.

    `FINEPRUNER_JUDGE`, and for a server `FINEPRUNER_JUDGE_MODEL`, `…_KEY_ENV`, `…_TIMEOUT`, `…_RETRIES`, `…_WORKERS`,
    `…_TIMES`.
    """
    environment = os.environ if environment is None else environment
    judge = environment.get(VARIABLE, "").strip()
    if not judge:
        raise FieldError(
            VARIABLE,
            "MM-Vet needs a judge, and none is set",
            fix=f"set it to the address of an OpenAI-compatible server (with {VARIABLE}_MODEL), to 'later' (answers "
            "now, `finepruner judge FILE` afterwards), or to 'exact' (string match, not comparable with published "
            "scores)",
        )
    if judge == "later":
        return "later"
    if judge == "exact":
        return "exact"
    if "//" not in judge:
        problem = f"got {show_unless_key(judge)}; expected 'exact', 'later', or an address such as http://host/v1"
        raise FieldError(VARIABLE, problem)
    names = {"url": VARIABLE} | {name: f"{VARIABLE}_{name.upper()}" for name in _OPTIONS}
    given = {name: environment[names[name]] for name in _OPTIONS if environment.get(names[name])}
    return parse_server({"url": judge, **given}, names)


def choose(options: Mapping[str, Any], exact: bool, otherwise: Judge | None) -> JudgeServer | Literal["exact"]:
    """The judge that a command line names by `options`, which go before what `otherwise` says, or by `exact`.

    `FieldError` if it names none, or two; `later` is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if exact:
        if given:
            raise FieldError("--exact", "needs no server", fix="leave the other options out")
        return "exact"
    known = otherwise.model_dump() if isinstance(otherwise, JudgeServer) else {}
    if given or known:
        names = {name: f"--{name.replace('_', '-')}" for name in JudgeServer.model_fields}
        return parse_server(known | given, names, must_have=True)
    if otherwise != "exact":
        raise FieldError("judge", "none is set", fix=f"give --url and --model, or --exact, or set {VARIABLE}")
    return "exact"
