"""Permits to make requests, as all workers of a deployment share them: the seam."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from logging_service.settings import Rate


class Claim(NamedTuple):
    """What a worker asks for a key at an endpoint.

    `wanted` permits; `spent` were used already, while nobody could be asked.
    """

    key_id: str
    endpoint: str
    rate: Rate
    wanted: int
    spent: int


class Grant(NamedTuple):
    """How many permits were granted, and how many are taken by all workers, these included.

    That holds for `left_seconds`; 0: no request has begun a window.
    """

    granted: int
    taken: int
    left_seconds: float


class SharedPermits(Protocol):
    """Counts for all workers; every call ends soon, or raises BackendUnavailable."""

    async def claim(self, claims: Sequence[Claim]) -> list[Grant]:
        """Return what each claim gets; never more than its rate allows all workers together."""

    async def workers(self) -> int:
        """Note that this worker lives, and return how many do."""
