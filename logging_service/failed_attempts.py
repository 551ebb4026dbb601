"""How often an address has sent a wrong key, so that guessing ends before it costs anything."""

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from math import ceil

from logging_service.errors import RateLimited

_MAX_ADDRESSES = 10_000
_MOST_CHARACTERS = 64
# The part of an IPv6 address that tells one network from another; the rest is its holder's to vary.
_NETWORK_BITS = 64


class FailedAttempts:
    """Counts wrong keys by address, IPv6 by /64, in windows that begin with the first one.

    `rate` is how many in how many seconds. It remembers 10,000 addresses, the latest ones.
    """

    def __init__(self, rate: tuple[int, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds = rate
        self._clock = clock
        # In the order in which the windows end.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def note(self, address: str) -> None:
        """Count a wrong key."""
        place, now = _place(address), self._clock()
        ends, used = self._windows.get(place, (0.0, 0))
        if now >= ends:
            ends, used = now + self._seconds, 0
            self._windows.pop(place, None)
            while len(self._windows) >= _MAX_ADDRESSES:
                self._windows.popitem(last=False)
        self._windows[place] = (ends, used + 1)

    def refuse_too_many(self, address: str) -> None:
        """Raise RateLimited for an address whose window holds as many as are allowed."""
        if not self._windows:
            return
        ends, used = self._windows.get(_place(address), (0.0, 0))
        left = ends - self._clock()
        if used >= self._limit and left > 0:
            raise RateLimited(
                f"This address has sent {self._limit} wrong keys in {self._seconds} s.",
                {"Retry-After": str(ceil(left))},
            )


def _place(address: str) -> str:
    if ":" not in address:
        return address[:_MOST_CHARACTERS]
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:_MOST_CHARACTERS]
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{int(parsed) >> _NETWORK_BITS:x}::/64"
