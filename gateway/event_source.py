"""The events of a review, as the query service has them."""

import asyncio
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
import urllib3

from logging_service.errors import BackendUnavailable, QueryRejected

_SECONDS = 3.0
_MOST_THREADS, _MOST_ASKING = 4, 32
_CHECK_SECONDS = 1.0
_MOST_BYTES = 16 * 1024 * 1024
_BAD_QUESTION = 422
_OK = 200
# What redaction puts in the place of an address, with a key that may not be ours.
_TOKEN = re.compile(r"\[[a-z0-9_]{1,40}(?::[0-9a-f]{16})?\]")
# Its events carry the times at which they were made; the last one may come long after a crash.
_BEFORE, _AFTER = timedelta(seconds=5), timedelta(hours=1)


class ReviewTrace(NamedTuple):
    """Which events are a review's, and when they were made; `ended` is None while it runs."""

    review_id: str
    session_id: str
    began: datetime
    ended: datetime | None


class Answered(NamedTuple):
    """What a service answered."""

    status: int
    body: bytes


class ServiceClient:
    """Asks another service over HTTP, in threads of its own: one that hangs holds up nobody else.

    `key` is sent where there is one.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._threads = ThreadPoolExecutor(_MOST_THREADS, "service_client")
        self._asking = 0
        self._checked: asyncio.Future[None] | None = None
        self._checked_at = 0.0
        headers = {"X-API-Key": key} if key else {}
        self._pool = urllib3.PoolManager(
            maxsize=_MOST_THREADS, headers=headers, timeout=_SECONDS, retries=False
        )

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> Answered:
        """Return what GET answers; raises BackendUnavailable for none, or one over 16 MiB.

        Who comes while too many wait is not made to wait as well.
        """
        target = f"{self._url}{path}" + (f"?{urlencode(query)}" if query else "")
        if self._asking >= _MOST_ASKING:
            raise BackendUnavailable(f"{self._url}: too many requests wait for it")
        self._asking += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._get, target)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise BackendUnavailable(f"{self._url}: {type(error).__name__}") from None
        finally:
            self._asking -= 1

    def _get(self, target: str) -> Answered:
        answer = self._pool.request("GET", target, redirect=False, preload_content=False)
        try:
            body = answer.read(_MOST_BYTES + 1)
            if len(body) > _MOST_BYTES:
                answer.close()
                raise BackendUnavailable(f"{self._url}: the answer is too large")
            return Answered(answer.status, body)
        finally:
            answer.release_conn()

    async def check(self) -> None:
        """Raise BackendUnavailable unless `/health` says that it is well; asked once a second."""
        now = time.monotonic()
        if self._checked is None or now >= self._checked_at + _CHECK_SECONDS:
            self._checked, self._checked_at = asyncio.ensure_future(self._check()), now
            self._checked.add_done_callback(_look_at)
        await asyncio.shield(self._checked)

    async def _check(self) -> None:
        answered = await self.get("/health")
        if answered.status != _OK:
            raise BackendUnavailable(f"{self._url}/health: {answered.status}")


def _look_at(checked: asyncio.Future[None]) -> None:
    # Whoever asked may have left, and asyncio would complain.
    if not checked.cancelled():
        checked.exception()


class _Events(msgspec.Struct):
    events: list[msgspec.Raw]
    pagination: msgspec.Raw


class EventSource:
    """Finds the events of one review at the query service."""

    def __init__(self, service: ServiceClient) -> None:
        self._service = service

    async def page(self, trace: ReviewTrace, limit: int, cursor: str | None) -> bytes:
        """Return a page of events, the first ones first, as `GET /events` answers it.

        Raises BackendUnavailable, and QueryRejected for a cursor that is none.
        """
        asked: dict[str, Any] = {
            "payload.review_id": trace.review_id,
            "order": "asc",
            "limit": limit,
            **where(trace),
        }
        if cursor is not None:
            asked["cursor"] = cursor
        answered = await self._service.get("/events", asked)
        if answered.status == _BAD_QUESTION and cursor is not None:
            raise QueryRejected("cursor", "is damaged, or comes from another review")
        if answered.status != _OK:
            raise BackendUnavailable(f"the query service answers {answered.status}")
        try:
            msgspec.json.decode(answered.body, type=_Events)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BackendUnavailable("the query service does not answer with events") from None
        return answered.body


def where(trace: ReviewTrace) -> dict[str, str]:
    """Return the session, by whose index they are found, or the time where it is stored as another.

    The bounds stay the same from page to page, unless the review ends in between.
    """
    if not _TOKEN.search(trace.session_id):
        return {"session_id": trace.session_id}
    bounds = {"start_time": trace.began - _BEFORE}
    if trace.ended is not None:
        bounds["end_time"] = trace.ended + _AFTER
    return {name: moment.isoformat() for name, moment in bounds.items()}
