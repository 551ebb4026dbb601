"""Requests per API key and endpoint, counted in windows that all workers share.

A worker claims permits in chunks, before it needs them: the requests of a key cost a round trip a
hundred times in a window, and hardly ever wait for it. While nobody can be asked, a worker allows
its share of what was left.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from math import ceil

import structlog

from logging_service.auth import Principal
from logging_service.backends import open_permits
from logging_service.errors import BackendUnavailable, RateLimited
from logging_service.permits import Claim, SharedPermits
from logging_service.rate_window import Allowance, Told, Window
from logging_service.settings import Rate, Settings

_log = structlog.get_logger()

_MAX_WINDOWS = 10_000
# As many make room at once, so that the next ones find some.
_ROOM = 1_000
_MAX_CLAIMS = 500
_PROBE_SECONDS = 1.0
# A worker that can ask shows that it lives at each third of its turns.
_TURNS_OF_SILENCE = 3


class RateLimiter:
    """Counts requests in windows that begin with a key's first request.

    Without `shared` permits, `workers` divide each limit among themselves.
    """

    def __init__(
        self,
        rate_for: Callable[[str], Rate],
        shared: SharedPermits | None = None,
        *,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_for = rate_for
        self._shared = shared
        self._workers = workers
        self._clock = clock
        self._rates: dict[str, Rate] = {}
        self._windows: dict[tuple[str, str], Window] = {}
        self._is_away = shared is None
        self._due: list[Window] = []
        self._claiming: asyncio.Task[None] | None = None

    def spend(self, principal: Principal, endpoint: str) -> bool:
        """Count one request; False when it is not known yet whether it may be made.

        Then `when_known` has to be called. Raises RateLimited when it is one too many, which then
        does not count. Who has no key has no limit.
        """
        key_id = principal.key_id
        if not key_id:
            return True
        window = self._windows.get((key_id, endpoint))
        if window is None or self._clock() >= window.ends:
            window = self._begin(principal, endpoint)
        if not window.held and not self._finds_more(window):
            return False
        window.held -= 1
        if window.held <= window.low and not window.is_final:
            self._claim(window)
        return True

    def when_known(self, principal: Principal, endpoint: str, told: Told) -> None:
        """Call `told` soon, once: with None when the request is counted, else with RateLimited."""
        window = self._windows[principal.key_id, endpoint]
        window.waiting.append(told)
        self._claim(window)

    async def require(self, principal: Principal, endpoint: str) -> None:
        """Count one request; raises RateLimited when it is one too many."""
        if self.spend(principal, endpoint):
            return
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(refused: RateLimited | None) -> None:
            if not known.done():
                known.set_exception(refused) if refused else known.set_result(None)

        self.when_known(principal, endpoint, told)
        await known

    async def allowance(self, principal: Principal, endpoint: str) -> Allowance:
        """Return what is left of a key's limit, counting nothing.

        It is exact where one worker serves the key; what others hold in advance counts as used.
        """
        rate = self._rate(principal, endpoint)
        if self._shared is not None and not self._is_away:
            question = Claim(principal.key_id, endpoint, rate, wanted=0, spent=0)
            with suppress(BackendUnavailable):
                (grant,) = await self._shared.claim([question])
                window = self._live(principal, endpoint)
                left = rate[0] - grant.taken + (window.held if window else 0)
                reset = ceil(grant.left_seconds) or rate[1]
                return Allowance(rate[0], min(rate[0], max(0, left)), reset, rate[1])
        window = self._live(principal, endpoint) or Window(principal.key_id, endpoint, rate)
        return window.allowance(self._clock(), self._workers)

    def _live(self, principal: Principal, endpoint: str) -> Window | None:
        window = self._windows.get((principal.key_id, endpoint))
        return window if window and self._clock() < window.ends else None

    def _begin(self, principal: Principal, endpoint: str) -> Window:
        rate = self._rate(principal, endpoint)
        window = self._windows.get((principal.key_id, endpoint))
        if window is None:
            self._make_room()
            window = Window(principal.key_id, endpoint, rate)
            self._windows[principal.key_id, endpoint] = window
        else:
            window.begin(rate)
        return window

    def _rate(self, principal: Principal, endpoint: str) -> Rate:
        own = principal.rates
        rate = own.get(endpoint) or own.get("") or self._rates.get(endpoint)
        if rate is None:
            rate = self._rates[endpoint] = self._rate_for(endpoint)
        return rate

    def _finds_more(self, window: Window) -> bool:
        """Whether a window that is empty is so no more; raises RateLimited when it stays so."""
        if not window.is_final and self._is_away:
            window.lend(self._clock(), self._workers)
        if not window.held and window.is_final:
            raise self._refusal(window)
        return window.held > 0

    def _refusal(self, window: Window) -> RateLimited:
        left = window.allowance(self._clock(), self._workers)
        return RateLimited(
            f"The limit of {left.limit} requests in {left.window_seconds} s is used up.",
            {"Retry-After": str(left.reset_seconds), **left.headers()},
        )

    def _claim(self, window: Window) -> None:
        if window.is_asked:
            return
        window.is_asked = True
        self._due.append(window)
        if self._claiming is None:
            # It begins at the end of this turn of the loop, with what comes until then.
            self._claiming = asyncio.get_running_loop().create_task(self._claim_due())

    async def _claim_due(self) -> None:
        """Claim what is due, all that is due at once, until nothing is."""
        try:
            while self._due:
                asked, self._due = self._due[:_MAX_CLAIMS], self._due[_MAX_CLAIMS:]
                if not self._is_away:
                    await self._ask(asked)
                for window in asked:
                    window.is_asked = False
                    self._serve(window)
        finally:
            self._claiming = None

    async def _ask(self, asked: list[Window]) -> None:
        assert self._shared is not None
        asked_at = self._clock()
        try:
            grants = await self._shared.claim([window.claim() for window in asked])
        except Exception as error:  # noqa: BLE001 - who waits has to be told all the same
            for window in asked:
                window.take_back_claim()
            self._lose(str(error) or type(error).__name__)
        else:
            for window, grant in zip(asked, grants, strict=True):
                window.receive(grant, asked_at)

    def _serve(self, window: Window) -> None:
        """Tell those who wait what became of their claim, and claim again for who is left."""
        while window.waiting:
            refused = None
            try:
                if not window.held and not self._finds_more(window):
                    self._claim(window)
                    return
                window.held -= 1
            except RateLimited as error:
                refused = error
            _tell(window.waiting.popleft(), refused)

    async def keep_in_touch(self) -> None:
        """Show that this worker lives, count those that do, and find out what is back."""
        for turn in itertools.count():
            if self._is_away or turn % _TURNS_OF_SILENCE == 0:
                await self.touch()
            await asyncio.sleep(_PROBE_SECONDS)

    async def drain(self) -> None:
        """Return when no claim is on its way."""
        while self._claiming is not None:
            await asyncio.wait({self._claiming})

    async def touch(self) -> None:
        """Show that this worker lives and count those that do; if it could not before, it is back.

        From then on permits are claimed again, and what was spent meanwhile is told.
        """
        assert self._shared is not None
        try:
            self._workers = max(1, await self._shared.workers())
        except BackendUnavailable as error:
            self._lose(str(error))
            return
        if self._is_away:
            self._is_away = False
            _log.info("available_again", after="rate_limits_divided")
            self._take_back(self._windows.values())

    def _lose(self, reason: str) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning("rate_limits_divided", reason=reason, workers=self._workers)

    def _take_back(self, windows: Iterable[Window]) -> None:
        for window in windows:
            if window.take_back():
                self._claim(window)

    def _make_room(self) -> None:
        if len(self._windows) < _MAX_WINDOWS:
            return
        now = self._clock()
        self._windows = {key: kept for key, kept in self._windows.items() if kept.ends > now}
        excess = len(self._windows) - (_MAX_WINDOWS - _ROOM)
        for key in list(itertools.islice(self._windows, max(0, excess))):
            del self._windows[key]


def _tell(told: Told, refused: RateLimited | None) -> None:
    try:
        told(refused)
    except Exception:  # noqa: BLE001 - one caller's fault must not keep the others waiting
        _log.exception("answer_failed")


@asynccontextmanager
async def open_limiter(
    settings: Settings, service: str, *, workers: int = 1
) -> AsyncIterator[RateLimiter]:
    """Yield the limits of a worker of `service`.

    `workers` are on this host, and share the limits when there is nothing else to go by.
    """
    async with open_permits(settings, service) as shared:
        limiter = RateLimiter(settings.rate_for, shared, workers=workers)
        if shared is None:
            yield limiter
            return
        touch = asyncio.create_task(limiter.keep_in_touch())
        try:
            yield limiter
        finally:
            touch.cancel()
            await limiter.drain()
            await asyncio.wait({touch})
