"""What the model stage knows of a model: how it is asked, how it answers, fails and costs."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec

Scrub = Callable[[str], tuple[str, int]]
"""Returns a text with its secrets replaced inside their lines, and how many there were."""

AnswerForm = Literal["json_schema", "json_object", "text"]


class Question(msgspec.Struct, frozen=True):
    """What a model is asked: the rules, the request, and the JSON schema of the answer."""

    rules: str
    request: str
    schema: dict[str, object]

    @property
    def bytes_sent(self) -> int:
        """How many bytes of text go out."""
        return len(self.rules.encode()) + len(self.request.encode())


class Manner(msgspec.Struct, frozen=True):
    """What a server understands of the ways to ask; `tokens` is its name for their bound."""

    form: AnswerForm = "json_schema"
    tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True


Parameter = Literal["form", "tokens", "temperature"]


class Reply(msgspec.Struct, frozen=True):
    """An answer: `usage` is the provider's own object, `model` the name that it gives itself."""

    text: str
    usage: Mapping[str, object] | None = None
    model: str | None = None
    finish_reason: str | None = None
    http_status: int = 200


ErrorKind = Literal[
    "timeout",
    "unreachable",
    "connection",
    "rate_limited",
    "server_error",
    "unauthorized",
    "not_found",
    "bad_request",
    "redirected",
    "too_large",
    "unreadable",
    "breaker",
    "budget",
    "internal",
]


_PASSING: Final = {"timeout", "unreachable", "connection", "rate_limited", "server_error"}


def is_success(http_status: int) -> bool:
    """Whether a status says that the request was served."""
    return http_status // 100 == 2  # noqa: PLR2004 - 2xx


class ModelError(Exception):
    """A model did not answer; the message holds no key."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        http_status: int | None = None,
        retry_after_seconds: float | None = None,
        refused: Parameter | None = None,
    ) -> None:
        """Make the error; `refused` is what the server did not understand of the manner."""
        super().__init__(message)
        self.kind = kind
        self.http_status = http_status
        self.retry_after_seconds = retry_after_seconds
        self.refused = refused

    @property
    def is_retryable(self) -> bool:
        """Whether the same question may be answered a moment later."""
        return self.kind in _PASSING

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may have worked on it: nobody said that it did not."""
        is_refused = self.http_status is not None and not is_success(self.http_status)
        return self.kind != "unreachable" and not is_refused


class Model(Protocol):
    """A language model behind an address; another provider is one class."""

    @property
    def name(self) -> str:
        """What the operator calls it."""

    @property
    def provider(self) -> str:
        """Whose prices hold."""

    @property
    def address(self) -> str:
        """Where it is: what its server understands is remembered by it."""

    @property
    def first_manner(self) -> Manner:
        """How to ask it when nothing is known of its server."""

    async def complete(
        self, question: Question, manner: Manner, max_tokens: int, seconds: float
    ) -> Reply:
        """Ask once, by one HTTP request of at most `seconds`; raises ModelError."""


class Bill(msgspec.Struct, frozen=True):
    """Tokens and nano-dollars of a call; None is what is not known.

    `input` contains `cached_input` and `cache_write`, `output` contains `reasoning`; `source` says
    where the price comes from.
    """

    input: int | None = None
    cached_input: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None
    nanos: int | None = None
    source: str | None = None


class Tariff(Protocol):
    """What calls cost."""

    def bill(
        self, provider: str, model: str, usage: Mapping[str, object] | None, at: datetime
    ) -> Bill:
        """Return what a call used and cost, from the provider's own usage object; never raises."""


@asynccontextmanager
async def open_model(
    adapter: Literal["openai", "anthropic"],
    *,
    base_url: str,
    api_key: str | None,
    name: str,
    provider: str,
) -> AsyncIterator[Model]:
    """Open a model; `openai` is any server that speaks that API.

    Raises ValueError, without the key, for what cannot be used, such as an extra not installed.
    """
    # The libraries take a second to import, and a reviewer without a model needs none.
    if adapter == "openai":
        from code_reviewer.openai_model import open_openai_model  # noqa: PLC0415

        opened: AbstractAsyncContextManager[Model] = open_openai_model(
            base_url=base_url, api_key=api_key, name=name, provider=provider
        )
    else:
        from code_reviewer.anthropic_model import open_anthropic_model  # noqa: PLC0415

        opened = open_anthropic_model(
            base_url=base_url, api_key=api_key, name=name, provider=provider
        )
    async with opened as model:
        yield model
