"""The stages of a review as they come, for any number of followers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from code_reviewer.review import Stage

MAX_STAGES = 64


class Progress:
    """What a review has gone through; the last MAX_STAGES stages are kept."""

    def __init__(self) -> None:
        self._stages: deque[Stage] = deque(maxlen=MAX_STAGES)
        self._told = 0
        self._has_ended = False
        self._news = asyncio.Event()

    def tell(self, stage: Stage) -> None:
        """Add a stage; nobody is waited for."""
        self._stages.append(stage)
        self._told += 1
        self._wake()

    def end(self) -> None:
        """Let the followers go when they have read what was told."""
        self._has_ended = True
        self._wake()

    async def follow(self, quiet_seconds: float) -> AsyncIterator[Stage | None]:
        """Yield each stage from the first on, and None after `quiet_seconds` without one.

        A follower that is slow misses what is not kept any more; it holds up nobody.
        """
        read = 0
        while True:
            news = self._news
            while read < self._told:
                kept_from = self._told - len(self._stages)
                read = max(read, kept_from) + 1
                yield self._stages[read - 1 - kept_from]
            if self._has_ended:
                return
            if not await _is_set_within(news, quiet_seconds):
                yield None

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


async def _is_set_within(news: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await news.wait()
    except TimeoutError:
        return False
