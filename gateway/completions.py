"""Posts what tells of the end of reviews, again and again until the logging service took it."""

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit, urlunsplit

import msgspec
import structlog
import urllib3

from logging_service.errors import LoggingServiceError

_log = structlog.get_logger()

_AT_ONCE: Final = 100
_BATCH_BYTES: Final = 4 * 1024 * 1024
_CONNECT_SECONDS: Final = 1.0
_READ_SECONDS: Final = 3.0
_MOST_ANSWER_BYTES: Final = 4 * 1024 * 1024
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 10.0
_MOST_REASON: Final = 500
_MOST_DIGITS: Final = 6
# The event, or all of them together, will never be taken.
_WRONG: Final = frozenset({400, 413, 422})


class NotTaken(Exception):
    """The logging service does not take events now; `pause_seconds` is what it asks for."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class Outbox(Protocol):
    """Where events wait; it raises BackendUnavailable or SchemaMismatch."""

    async def lease_events(self, most: int) -> Mapping[str, bytes]:
        """Return events that are to be posted, by review."""

    async def release_events(self, review_ids: Sequence[str]) -> None:
        """Let events be leased again at once."""

    async def settle_events(self, reasons: Mapping[str, str | None]) -> None:
        """Note which events were taken, and which were refused for which reason."""


class _Rejection(msgspec.Struct):
    index: int
    errors: Any = None


class _Problem(msgspec.Struct):
    type: str


class _Taken(msgspec.Struct):
    accepted: int
    rejected: list[_Rejection]


class _Answer(NamedTuple):
    status: int
    body: bytes
    retry_after: str

    @property
    def pause_seconds(self) -> float:
        """The seconds that it asks to wait, at most a minute."""
        told = self.retry_after[:_MOST_DIGITS]
        return min(float(told), _LONGEST_PAUSE_SECONDS) if re.fullmatch("[0-9]+", told) else 0.0


class Poster:
    """Posts events to the logging service at `url`, which may end in `/log`, with `api_key`."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        path = parts.path.rstrip("/").removesuffix("/logs").removesuffix("/log") + "/logs"
        self._url = urlunsplit(parts._replace(path=path, fragment=""))
        # http.client writes headers as Latin-1: this way the service gets the key in UTF-8.
        key = {"X-API-Key": api_key.encode().decode("latin-1")} if api_key else {}
        self._pool = urllib3.PoolManager(
            headers={"Content-Type": "application/json", **key},
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
            retries=False,
        )

    async def post(self, events: Sequence[bytes]) -> list[str | None]:
        """Return for each event None, it was taken, or the reason for which it never will be.

        Raises NotTaken when it is not known whether they were: they have to be posted again.
        """
        answer = await asyncio.to_thread(self._request, b"[%b]" % b",".join(events))
        # What a proxy before the service says of itself is no judgement on an event.
        if answer.status in _WRONG and _is_problem(answer.body):
            if len(events) == 1:
                return [f"{answer.status}: {_excerpt(answer.body)}"]
            half = len(events) // 2
            return [*await self.post(events[:half]), *await self.post(events[half:])]
        if answer.status not in {202, 207}:
            raise NotTaken(f"{answer.status}: {_excerpt(answer.body)}", answer.pause_seconds)
        return _judged(answer, len(events))

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _request(self, body: bytes) -> _Answer:
        try:
            answer = self._pool.request(
                "POST", self._url, body=body, redirect=False, preload_content=False
            )
            try:
                text = answer.read(_MOST_ANSWER_BYTES)
                # What is longer is not ours to read to its end.
                answer.close()
            finally:
                answer.release_conn()
        # ValueError: a header that cannot be sent, whose words hold the key.
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise NotTaken(type(error).__name__) from None
        return _Answer(answer.status, text, answer.headers.get("Retry-After", ""))


