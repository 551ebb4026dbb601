"""A delivery event by event, so that the one event that ends its consumer is found."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import structlog

from logging_service.dead_letters import CRASH
from logging_service.errors import LoggingServiceError
from logging_service.ports import DeadLetter, Delivery, EventStore, Outcome, Sorted, Trial

_log = structlog.get_logger()

# Once can be a power cut or an operator's kill; twice at the same event is the event.
_MOST_TRIES = 2


class Trials:
    """Stores the events of a delivery one by one, from where the run before this one ended."""

    def __init__(
        self,
        store: EventStore,
        delivery: Delivery,
        decode: Callable[[Delivery], Sorted],
        confirm: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._delivery = delivery
        self._decode = decode
        self._confirm = confirm
        self._run = uuid4()

    async def settle_next(self, most_dead: int) -> tuple[Sorted, Outcome] | None:
        """Store the next event or put it aside; None once all are settled and recorded.

        An event that ended the process in two runs is a dead letter, with the reason `crash`.
        Raises like `EventStore.append`, and may be repeated then.
        """
        try:
            return await self._settle_next(most_dead)
        except (LoggingServiceError, asyncio.CancelledError):
            # Whatever it was, the event did not end the process. Where the store does not hear
            # that, this run still counts once, and one is not enough.
            with suppress(LoggingServiceError):
                await self._store.release_trial(self._delivery, self._run)
            raise

    async def _settle_next(self, most_dead: int) -> tuple[Sorted, Outcome] | None:
        trial = await self._store.begin_trial(self._delivery, self._run)
        if trial is None:
            return None
        if trial.place >= len(self._delivery.events):
            await self._store.end_trials(self._delivery)
            return None
        batch = self._batch(trial)
        return batch, await self._store.append(batch, most_dead, self._confirm)

    def _batch(self, trial: Trial) -> Sorted:
        event = self._delivery.events[trial.place]
        alone = replace(self._delivery, events=[event])
        if trial.tries <= _MOST_TRIES:
            return replace(self._decode(alone), place=trial.place)
        lease_id = str(alone.lease_id)
        _log.error("event_ends_the_consumer", lease_id=lease_id, place=trial.place)
        detail = f"its consumer ended {_MOST_TRIES} times while it had this event alone"
        letter = DeadLetter(event, CRASH, detail, alone.attempts)
        return Sorted(alone, [], dead=[letter], place=trial.place)
