"""Who is erased, and what is left of their events: that they happened, and their numbers."""

import json
import re
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from logging_service import wire
from logging_service.audit import Actor
from logging_service.facts import REVIEW_END, facts_of, findings_in
from logging_service.usage import decoded

Kind = Literal["session", "user"]
_NOBODY: Final[tuple[str, ...]] = ()
_NUMBER: Final = re.compile(r"-?[0-9]+", re.ASCII)


@dataclass(frozen=True)
class Subject:
    """A session, or a user with the sessions in which nobody else is named; of one project or all.

    `texts` are the ways in which its id may be stored. `pseudonym` stands for it in the audit.
    """

    kind: Kind
    texts: tuple[str, ...]
    project: str | None
    pseudonym: str

    @property
    def sessions(self) -> tuple[str, ...]:
        """The ids of the session, none for a user."""
        return self.texts if self.kind == "session" else _NOBODY

    @property
    def users(self) -> tuple[str, ...]:
        """The ids of the user, none for a session."""
        return self.texts if self.kind == "user" else _NOBODY

    def is_of_project(self, source: str) -> bool:
        """Whether it may have to do with the events of a source."""
        return self.project is None or self.project == source


class Erased(msgspec.Struct):
    """What was erased: the contents of events, ids in the ledger and in facts, dead letters.

    `stored_reviews` are those that the gateway kept, which are gone as a whole.
    """

    events: int = 0
    ledger_entries: int = 0
    reviews: int = 0
    dead_letters: int = 0
    stored_reviews: int = 0


class Found(NamedTuple):
    """An event of somebody who is erased."""

    timestamp: datetime
    event_id: UUID
    event_type: str
    payload: bytes


class Erasure(Protocol):
    """Erases one after the other; raises BackendUnavailable, and SchemaMismatch."""

    async def erase(
        self, subject: Subject, actor: Actor, advance: Callable[[int, int], None]
    ) -> Erased:
        """Erase a subject, with notes for the audit, and say how much that was.

        Asked again after a fault it does the rest; of who was erased before nothing is found.
        `advance` is told how many more steps are done, of how many.
        """


class Left(NamedTuple):
    """Which of some events are to be erased, and what is left of each, as JSON."""

    times: list[datetime]
    ids: list[UUID]
    facts: list[bytes]


def left_of(found: Sequence[Found], users: Collection[str | None] | None) -> Left:
    """Return what is left of events: of those whose user is one of `users`; None: of all.

    What is counted of an event is counted of what is left, too. The user stays where it is not who
    is erased.
    """
    left = Left([], [], [])
    for event, (user, duration_us, is_failed) in zip(
        found, facts_of([event.payload for event in found]), strict=True
    ):
        if users is not None and user not in users:
            continue
        facts: dict[str, Any] = {"duration_us": duration_us, "failed": is_failed}
        if users is None:
            facts["user"] = user
        if event.event_type == REVIEW_END:
            facts |= findings_in(decoded(event.payload) or {})._asdict()
        left.times.append(event.timestamp)
        left.ids.append(event.event_id)
        left.facts.append(msgspec.json.encode(facts))
    return left


class Told(NamedTuple):
    """What the bytes of a dead letter tell: source, session and user."""

    source: str
    session_id: str | None
    user: str | None


def told_by(event: bytes) -> Told | None:
    """Return what an event's bytes tell; None where they cannot be read."""
    try:
        event_told = wire.decode(event)
    except (ValueError, struct.error):
        return None
    [(user, _, _)] = facts_of([event_told.payload])
    return Told(event_told.source, event_told.session_id, user)


def may_tell_of(subject: Subject, event: bytes) -> bool:
    """Whether an event's bytes, which are not to be read, hold an id of the subject as a whole."""
    if subject.project is not None and wire.column(subject.project.encode()) not in event:
        return False
    return any(_is_told(subject, text, event) for text in subject.texts)


def _is_told(subject: Subject, text: str, event: bytes) -> bool:
    if subject.sessions:
        return wire.column(text.encode()) in event
    # As encoders write it: as it is, or in ASCII alone; a number may have come as one.
    told = {msgspec.json.encode(text), json.dumps(text).encode()}
    if any(one in event for one in told):
        return True
    return _NUMBER.fullmatch(text) is not None and bool(
        re.search(rb"[:\s]%b(?![0-9.eE])" % text.encode(), event)
    )
