"""How the last events fared: most of them bad is a bad deploy, not bad data."""

import math
from collections import deque

_WINDOW = 1000
# So few bad events say nothing, whatever their share.
_FEW = 99


class RecentEvents:
    """What became of the last thousand events, and how many of the next may be bad.

    Of a delivery in part beyond them its share of bad events counts; a larger delivery is judged
    by itself.
    """

    def __init__(self, most_dead_ratio: float) -> None:
        self._most_dead_ratio = most_dead_ratio
        self._deliveries: deque[tuple[int, int]] = deque()
        self._events = 0

    def note(self, events: int, dead: int) -> None:
        """Add a delivery whose events are settled, `dead` of them as dead letters.

        Leave conflicts out of both numbers: they are the sender's fault alone.
        """
        if not events:
            return
        self._deliveries.append((events, dead))
        self._events += events
        while self._events - self._deliveries[0][0] >= _WINDOW:
            self._events -= self._deliveries.popleft()[0]

    def most_dead(self, events: int) -> int:
        """Return how many of the next `events` may be dead letters before it is too many."""
        room, before = max(0, _WINDOW - events), 0.0
        window = events
        for settled, dead in reversed(self._deliveries):
            part = min(settled, room)
            before += dead * part / settled
            room -= part
            window += part
        most = max(_FEW, math.floor(self._most_dead_ratio * window))
        return max(0, math.floor(most - before))
