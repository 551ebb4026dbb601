"""How far answers are complete: what still waits in the queue is not in them."""

from datetime import UTC, datetime, timedelta

import msgspec

from logging_service.errors import BackendUnavailable
from logging_service.health import answer_within
from logging_service.ports import EventQueue

_ANSWER_SECONDS = 1.0
# Producers, queue and this process may each have a clock of their own.
_CLOCKS_DIFFER = timedelta(seconds=1)


class Watermark(msgspec.Struct, frozen=True):
    """Everything accepted before `complete_to` is in the answer; `queued` events are not yet.

    Both are null where the queue cannot be seen; `complete_to` alone while it holds events of
    which it is not known when they were accepted, such as those that were on a spool.
    """

    complete_to: datetime | None
    queued: int | None


async def read_watermark(queue: EventQueue) -> Watermark:
    """Return the watermark of an answer that is computed after this, within a second.

    An event is accepted with the acknowledgement to its sender, and from then on in the queue
    until it is stored. So with an empty queue all that was accepted before it was asked is
    stored; else all that came before the oldest event in it. A second is taken off for clocks
    that differ, so long as they are less than that apart.
    """
    asked_at = datetime.now(UTC)
    try:
        status = await answer_within(_ANSWER_SECONDS, queue.status)
    except (BackendUnavailable, TimeoutError):
        return Watermark(None, None)
    queued = status.size + status.in_flight + status.spooled
    complete_to = status.held_since if queued else asked_at
    return Watermark(complete_to and complete_to - _CLOCKS_DIFFER, queued)
