"""What a batch puts aside on its way into the store: events that can never be stored."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from logging_service import wire
from logging_service.dead_letters import CRASH, event_type_of, letter_digest
from logging_service.errors import TooManyDead
from logging_service.ports import DeadLetter, NamedLetter, Outcome, Sorted

CONFLICT = "conflict"
# So many are named in the log, the rest are counted.
MOST_NAMED = 5


class Burials:
    """The dead letters of a batch, so far; raises TooManyDead for one too many.

    A conflict is never too many: whoever may send events could stop the consumer with them.
    """

    def __init__(self, batch: Sorted, most: int | None) -> None:
        self.letters: list[DeadLetter] = []
        self._batch = batch
        self._most = most
        self._blamed: DeadLetter | None = None
        self.conflicts = 0

    def add(self, event: bytes, reason: str, detail: str, sqlstate: str | None = None) -> None:
        """Put an event aside."""
        attempts = self._batch.delivery.attempts
        self.add_all([DeadLetter(event, reason, detail, attempts, sqlstate)])

    def add_all(self, letters: Sequence[DeadLetter]) -> None:
        """Put events aside."""
        self.letters.extend(letters)
        for letter in letters:
            if letter.reason == CONFLICT:
                self.conflicts += 1
            elif self._blamed is None:
                self._blamed = letter
        if self._most is None or self._blamed is None:
            return
        if len(self.letters) - self.conflicts > self._most:
            why = f"{self._blamed.reason}: {self._blamed.detail}"
            raise TooManyDead(f"too many events cannot be stored ({why})")

    def outcome(self, stored: int) -> Outcome:
        """Return what became of the batch."""
        batch = self._batch
        duplicates = len(batch.events) - stored - (len(self.letters) - len(batch.dead))
        outcome = Outcome(stored, duplicates, len(self.letters), batch.expired)
        outcome.conflicts = self.conflicts
        outcome.named = [_named(letter) for letter in self.letters[:MOST_NAMED]]
        return outcome


def _named(letter: DeadLetter) -> NamedLetter:
    # Bytes that have ended processes are not looked into.
    if letter.reason != CRASH:
        with suppress(ValueError, struct.error):
            event = wire.decode(letter.event)
            return NamedLetter(letter.reason, event.event_id, event.request_id)
    return NamedLetter(letter.reason, None, None)


def row_of(letter: DeadLetter) -> dict[str, Any]:
    """Return the parameters of the statement that buries `letter`."""
    if letter.reason == CRASH:
        # These bytes have ended processes: nobody looks into them.
        return {**letter._asdict(), "digest": sha256(letter.event).digest(), "event_type": None}
    digest, event_type = letter_digest(letter.event), event_type_of(letter.event)
    return {**letter._asdict(), "digest": digest, "event_type": event_type}
