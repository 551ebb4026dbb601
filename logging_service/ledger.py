"""What Redis accepted in which epoch, how much of it came from which other queue.

With a memory of what this process was told, which outlives what Redis forgets.
"""

import itertools
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from logging_service.ports import NO_EPOCH, Move, Tally
from logging_service.resp import pack

MOST_ORIGINS = 1_000
_MOST_EPOCHS = 16


class Ledger:
    """The hash `key` beside a queue, with its epoch and its counts, and a memory of them.

    The memory holds the 16 epochs of which it was told last, and 1,000 origins of each.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.question = pack(("HGETALL", key))
        self._accepted: dict[bytes, int] = {}
        self._moves: dict[bytes, dict[bytes, int]] = {}
        self._read_epoch = pack(("HGET", key, "epoch"))
        # An id that is proposed for an epoch and never again, for less than `uuid4` costs.
        self._proposer = str(uuid.uuid4())[:-12]
        self._proposals = itertools.count()

    def counting(self, events: int) -> list[bytes]:
        """Return commands whose last two replies are the epoch and its count with `events`."""
        proposal = f"{self._proposer}{next(self._proposals):012x}"
        return [
            pack(("HSETNX", self.key, "epoch", proposal)),
            self._read_epoch,
            pack(("HINCRBY", self.key, "accepted", events)),
        ]

    def told(self, epoch: bytes, accepted: int) -> None:
        """Remember the count of an epoch, as the present one."""
        if not isinstance(epoch, bytes):
            raise TypeError("an epoch is text")
        self._accepted[epoch] = max(accepted, self._accepted.pop(epoch, 0))
        if len(self._accepted) > _MOST_EPOCHS:
            oldest = next(iter(self._accepted))
            del self._accepted[oldest]
            self._moves.pop(oldest, None)

    def told_of_moves(self, epoch: bytes, accepted: int, moves: Mapping[bytes, int]) -> None:
        """Remember the count of an epoch, and how many events came from which origins."""
        self.told(epoch, accepted)
        known = self._moves.setdefault(epoch, {})
        for origin in filter(_is_epoch, moves):
            known[origin] = max(moves[origin], known.pop(origin, 0))
        while len(known) > MOST_ORIGINS:
            del known[next(iter(known))]

    def remembered(self) -> list[Tally]:
        """Return every epoch that is remembered, the one of which it was told last at the end."""
        return [
            Tally(epoch_of(epoch), accepted, _moves_of(self._moves.get(epoch, {})))
            for epoch, accepted in self._accepted.items()
            if epoch_of(epoch) != NO_EPOCH
        ]

    def tallies(self, remembered: list[Tally], answer: Any) -> list[Tally]:
        """Return what was `remembered` before the question, and what the answer to it tells."""
        fields = _fields_of(answer)
        epoch, accepted = fields.pop(b"epoch", None), int(fields.pop(b"accepted", 0))
        if epoch is None:
            return [*remembered, Tally(NO_EPOCH, 0)]
        counts = {origin: int(events) for origin, events in fields.items() if _is_epoch(origin)}
        self.told_of_moves(epoch, accepted, counts)
        present = Tally(epoch_of(epoch), accepted, _moves_of(counts))
        return [*(one for one in remembered if _is_more(one, present)), present]


def epoch_of(text: bytes) -> UUID:
    """Return an epoch's id; one that somebody overwrote is none, and no reason to stop."""
    try:
        return UUID(text.decode())
    except ValueError:
        return NO_EPOCH


def _is_epoch(field: bytes) -> bool:
    return epoch_of(field) != NO_EPOCH


def _moves_of(counts: Mapping[bytes, int]) -> tuple[Move, ...]:
    return tuple(sorted(Move(epoch_of(origin), events) for origin, events in counts.items()))


def _fields_of(answer: Any) -> dict[bytes, Any]:
    if not isinstance(answer, list):
        raise TypeError("a ledger is a hash")
    parts: Iterator[Any] = iter(answer)
    return dict(zip(parts, parts, strict=True))


def _is_more(remembered: Tally, present: Tally) -> bool:
    """Whether it is of another epoch, or more than the server counts now."""
    counted = dict(present.moves)
    return (
        remembered.epoch != present.epoch
        or remembered.accepted > present.accepted
        or any(events > counted.get(origin, 0) for origin, events in remembered.moves)
    )
