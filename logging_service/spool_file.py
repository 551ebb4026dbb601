"""A spool's SQLite file: opened, checked, bounded, and set aside when it is damaged.

Used by one thread at a time. Whatever SQLite says becomes one of two things here: weather, after
which the file is opened anew, or damage, after which a new file takes its place.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import apsw
import structlog

from logging_service.errors import BackendUnavailable, QueueFull, SettingsError
from logging_service.ports import Reserve, Tally
from logging_service.spool_book import Book, Clock, Holding
from logging_service.spool_folder import Identity, SpoolFolder, place_of
from logging_service.spool_rows import HEAD_SIZE, PAGE_BYTES, FileDamaged, ForeignFile

_log = structlog.get_logger()
_Result = TypeVar("_Result")

_LOG_BYTES = 4 * 1024 * 1024
_BUSY_MS = 2000
_IDLE_SECONDS = 1.0
_TRIES = 3
_NEARLY_FULL = 0.8
_EPOCHS_KEPT = 100

_DAMAGE = (FileDamaged, apsw.CorruptError, apsw.NotADBError)
# Damage, or a fault that passes: a check of the whole file tells.
_SUSPICIOUS = (
    apsw.SQLError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.ReadOnlyError,
    UnicodeDecodeError,
)


class SpoolFile:
    """Gives transactions on the book in a file or, without a folder, in memory.

    It is opened when it is first needed. Every method but `rest` and `close` raises
    BackendUnavailable when it is not known whether it was done.
    """

    def __init__(
        self, folder: SpoolFolder | None, *, max_bytes: int, lease_seconds: float, exclusive: bool
    ) -> None:
        self.name = str(folder.file) if folder else ":memory:"
        self._folder = folder
        self._max_bytes = max_bytes
        self._lease_ms = round(lease_seconds * 1000)
        self._clock = Clock()
        self._connection: apsw.Connection | None = None
        self._identity: Identity | None = None
        self._accepted: dict[str, int] = {}
        self._log_bytes = 0
        self._must_check = True
        self._must_free_leases = exclusive
        # After a failed fsync the kernel takes what it did not write for written.
        self._must_empty_log = False
        self._has_failed = False
        self._written_at = 0.0

    def read(self, work: Callable[[Book], _Result]) -> _Result:
        """Return what `work` finds in one state of the book."""

        def step() -> _Result:
            if not self._is_current():
                with self._turn():
                    self._reopen()
            return self._transact("DEFERRED", work)

        return self._run(step)

    def write(self, work: Callable[[Book], _Result]) -> _Result:
        """Do `work` as one transaction, on disk when this returns."""

        def step() -> _Result:
            with self._turn():
                self._reopen()
                return self._transact("IMMEDIATE", work)

        return self._run(step)

    def put(self, puts: Sequence[Sequence[bytes]]) -> list[QueueFull | None]:
        """Hold all of `puts` in one transaction, but for those that there is no room for."""

        def step() -> list[QueueFull | None]:
            with self._turn():
                self._reopen()
                refused = self._refusals([self._needed_bytes(put) for put in puts])
                fitting = [put for put, no in zip(puts, refused, strict=True) if put and not no]
                if fitting:
                    self._transact("IMMEDIATE", lambda book: _put_each(book, fitting))
                return refused

        return self._run(step)

    def tallies(self) -> list[Tally]:
        """Return what was accepted in each epoch that this process has seen, the present last."""
        self.read(Book.ledger)
        return [Tally(UUID(epoch), accepted) for epoch, accepted in self._accepted.items()]

    def reserves(self) -> list[Reserve]:
        """Return what each epoch that this process has seen has accepted, the present last.

        Nothing is left of those that are over, and nothing of a spool in memory outlives it.
        """
        if self._folder is None:
            return []
        place = place_of(self._folder.file)
        present = Reserve(*self.read(Book.holding), place)
        known = ((UUID(epoch), accepted) for epoch, accepted in self._accepted.items())
        over = [(epoch, accepted) for epoch, accepted in known if epoch != present.epoch]
        return [*(Reserve(epoch, accepted, 0, 0, place) for epoch, accepted in over), present]

    def warnings(self) -> list[str]:
        """Say what is damaged and how full it is, a sentence each; raises when it takes nothing."""
        if self._has_failed:
            self.write(Book.touch)
        found = [f"{self.name}: {warning}" for warning in self.read(Book.warnings)]
        if self._folder:
            self._folder.leave_free(0)
            found += self._folder.warnings()
        share = self.read(self._used_bytes) / self._max_bytes
        if share >= 1:
            raise self._full()
        if share >= _NEARLY_FULL:
            found.append(f"{self.name}: it is {share:.0%} full")
        return found

    def rest(self) -> None:
        """Move a long log into the file; some time after the last write give back the disk."""
        with suppress(BackendUnavailable):
            if self._log_bytes > min(_LOG_BYTES, self._max_bytes // 8):
                self._run(lambda: self._empty_log(apsw.SQLITE_CHECKPOINT_PASSIVE))
            if self._written_at and time.monotonic() > self._written_at + _IDLE_SECONDS:
                self._written_at = 0.0
                self._run(self._give_back)

    def close(self) -> None:
        """Close the file; the last one to do so leaves no log behind."""
        with suppress(OSError), self._turn():
            if self._connection and self._is_current():
                self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            self._drop()
        self._drop()

    def _run(self, step: Callable[[], _Result]) -> _Result:
        """Take a step, again on another file when the one that is there is damaged."""
        reason: Exception | None = None
        for _ in range(_TRIES):
            try:
                return step()
            except ForeignFile as error:
                raise SettingsError(f"SPOOL_PATH={self.name} cannot be used: {error}") from None
            except (*_DAMAGE, *_SUSPICIOUS, apsw.Error, OSError) as error:
                reason = error
                if not self._recovers_from(error):
                    break
        self._has_failed = True
        raise BackendUnavailable(f"spool {self.name}: {reason}") from reason

    def _recovers_from(self, error: Exception) -> bool:
        """Say whether it is worth another try, for which a file is opened anew."""
        # A file that ends too early is shorter than it says.
        ends_early = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHORT_READ
        is_damaged = ends_early or isinstance(error, _DAMAGE)
        if self._folder is None:
            if is_damaged:
                _log.error("spool_in_memory_lost", reason=str(error))
                self._drop()
            # What fails in memory leaves there what was there.
            return is_damaged
        self._drop()
        if is_damaged:
            self._must_check = True
            return self._replaces_file(self._folder, error)
        if isinstance(error, _SUSPICIOUS):
            self._must_check = True
            return True
        self._must_empty_log = not isinstance(error, apsw.BusyError | TimeoutError)
        return False

    def _replaces_file(self, folder: SpoolFolder, error: Exception) -> bool:
        try:
            with self._turn():
                # Another process may have been first, and what bears the name now is whole.
                if self._identity and folder.identity() == self._identity:
                    aside = folder.set_aside()
                    _log.error("spool_set_aside", file=str(aside), reason=str(error))
        except OSError as fault:
            _log.warning("spool_not_set_aside", file=self.name, reason=str(fault))
            return False
        return True

    def _turn(self) -> AbstractContextManager[None]:
        return self._folder.turn() if self._folder else nullcontext()

    def _transact(self, kind: str, work: Callable[[Book], _Result]) -> _Result:
        connection = self._open_connection()
        book = Book(connection, self._lease_ms, self._clock)
        connection.execute(f"BEGIN {kind}")
        try:
            result = work(book)
            ledger = book.ledger()
            connection.execute("COMMIT")
        except BaseException:
            with suppress(apsw.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        if kind == "IMMEDIATE":
            self._has_failed = False
            self._written_at = time.monotonic()
        # The present epoch is the last one.
        self._accepted.pop(ledger.epoch, None)
        self._accepted[ledger.epoch] = ledger.accepted
        while len(self._accepted) > _EPOCHS_KEPT:
            del self._accepted[next(iter(self._accepted))]
        return result

    def _is_current(self) -> bool:
        if self._connection is None or self._folder is None:
            return self._connection is not None
        return self._folder.identity() == self._identity

    def _reopen(self) -> None:
        """Be connected to the file that bears the name now: somebody may have moved it."""
        if not self._is_current():
            self._drop()
            self._connection = self._open()

    def _open_connection(self) -> apsw.Connection:
        if self._connection is None:
            raise apsw.ConnectionClosedError("it is not open")
        return self._connection

    def _open(self) -> apsw.Connection:
        if self._folder:
            self._identity = self._folder.identity()
            if self._identity is None:
                self._folder.create()
        connection = apsw.Connection(self.name)
        try:
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if self._must_check and isinstance(error, _SUSPICIOUS):
                raise FileDamaged(str(error)) from error
            raise
        if self._folder:
            self._identity = self._folder.identity()
        return connection

    def _prepare(self, connection: apsw.Connection) -> None:
        # Only who knows that the file still bears its name may remove a log of that name.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(_BUSY_MS)
        for name, value in _PRAGMAS.items():
            connection.pragma(name, value)
        if self._folder and connection.pragma("journal_mode") != "wal":
            raise apsw.CantOpenError("its file system cannot hold SQLite's log")
        # In place of SQLite's own hook, by which a commit would wait while the log is moved.
        connection.set_wal_hook(self._note_log)
        book = Book.opened(connection, self._lease_ms, self._clock)
        if self._must_check:
            book.check()
            if self._folder and connection.readonly("main") and os.access(self.name, os.W_OK):
                raise FileDamaged("it says that it must not be written to")
        if self._must_empty_log:
            with suppress(apsw.BusyError):
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        if self._must_free_leases:
            with connection:
                book.free_leases()
        self._must_check = self._must_empty_log = self._must_free_leases = False

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(apsw.Error):
                connection.close()

    def _note_log(self, _connection: apsw.Connection, _schema: str, pages: int) -> int:
        self._log_bytes = pages * PAGE_BYTES
        return apsw.SQLITE_OK

    def _empty_log(self, mode: int) -> None:
        with suppress(apsw.BusyError):
            if self._connection and self._is_current():
                self._connection.wal_checkpoint(mode=mode)
                self._log_bytes = 0

    def _give_back(self) -> None:
        with self._turn():
            self._reopen()
            if self._transact("DEFERRED", Book.is_empty):
                self._open_connection().pragma("incremental_vacuum")
                self._empty_log(apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _used_bytes(self, book: Book) -> int:
        return book.bytes_in_use() + (self._folder.log_bytes() if self._folder else 0)

    def _needed_bytes(self, put: Sequence[bytes]) -> int:
        size = sum(map(len, put)) + 4 * len(put) + 4 * HEAD_SIZE
        # A row of a file is in the log first, and then in the file as well.
        return 2 * size if self._folder else size

    def _left_bytes(self) -> int:
        return self._max_bytes - self._transact("DEFERRED", self._used_bytes)

    def _refusals(self, needs: list[int]) -> list[QueueFull | None]:
        """Say which of some sizes there is no room for; those before them take theirs."""
        left = self._left_bytes()
        if sum(needs) > left:
            self._empty_log(apsw.SQLITE_CHECKPOINT_TRUNCATE)
            left = self._left_bytes()
        refused: list[QueueFull | None] = []
        for need in needs:
            full = self._full() if need > left else self._too_full(need)
            refused.append(full)
            left -= 0 if full else need
        return refused

    def _full(self) -> QueueFull:
        return QueueFull(f"spool {self.name}: it holds as much as it may, {self._max_bytes} bytes")

    def _too_full(self, need: int) -> QueueFull | None:
        try:
            if self._folder:
                self._folder.leave_free(need)
        except QueueFull as full:
            return full
        return None


_PRAGMAS = {
    "page_size": PAGE_BYTES,
    "auto_vacuum": "INCREMENTAL",
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "secure_delete": "ON",
    "cell_size_check": "ON",
}


def _put_each(book: Book, puts: list[Sequence[bytes]]) -> None:
    for put in puts:
        book.put(put)


def peek(file: Path) -> Holding | None:
    """Count what another process's spool file holds; None where it cannot be read."""
    try:
        if not file.stat().st_size:
            return None
        with closing(apsw.Connection(str(file), apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            with connection:
                holding = Book(connection, 0, Clock()).holding()
    except (*_DAMAGE, *_SUSPICIOUS, apsw.Error, OSError, ValueError):
        return None
    return holding