def _is_problem(body: bytes) -> bool:
    """Whether the service says so itself, by one of its problem documents."""
    try:
        return "/problems/" in msgspec.json.decode(body, type=_Problem).type
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _judged(answer: _Answer, number: int) -> list[str | None]:
    """Return what became of each event; whatever does not add up was said by another server."""
    try:
        taken = msgspec.json.decode(answer.body, type=_Taken)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NotTaken(f"{answer.status}, but not from the logging service") from None
    rejected = {one.index: one.errors for one in taken.rejected if 0 <= one.index < number}
    if taken.accepted + len(rejected) != number:
        raise NotTaken(f"{answer.status}, but {taken.accepted} of {number} were accepted")
    return [
        _excerpt(msgspec.json.encode(rejected[index])) if index in rejected else None
        for index in range(number)
    ]


def _excerpt(body: bytes) -> str:
    text = body[:_MOST_REASON].decode(errors="replace").replace("\0", "")
    return " ".join(text.split()) or "no reason given"


class Completions:
    """Empties an outbox into the logging service; `fault` is why it does not take events now."""

    def __init__(self, outbox: Outbox, poster: Poster) -> None:
        self.fault: str | None = None
        self._outbox = outbox
        self._poster = poster
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._failures = 0

    def wake(self) -> None:
        """Look now whether there is an event."""
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return, after one more look where the logging service takes events."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Post what is there and what comes, until `stop`."""
        while True:
            was_stopping = self._is_stopping
            if was_stopping and self.fault:
                return
            self._wake.clear()
            pause = await self._empty()
            if was_stopping:
                return
            # After a failure a new event is no reason to try before the pause is over.
            while pause > 0 and not self._is_stopping:
                pause = await self._wait(pause, ends_by_wake=not self._failures)

    async def _wait(self, seconds: float, *, ends_by_wake: bool) -> float:
        """Wait, and return how long there is still to be waited."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        if ends_by_wake:
            return 0.0
        self._wake.clear()
        return until - loop.time()

    async def _empty(self) -> float:
        """Post all that waits, and return the seconds after which to look again."""
        try:
            while events := await self._outbox.lease_events(_AT_ONCE):
                await self._post(events)
        except NotTaken as error:
            return self._paused(error)
        except LoggingServiceError:
            # Who keeps the outbox says so.
            return _POLL_SECONDS * random.uniform(0.5, 1)  # noqa: S311 - it spreads the load
        except Exception as error:  # noqa: BLE001 - what waits has to be posted later, whatever it is
            return self._paused(NotTaken(type(error).__name__))
        return _POLL_SECONDS * random.uniform(0.5, 1)  # noqa: S311 - it spreads the load

    async def _post(self, events: Mapping[str, bytes]) -> None:
        left = list(events)
        try:
            while left:
                batch = _first_of(left, events)
                reasons = await self._poster.post([events[review_id] for review_id in batch])
                self._tell_taken()
                told = dict(zip(batch, reasons, strict=True))
                del left[: len(batch)]
                await self._outbox.settle_events(told)
                for review_id, reason in told.items():
                    if reason is not None:
                        _log.warning("review_completed_refused", review=review_id, reason=reason)
        except NotTaken:
            await self._outbox.release_events(left)
            raise

    def _paused(self, error: NotTaken) -> float:
        self._failures += 1
        if self.fault is None:
            _log.warning("review_completed_waits", reason=str(error))
        self.fault = str(error)
        longest = _FIRST_PAUSE_SECONDS * float(1 << min(self._failures - 1, 10))
        seconds = min(longest, _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1)  # noqa: S311 - or all come at once
        return max(seconds, error.pause_seconds)

    def _tell_taken(self) -> None:
        if self.fault is not None:
            _log.info("review_completed_taken_again")
        self.fault, self._failures = None, 0


def _first_of(review_ids: Sequence[str], events: Mapping[str, bytes]) -> list[str]:
    """Return the first reviews whose events fit one request, at least one."""
    size, batch = 0, list[str]()
    for review_id in review_ids:
        size += len(events[review_id])
        if batch and size > _BATCH_BYTES:
            break
        batch.append(review_id)
    return batch
