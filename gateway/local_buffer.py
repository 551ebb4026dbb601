"""Reviews that wait for the database, in a file of SQLite that is bounded and survives a crash."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import apsw
import msgspec
import structlog

from gateway.stored_reviews import Place, StoredReview, Wanted
from logging_service.statement_parts import parts_of

_log = structlog.get_logger()
# An absolute path is taken as it is.
_SQL: Final = parts_of(str(Path(__file__).parent / "sql" / "local_buffer.sql"))
_TABLES: Final = [statement for name, statement in _SQL.items() if name.startswith("make_")]

_APPLICATION: Final = 0x52657677
_VERSION: Final = 1
_PAGE_BYTES: Final = 4096
_ROW_BYTES: Final = 600
_BUSY_MS: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)

Origin = Literal["here", "doubt", "database"]
"""Where a review began: `here` alone, in the `database`, or it is not known whether there, too."""


class BufferFull(Exception):
    """Reviews that still run take all there is."""


class Held(NamedTuple):
    """A review in the buffer; its `version` rises with every change."""

    origin: Origin
    version: int
    review: StoredReview


class Dropped(NamedTuple):
    """What a full buffer could not keep: results of reviews, and events that tell of their end."""

    results: int = 0
    events: int = 0


class LocalBuffer:
    """Keeps reviews in `file`, without one in memory; used by one thread at a time.

    A full one drops the oldest results first, and then the oldest reviews that have ended. `ids`
    are those of the reviews in it. Methods raise apsw.Error or OSError when it cannot be used.
    """

    def __init__(self, file: Path | None, *, max_bytes: int, max_reviews: int) -> None:
        self.ids: set[str] = set()
        self.dropped = Dropped()
        self._max_bytes = max_bytes
        self._max_reviews = max_reviews
        self._connection = self._opened(file)
        self._read_ids()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def put(self, review: StoredReview, origin: Origin) -> None:
        """Keep a review, in place of what was there of it; raises BufferFull."""
        if _size(review) > self._max_bytes // 4:
            review = self._without_result(review)
        with self._transaction():
            self._make_room(review)
            self._write(review, origin)
        self.ids.add(review.review_id)

    def find(self, review_id: str) -> Held | None:
        """Return a review."""
        return self._one("review_id = :review_id", review_id=review_id)

    def same_key(self, project: str, digest: bytes) -> Held | None:
        """Return the review of a project that came with an idempotency key of this digest."""
        asked = "idempotency_digest = :digest AND project = :project"
        return self._one(asked, digest=digest, project=project)

    def cached(self, content_key: str, project: str) -> Held | None:
        """Return the last review of this content that completed and has its result."""
        asked = (
            "content_key = :content_key AND project = :project AND status = 'completed'"
            " AND is_whole AND verdict IS NOT NULL"
        )
        return self._one(asked, content_key=content_key, project=project)

    def page(self, wanted: Wanted, after: Place | None, most: int) -> list[StoredReview]:
        """Return reviews, newest first."""
        asked = {name: value for name, value in wanted._asdict().items() if value is not None}
        conditions = ["true", *(f"{name} = :{name}" for name in asked)]
        if after:
            conditions.append("(created_at, review_id) < (:after_time, :after_id)")
            asked |= {"after_time": _micros(after[0]), "after_id": after[1]}
        order = "created_at DESC, review_id DESC"
        return [one.review for one in self._some(" AND ".join(conditions), order, most, **asked)]

    def running(self) -> list[Held]:
        """Return the reviews that have not ended, the oldest first."""
        return self._some("status = 'running'", "number", self._max_reviews)

    def ended(self, most: int) -> list[Held]:
        """Return reviews that have ended, the oldest first."""
        return self._some("status <> 'running'", "number", most)

    def unsent(self, most: int) -> list[Held]:
        """Return ended reviews whose event waits, where nobody else can have told another end."""
        return self._some("event_waits AND origin = 'here'", "number", most)

    def spent_nanos(self, day: date) -> int:
        """Return what the reviews that began on a UTC day cost, as far as it is known."""
        since = datetime.combine(day, time(), UTC)
        asked = {"since": _micros(since), "until": _micros(since + timedelta(days=1))}
        [(spent,)] = self._connection.execute(_SQL["spent"], asked)
        return int(spent)

    def forget(self, review_id: str, version: int) -> None:
        """Remove a review, unless it has changed since."""
        asked = {"review_id": review_id, "version": version}
        with self._transaction():
            self._connection.execute(_SQL["forget"], asked)
            if self._connection.changes():
                self.ids.discard(review_id)
        if not self.ids:
            self._give_back()

    def settle(self, one: Held, review: StoredReview) -> None:
        """Put `review` in the place of one that was found, unless that has changed since."""
        with self._transaction():
            there = self.find(review.review_id)
            if there and there.version == one.version:
                self._write(review, one.origin)

    def begin_instance(self, instance: str | None) -> None:
        """Note that all instances before are over, and one that begins."""
        with self._transaction():
            self._connection.execute(_SQL["end_instances"])
            if instance:
                self._connection.execute(_SQL["add_instance"], {"instance": instance})
            self._connection.execute(_SQL["cut_instances"])

    def over_instances(self) -> list[str]:
        """Return the instances that are over and perhaps left reviews in the database."""
        return [row[0] for row in self._connection.execute(_SQL["over_instances"])]

    def forget_instances(self, instances: Sequence[str]) -> None:
        """Forget instances that have left nothing."""
        with self._transaction():
            for instance in instances:
                self._connection.execute(_SQL["forget_instance"], {"instance": instance})

    def _opened(self, file: Path | None) -> apsw.Connection:
        if file is None:
            return self._prepared(":memory:")
        try:
            return self._prepared(str(file))
        except _DAMAGE as error:
            aside = _set_aside(file)
            _log.exception("review_buffer_set_aside", file=str(aside), reason=str(error))
            return self._prepared(str(file))

    def _prepared(self, name: str) -> apsw.Connection:
        if name != ":memory:":
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(name)
        try:
            connection.set_busy_timeout(_BUSY_MS)
            for pragma, value in _PRAGMAS.items():
                connection.pragma(pragma, value)
            connection.pragma("max_page_count", 2 * self._max_bytes // _PAGE_BYTES + 100)
            with connection:
                self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: apsw.Connection) -> None:
        if not connection.execute("SELECT count(*) FROM sqlite_schema").get:
            for statement in _TABLES:
                connection.execute(statement)
            connection.pragma("application_id", _APPLICATION)
            connection.pragma("user_version", _VERSION)
        told = connection.pragma("application_id"), connection.pragma("user_version")
        if told != (_APPLICATION, _VERSION):
            raise apsw.NotADBError("it is another program's, or another release's")
        if (fault := connection.pragma("quick_check", 1)) != "ok":
            raise apsw.CorruptError(str(fault))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(apsw.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._read_ids()
            raise

    def _read_ids(self) -> None:
        self.ids = {str(row[0]) for row in self._connection.execute(_SQL["ids"])}

    def _one(self, conditions: str, **asked: object) -> Held | None:
        found = self._some(conditions, "number DESC", 1, **asked)
        return found[0] if found else None

    def _some(self, conditions: str, order: str, most: int, **asked: object) -> list[Held]:
        statement = _SQL["some"].format(conditions=conditions, order=order)
        rows = self._connection.execute(statement, {**asked, "most": most}).fetchall()
        return [one for row in rows if (one := self._read(row))]

    def _read(self, row: tuple[Any, ...]) -> Held | None:
        review_id, origin, version, review = row
        try:
            return Held(origin, version, _decode(review))
        except msgspec.MsgspecError as error:
            _log.exception("buffered_review_unreadable", review=review_id, reason=str(error))
            asked = {"review_id": review_id, "version": version}
            self._connection.execute(_SQL["forget"], asked)
            self.ids.discard(review_id)
            return None

    def _write(self, review: StoredReview, origin: Origin) -> None:
        told = {name: getattr(review, name) for name in _TOLD}
        more = {
            "origin": origin,
            "created_at": _micros(review.created_at),
            "is_whole": bool(review.result_json or review.feedback_json or review.code_json),
            "event_waits": review.event_waits,
            "size": _size(review),
            "review": msgspec.msgpack.encode(review),
        }
        self._connection.execute(_SQL["put"], told | more)

    def _make_room(self, review: StoredReview) -> None:
        [(count, used)] = self._connection.execute(_SQL["used"])
        is_new = review.review_id not in self.ids
        while count + is_new > self._max_reviews or used + _size(review) > self._max_bytes:
            self._drop_oldest(may_strip=count + is_new <= self._max_reviews)
            [(count, used)] = self._connection.execute(_SQL["used"])

    def _drop_oldest(self, *, may_strip: bool) -> None:
        whole = self._some("is_whole AND status <> 'running'", "number", 1) if may_strip else []
        for one in whole:
            self._write(self._without_result(one.review), one.origin)
            return
        gone = self._connection.execute(_SQL["drop_oldest"]).fetchall()
        if not gone:
            raise BufferFull
        for review_id, is_whole, event_waits in gone:
            self.ids.discard(str(review_id))
            results, events = self.dropped
            self.dropped = Dropped(results + bool(is_whole), events + bool(event_waits))

    def _without_result(self, review: StoredReview) -> StoredReview:
        self.dropped = self.dropped._replace(results=self.dropped.results + 1)
        return msgspec.structs.replace(review, result_json=None, feedback_json=None, code_json=None)

    def _give_back(self) -> None:
        # Nothing of what was in it stays on the disk, the log included.
        with suppress(apsw.Error):
            self._connection.pragma("incremental_vacuum")
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


_PRAGMAS: Final = {
    "page_size": _PAGE_BYTES,
    "auto_vacuum": "INCREMENTAL",
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "secure_delete": "ON",
    "cell_size_check": "ON",
}
_TOLD: Final = (
    "review_id",
    "project",
    "session_id",
    "user_id",
    "status",
    "verdict",
    "content_key",
    "idempotency_digest",
    "cost_nanos",
)
_decode: Final[Callable[[bytes], StoredReview]] = msgspec.msgpack.Decoder(StoredReview).decode


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _size(review: StoredReview) -> int:
    texts = (
        review.submission_json,
        review.code_json,
        review.outline_json,
        review.result_json,
        review.feedback_json,
        review.event_json,
    )
    return _ROW_BYTES + sum(len(text) for text in texts if text)


def _set_aside(file: Path) -> Path:
    name = file.with_name(f"{file.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    for ending in ("", "-wal"):
        with suppress(FileNotFoundError):
            file.with_name(file.name + ending).rename(name.with_name(name.name + ending))
    file.with_name(f"{file.name}-shm").unlink(missing_ok=True)
    return name


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Hold the lock of a buffer's file; False while another has it."""
    lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)
