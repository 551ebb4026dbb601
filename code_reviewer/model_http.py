"""The HTTP under every model: bounded answers, no redirects, and errors that tell no key."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final
from urllib.parse import urlsplit

import httpx2

from code_reviewer.models import ErrorKind, ModelError, Parameter
from code_reviewer.visible_text import one_line

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024
"""Of one HTTP answer; a review has a few kilobytes."""
MAX_CONNECTIONS: Final = 32
_MAX_MESSAGE = 300


class _NotRead(Exception):
    """An answer that is not read on."""

    def __init__(self, reason: str, http_status: int) -> None:
        super().__init__(reason)
        self.http_status = http_status


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, http_status: int) -> None:
        self._stream = stream
        self._http_status = http_status
        self._left = MAX_ANSWER_BYTES

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                reason = f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
                raise _NotRead(reason, self._http_status)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _ask_plain(request: httpx2.Request) -> None:
    # A few kilobytes of gzip can become gigabytes.
    request.headers["Accept-Encoding"] = "identity"


async def _bound(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        reason = "the answer is compressed, which was not asked for"
        raise _NotRead(reason, response.status_code)
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _BoundedStream(response.stream, response.status_code)


@asynccontextmanager
async def open_http(base_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Open a client that follows no redirect, keeps no cookie and bounds what it reads.

    Raises ValueError for an address that cannot be used.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the model's address has to begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the model's address may not contain a user or password")
    async with httpx2.AsyncClient(
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=8),
        event_hooks={"request": [_ask_plain], "response": [_bound]},
    ) as client:
        yield client


def model_error(error: Exception, api_key: str | None) -> ModelError:
    """Return what an exception of a provider's library means."""
    status, response = getattr(error, "status_code", None), getattr(error, "response", None)
    if isinstance(status, int) and isinstance(response, httpx2.Response):
        return _refusal(error, response, api_key)
    cause = _root(error)
    kind: ErrorKind = "unreadable"
    if isinstance(cause, _NotRead):
        return ModelError("too_large", str(cause), http_status=cause.http_status)
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        kind = "unreachable"
    elif isinstance(cause, httpx2.TimeoutException):
        kind = "timeout"
    elif isinstance(cause, httpx2.TransportError):
        kind = "connection"
    return ModelError(kind, _told(f"{type(cause).__name__}: {cause}", api_key))


def _root(error: BaseException) -> BaseException:
    """Return what the library wrapped."""
    for _ in range(5):
        if isinstance(error, httpx2.HTTPError | _NotRead) or error.__cause__ is None:
            break
        error = error.__cause__
    return error


def _told(text: str, api_key: str | None) -> str:
    # As it is, and as the repr of a header shows it.
    for form in (api_key, repr(api_key)[1:-1], api_key.strip()) if api_key else ():
        text = text.replace(form, "[key]") if form else text
    return one_line(text[: 4 * _MAX_MESSAGE])[:_MAX_MESSAGE]


_KINDS: Final[dict[int, ErrorKind]] = {
    401: "unauthorized",
    403: "unauthorized",
    404: "not_found",
    408: "timeout",
    409: "server_error",
    429: "rate_limited",
}


def _kind_of(status: int) -> ErrorKind:
    kind = _KINDS.get(status)
    if kind is not None:
        return kind
    by_class: dict[int, ErrorKind] = {3: "redirected", 4: "bad_request"}
    return by_class.get(status // 100, "server_error")


def _refusal(error: Exception, response: httpx2.Response, api_key: str | None) -> ModelError:
    status = response.status_code
    kind = _kind_of(status)
    said, parameter = _said(getattr(error, "body", None))
    message = f"the model's server answered {status}"
    # What a server says about a key may contain a part of it.
    if said and kind != "unauthorized":
        message = f"{message}: {_told(said, api_key)}"
    return ModelError(
        kind,
        message,
        http_status=status,
        retry_after_seconds=retry_after_seconds(
            response.headers.get("Retry-After"), datetime.now(UTC)
        ),
        refused=_refused(parameter, said) if status in _NOT_UNDERSTOOD else None,
    )


def _said(body: object) -> tuple[str, str]:
    """Return the message and the parameter at fault, as far as the body tells them."""
    fault = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(fault, dict):
        return (fault if isinstance(body, dict) and isinstance(fault, str) else ""), ""
    message = next((fault[n] for n in ("message", "detail", "msg") if fault.get(n)), "")
    return str(message), str(fault.get("param") or "")


_NOT_UNDERSTOOD: Final = {400, 415, 422, 501}
_REFUSED: Final[dict[Parameter, tuple[str, ...]]] = {
    "form": ("response_format", "json_schema", "json_object", "output_config", "structured output"),
    "tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
}


def _refused(parameter: str, message: str) -> Parameter | None:
    """Return what of the manner a server did not understand, by the parameter it names."""
    text = (parameter or message).lower()
    return next(
        (name for name, words in _REFUSED.items() if any(word in text for word in words)), None
    )


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` asks to wait, None for none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return None if math.isnan(seconds) else max(0.0, seconds)
