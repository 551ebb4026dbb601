"""A queue that another process keeps in its memory: there is one, and nobody else can see it."""

from collections.abc import Sequence
from typing import NoReturn

from logging_service.errors import BackendUnavailable
from logging_service.ports import Ack, Delivery, QueueStatus, Reserve, Tally


class HiddenQueue:
    """An EventQueue of which every method raises BackendUnavailable and says why."""

    async def put(self, events: Sequence[bytes]) -> Ack:
        """Raise BackendUnavailable."""
        _refuse(events)

    async def take(self, limit: int, wait_seconds: float) -> Delivery | None:
        """Raise BackendUnavailable."""
        _refuse(limit, wait_seconds)

    async def extend(self, delivery: Delivery) -> None:
        """Raise BackendUnavailable."""
        _refuse(delivery)

    async def done(self, delivery: Delivery) -> None:
        """Raise BackendUnavailable."""
        _refuse(delivery)

    async def give_back(self, delivery: Delivery, delay_seconds: float) -> None:
        """Raise BackendUnavailable."""
        _refuse(delivery, delay_seconds)

    async def status(self) -> QueueStatus:
        """Raise BackendUnavailable."""
        _refuse()

    async def tallies(self) -> list[Tally]:
        """Raise BackendUnavailable."""
        _refuse()

    async def reserves(self) -> list[Reserve]:
        """Raise BackendUnavailable."""
        _refuse()

    async def warnings(self) -> list[str]:
        """Raise BackendUnavailable."""
        _refuse()


def _refuse(*_arguments: object) -> NoReturn:
    raise BackendUnavailable("the queue is in the producer's memory (SPOOL_PATH=:memory:)")
