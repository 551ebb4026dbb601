"""Requests per API key and endpoint, counted in windows by each worker."""

import time
from collections.abc import Callable
from typing import NamedTuple

from logging_service.errors import RateLimited
from logging_service.settings import Rate

_MAX_WINDOWS = 10_000


class Allowance(NamedTuple):
    """What a key may still do: `remaining` of `limit` requests until `reset_seconds` are over."""

    limit: int
    remaining: int
    reset_seconds: int
    window_seconds: int

    def headers(self) -> dict[str, str]:
        """Return RateLimit and RateLimit-Policy as draft-ietf-httpapi-ratelimit-headers-11 has."""
        return {
            "RateLimit-Policy": f'"default";q={self.limit};w={self.window_seconds}',
            "RateLimit": f'"default";r={self.remaining};t={self.reset_seconds}',
        }


class RateLimiter:
    """Counts requests in windows that begin with a key's first request."""

    def __init__(
        self, rate_for: Callable[[str], Rate], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate_for = rate_for
        self._clock = clock
        self._rates: dict[str, Rate] = {}
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def spend(self, key: str, endpoint: str) -> bool:
        """Count one request; False when it is one too many, which then does not count."""
        limit, seconds = self._rate(endpoint)
        now = self._clock()
        ends, used = self._windows.get((key, endpoint), (0.0, 0))
        if now >= ends:
            self._make_room(now)
            ends, used = now + seconds, 0
        if used >= limit:
            return False
        self._windows[key, endpoint] = (ends, used + 1)
        return True

    def require(self, key: str, endpoint: str) -> None:
        """Count one request; raises RateLimited when it is one too many."""
        if not self.spend(key, endpoint):
            left = self.allowance(key, endpoint)
            raise RateLimited(
                f"The limit of {left.limit} requests in {left.window_seconds} s is used up.",
                {"Retry-After": str(left.reset_seconds), **left.headers()},
            )

    def allowance(self, key: str, endpoint: str) -> Allowance:
        """Return what is left of a key's limit, counting nothing."""
        limit, seconds = self._rate(endpoint)
        now = self._clock()
        ends, used = self._windows.get((key, endpoint), (0.0, 0))
        if now >= ends:
            return Allowance(limit, limit, seconds, seconds)
        reset = max(1, int(ends - now + 0.999))
        return Allowance(limit, limit - used, reset, seconds)

    def _rate(self, endpoint: str) -> Rate:
        rate = self._rates.get(endpoint)
        if rate is None:
            rate = self._rates[endpoint] = self._rate_for(endpoint)
        return rate

    def _make_room(self, now: float) -> None:
        if len(self._windows) < _MAX_WINDOWS:
            return
        self._windows = {key: kept for key, kept in self._windows.items() if kept[0] > now}
        while len(self._windows) >= _MAX_WINDOWS:
            self._windows.pop(next(iter(self._windows)))
