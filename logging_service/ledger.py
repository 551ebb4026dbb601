"""What Redis accepted, in which epoch, and what this process was told of it."""

import itertools
import uuid
from uuid import UUID

from logging_service.ports import NO_EPOCH, Tally
from logging_service.resp import pack

_MOST_EPOCHS = 16


class Ledger:
    """The hash `key` beside a queue, with its epoch and its count, and a memory of both.

    The memory holds the 16 epochs of which it was told last.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._known: dict[bytes, int] = {}
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
        self._known[epoch] = max(accepted, self._known.pop(epoch, 0))
        if len(self._known) > _MOST_EPOCHS:
            del self._known[next(iter(self._known))]

    def remembered(self) -> list[Tally]:
        """Return every epoch that is remembered, the one of which it was told last at the end."""
        known = ((epoch_of(epoch), accepted) for epoch, accepted in self._known.items())
        return [Tally(epoch, accepted) for epoch, accepted in known if epoch != NO_EPOCH]


def epoch_of(text: bytes) -> UUID:
    """Return an epoch's id; one that somebody overwrote is none, and no reason to stop."""
    try:
        return UUID(text.decode())
    except ValueError:
        return NO_EPOCH
