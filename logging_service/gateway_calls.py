"""Reviews asked of the gateway over HTTP."""

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
import urllib3

from logging_service.errors import LoggingServiceError
from logging_service.hosts import is_loopback, reached_at
from logging_service.settings import Settings

_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_CONNECT_SECONDS = 5.0
_SHORTEST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 30
_BUSY = (429, 503)
_NO_CONNECTION = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.LocationValueError,
    urllib3.exceptions.InvalidHeader,
)
_BARRED = {
    401: "wants a key that it knows: set API_KEY",
    403: "does not let this key write reviews",
    404: "is no gateway: it knows no /reviews",
    405: "is no gateway: it takes no reviews",
}


class GatewayUnusable(LoggingServiceError):
    """No review can be had from this gateway."""


class ReviewRefused(LoggingServiceError):
    """One review cannot be had; others may."""


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""
    errors: list[dict[str, object]] = []


class Gateway:
    """The gateway at `url`; every review is one request that `key` is sent with, from any thread.

    `session_id` is what their events have in common; `timeout_seconds` bounds each review, with
    the time that a busy gateway makes it wait.
    """

    def __init__(self, url: str, key: str | None, session_id: str, timeout_seconds: float) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "X-Session-ID": session_id}
        if key is not None:
            self._headers["X-API-Key"] = key
        self._timeout_seconds = timeout_seconds
        self._pool = urllib3.PoolManager(retries=False, maxsize=8)

    def review(self, submission: Mapping[str, object], form: str) -> bytes:
        """Return the review of `submission` in the media type `form`.

        Raises GatewayUnusable where no other review would do better, else ReviewRefused.
        """
        body = msgspec.json.encode(submission)
        ends = time.monotonic() + self._timeout_seconds
        while True:
            status, answer, retry_after = self._post(body, form, ends - time.monotonic())
            if status == 200:  # noqa: PLR2004
                return answer
            if status not in _BUSY or time.monotonic() + retry_after >= ends:
                raise self._refusal(status, answer)
            time.sleep(retry_after)

    def _post(self, body: bytes, form: str, seconds: float) -> tuple[int, bytes, float]:
        limit = urllib3.Timeout(connect=min(_CONNECT_SECONDS, seconds), total=max(seconds, 0.1))
        try:
            answer = self._pool.request(
                "POST",
                f"{self._url}/reviews",
                body=body,
                headers={**self._headers, "Accept": f"{form}, application/problem+json"},
                timeout=limit,
                redirect=False,
                preload_content=False,
            )
            content = answer.read(_MAX_ANSWER_BYTES + 1)
            answer.release_conn()
        except urllib3.exceptions.ReadTimeoutError:
            raise ReviewRefused(f"no answer within {self._timeout_seconds:g} seconds") from None
        except _NO_CONNECTION as error:
            raise GatewayUnusable(self._unreachable(error)) from None
        except urllib3.exceptions.HTTPError:
            raise ReviewRefused("the gateway broke off") from None
        if len(content) > _MAX_ANSWER_BYTES:
            raise ReviewRefused("the answer is too large")
        return answer.status, content, _seconds(answer.headers.get("Retry-After", ""))

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, urllib3.exceptions.SSLError):
            return f"the gateway at {self._url} has a certificate that is not trusted here"
        start = "start it by `logging-service up` or `logging-service gateway`"
        return f"no gateway answers at {self._url}: {start}, or say where it is by --gateway"

    def _refusal(self, status: int, answer: bytes) -> LoggingServiceError:
        if status in _BARRED:
            return GatewayUnusable(f"the gateway at {self._url} {_BARRED[status]}")
        if 300 <= status < 400:  # noqa: PLR2004
            return GatewayUnusable(f"the gateway at {self._url} sends elsewhere: give that address")
        try:
            problem = msgspec.json.decode(answer, type=_Problem)
        except msgspec.DecodeError:
            problem = _Problem()
        faults = "; ".join(f"{one.get('loc')}: {one.get('msg')}" for one in problem.errors[:3])
        return ReviewRefused(faults or problem.detail or problem.title or f"answered {status}")


def _seconds(retry_after: str) -> float:
    digits = retry_after.strip()
    known = digits.isascii() and digits.isdecimal() and len(digits) < 6  # noqa: PLR2004
    return min(max(int(digits), _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS) if known else 1


def gateway_url(settings: Settings) -> str:
    """Return where the gateway is, by GATEWAY_URL or where this configuration starts it."""
    if settings.gateway_url:
        return settings.gateway_url
    host = reached_at(settings.gateway_host)
    place = f"{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"
    if settings.tls_files("gateway") is None:
        return f"http://{place}"
    # By name: that is what certificates are for.
    return f"https://{place.replace('127.0.0.1', 'localhost')}"


def gateway_key(settings: Settings, url: str) -> str | None:
    """Return API_KEY, else the key that `up` made, which only a gateway of this host is sent."""
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    return settings.kept_secret("api_key") if is_loopback(urlsplit(url).hostname or "") else None
