"""A key may make as many requests as its limit says, whoever serves it and whatever happens."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import requests
from conftest import API_KEY
from projects import soon
from redis.asyncio import Redis
from relay import Relay, before
from served import ask, served
from servers import run_service
from structlog.testing import capture_logs

from logging_service.auth import Principal
from logging_service.errors import BackendUnavailable, RateLimited
from logging_service.permits import Claim
from logging_service.query_service import create_app
from logging_service.rate_limit import RateLimiter, open_limiter
from logging_service.redis_permits import RedisPermits, open_redis_permits
from logging_service.settings import Rate, Settings

WRITER = Principal("default", "default", frozenset({"write"}), "API_KEY")
OTHER = WRITER._replace(key_id="other")
KEY = {"X-API-Key": API_KEY}
EVENT = {"event_type": "review_started"}


class Clock:
    """A clock that stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rate_of(text: str) -> Rate:
    return Rate.parse(text)


def alone(rate: str = "3/minute", *, workers: int = 1, clock: Clock | None = None) -> RateLimiter:
    return RateLimiter(lambda _: rate_of(rate), workers=workers, clock=clock or Clock())


async def granted(
    limiter: RateLimiter, requests: int, principal: Principal = WRITER, endpoint: str = "/log"
) -> int:
    """Return how many of so many requests, one after the other, may be made."""
    count = 0
    for _ in range(requests):
        with suppress(RateLimited):
            await limiter.require(principal, endpoint)
            count += 1
    return count


class TestOneWorker:
    async def test_each_key_and_each_endpoint_has_a_limit_of_its_own(self) -> None:
        limiter = alone()
        assert await granted(limiter, 5) == 3
        assert await granted(limiter, 5, OTHER) == 3
        assert await granted(limiter, 5, WRITER, "/logs") == 3

    async def test_a_window_ends_and_the_next_begins_with_a_request(self) -> None:
        clock = Clock()
        limiter = alone(clock=clock)
        assert await granted(limiter, 5) == 3
        clock.now += 59.9
        assert await granted(limiter, 1) == 0
        clock.now += 30
        assert await granted(limiter, 1) == 1
        clock.now += 40
        assert await granted(limiter, 5) == 2

    async def test_who_is_refused_is_told_when_to_come_again(self) -> None:
        clock = Clock()
        limiter = alone(clock=clock)
        await granted(limiter, 3)
        clock.now += 19.5
        with pytest.raises(RateLimited) as refused:
            await limiter.require(WRITER, "/log")
        assert refused.value.headers == {
            "Retry-After": "41",
            "RateLimit-Policy": '"default";q=3;w=60',
            "RateLimit": '"default";r=0;t=41',
        }

    async def test_what_is_left_is_told_and_asking_counts_nothing(self) -> None:
        clock = Clock()
        limiter = alone(clock=clock)
        assert await limiter.allowance(WRITER, "/log") == (3, 3, 60, 60)
        await granted(limiter, 1)
        clock.now += 10
        assert await limiter.allowance(WRITER, "/log") == (3, 2, 50, 60)
        assert await limiter.allowance(WRITER, "/log") == (3, 2, 50, 60)
        clock.now += 50
        assert await limiter.allowance(WRITER, "/log") == (3, 3, 60, 60)

    async def test_a_keys_own_limit_wins_the_one_of_the_endpoint_first(self) -> None:
        limiter = RateLimiter(lambda endpoint: rate_of("2/hour" if endpoint == "/b" else "1/hour"))
        with_own = OTHER._replace(rates={"/a": rate_of("3/hour"), "": rate_of("4/hour")})
        assert await granted(limiter, 9, with_own, "/a") == 3
        assert await granted(limiter, 9, with_own, "/b") == 4
        assert await granted(limiter, 9, WRITER, "/a") == 1
        assert await granted(limiter, 9, WRITER, "/b") == 2

    async def test_who_reads_without_a_key_has_no_limit(self) -> None:
        limiter = alone("1/day")
        assert await granted(limiter, 5, Principal("loopback", "", frozenset({"read"}))) == 5

    async def test_workers_that_cannot_speak_to_each_other_divide_the_limit(self) -> None:
        assert await granted(alone("10/minute", workers=4), 10) == 2
        assert await granted(alone("2/minute", workers=4), 10) == 1

    async def test_the_oldest_of_too_many_keys_is_forgotten(self) -> None:
        limiter = alone("1/minute")
        for number in range(10_001):
            await limiter.require(WRITER._replace(key_id=str(number)), "/log")
        assert await granted(limiter, 1, WRITER._replace(key_id="0")) == 1
        assert await granted(limiter, 1, WRITER._replace(key_id="9999")) == 0


@asynccontextmanager
async def sharing(url: str, rate: str, *, clock: Clock | None = None) -> AsyncIterator[RateLimiter]:
    """Yield the limits of a worker that shares them with those at the same `url`."""
    async with opened(url) as permits:
        limiter = RateLimiter(lambda _: rate_of(rate), permits, clock=clock or Clock())
        await limiter.touch()
        yield limiter
        await limiter.drain()


@asynccontextmanager
async def opened(url: str, service: str = "producer") -> AsyncIterator[RedisPermits]:
    async with open_redis_permits(
        url, name="log_queue", service=service, timeout_ms=250
    ) as permits:
        yield permits


async def granted_in_turn(limiters: list[RateLimiter], requests: int) -> int:
    return sum([await granted(limiters[turn % len(limiters)], 1) for turn in range(requests)])


async def granted_at_once(limiters: list[RateLimiter], requests: int) -> int:
    return sum(await asyncio.gather(*[granted(limiter, requests) for limiter in limiters]))


class TestShared:
    @pytest.mark.parametrize("limit", [1, 7, 150, 1000])
    async def test_workers_share_a_limit_to_the_last_request(
        self, redis_url: str, limit: int
    ) -> None:
        async with AsyncExitStack() as stack:
            workers = [
                await stack.enter_async_context(sharing(redis_url, f"{limit}/minute"))
                for _ in range(3)
            ]
            assert await granted_in_turn(workers, 3 * limit + 60) == limit

    async def test_requests_that_come_together_get_no_more_than_the_limit(
        self, redis_url: str
    ) -> None:
        async with sharing(redis_url, "500/day") as one, sharing(redis_url, "500/day") as two:
            tasks = [granted(limiter, 1) for limiter in (one, two) for _ in range(400)]
            assert sum(await asyncio.gather(*tasks)) == 500

    async def test_a_round_trip_serves_many_requests_and_many_keys(
        self, redis_url: str, redis: Redis
    ) -> None:
        keys = [WRITER._replace(key_id=str(number)) for number in range(1200)]

        async def scripts() -> int:
            told = await redis.info("commandstats")
            return int(told["cmdstat_eval"]["calls"])

        async with sharing(redis_url, "10000/minute") as limiter:
            at_first = await scripts()
            assert await granted(limiter, 5000) == 5000
            assert await scripts() - at_first <= 60
            at_first = await scripts()
            assert sum(await asyncio.gather(*[granted(limiter, 1, key) for key in keys])) == 1200
            assert await scripts() - at_first == 3
            at_first = await scripts()
            at_once = [granted(limiter, 1, OTHER) for _ in range(5000)]
            assert sum(await asyncio.gather(*at_once)) == 5000
            assert await scripts() - at_first <= 3

    async def test_permits_are_claimed_before_they_are_needed_and_all_are_used(
        self, redis_url: str
    ) -> None:
        async with sharing(redis_url, "1000/minute") as limiter:
            waited = 0
            for _ in range(1000):
                if not limiter.spend(WRITER, "/log"):
                    waited += 1
                    limiter.when_known(WRITER, "/log", lambda _: None)
                await limiter.drain()
            assert waited == 1
            with pytest.raises(RateLimited):
                limiter.spend(WRITER, "/log")

    async def test_of_a_small_limit_nothing_is_claimed_before_it_is_needed(
        self, redis_url: str
    ) -> None:
        async with sharing(redis_url, "5/minute") as one, sharing(redis_url, "5/minute") as two:
            await granted(one, 1)
            await one.drain()
            assert await granted(two, 9) == 4

    async def test_a_window_ends_for_all_and_its_rest_with_it(
        self, redis_url: str, redis: Redis
    ) -> None:
        clock = Clock()
        async with (
            sharing(redis_url, "400/minute", clock=clock) as one,
            sharing(redis_url, "400/minute", clock=clock) as two,
        ):
            await granted(one, 1)
            (counter,) = await redis.keys("*:rate:*")
            assert 59_000 < await redis.pttl(counter) <= 60_000
            assert await granted_at_once([one, two], 400) == 399
            await redis.delete(counter)
            assert await granted_at_once([one, two], 1) == 0
            clock.now += 60
            assert await granted_at_once([one, two], 401) == 400

    async def test_what_was_spent_already_is_not_granted_again(self, redis_url: str) -> None:
        claim = Claim("key", "/log", rate_of("10/minute"), wanted=5, spent=8)
        async with opened(redis_url) as permits:
            assert [grant[:2] for grant in await permits.claim([claim, claim])] == [
                (2, 10),
                (0, 18),
            ]

    async def test_a_limit_for_another_period_begins_a_window_of_its_own(
        self, redis_url: str
    ) -> None:
        async with sharing(redis_url, "5/day") as before_the_change:
            assert await granted(before_the_change, 9) == 5
        async with sharing(redis_url, "5/minute") as after_it:
            assert await granted(after_it, 9) == 5

    async def test_what_is_left_is_exact_and_asking_begins_no_window(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with (
            sharing(redis_url, "1000/minute") as one,
            sharing(redis_url, "1000/minute") as two,
        ):
            assert await one.allowance(WRITER, "/log") == (1000, 1000, 60, 60)
            assert await redis.keys("*:rate:*") == []
            assert await granted(one, 123) == 123
            assert await one.allowance(WRITER, "/log") == (1000, 877, 60, 60)
            seen_by_another = await two.allowance(WRITER, "/log")
            assert 877 - 2 * 10 <= seen_by_another.remaining <= 877

    async def test_a_request_that_gave_up_waiting_disturbs_nobody(self, redis_url: str) -> None:
        async with sharing(redis_url, "5/minute") as limiter:
            waiting = [asyncio.create_task(limiter.require(WRITER, "/log")) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            with capture_logs() as told:
                outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes[1:]] == [type(None)] * 2
            assert await granted(limiter, 9) == 2
            assert told == []

    async def test_the_workers_of_a_service_are_counted_while_they_live(
        self, redis_url: str
    ) -> None:
        async with opened(redis_url) as one:
            async with opened(redis_url) as two, opened(redis_url, "query_service") as another:
                assert (await one.workers(), await two.workers(), await one.workers()) == (1, 2, 2)
                assert await another.workers() == 1
            assert await one.workers() == 1

    async def test_a_worker_that_fell_silent_is_not_counted(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with opened(redis_url) as one:
            now = (await redis.time())[0]
            ghosts = {"killed": now - 60, "of a clock that was turned back": now + 3600}
            await redis.zadd("{log_queue}:workers:producer", ghosts)
            assert await one.workers() == 1
            assert await redis.ttl("{log_queue}:workers:producer") > 0


@pytest.fixture
async def line(redis_url: str) -> AsyncIterator[tuple[Relay, str]]:
    async with before(redis_url) as (relay, url):
        yield relay, url


class TestOutage:
    async def test_each_worker_goes_on_with_its_share_of_what_was_left(
        self, line: tuple[Relay, str]
    ) -> None:
        relay, url = line
        async with sharing(url, "100/minute") as one, sharing(url, "100/minute") as two:
            await one.touch()
            assert await granted(one, 20) == 20
            await relay.cut()
            assert await granted(one, 100) == 40
            assert await granted(two, 100) == 50
            assert await granted(one, 100, OTHER) == 50
            assert (await one.allowance(WRITER, "/log")).remaining == 0

    @pytest.mark.parametrize(("spent", "left"), [((30, 0), 60), ((30, 45), 15), ((45, 45), 0)])
    async def test_what_was_spent_meanwhile_counts_once_redis_is_back(
        self, line: tuple[Relay, str], spent: tuple[int, int], left: int
    ) -> None:
        relay, url = line
        async with sharing(url, "100/minute") as one, sharing(url, "100/minute") as two:
            await one.touch()
            await granted_in_turn([one, two], 10)
            await relay.cut()
            assert (await granted(one, spent[0]), await granted(two, spent[1])) == spent
            await relay.mend()
            for limiter in (one, two):
                await limiter.touch()
                await limiter.drain()
            assert await granted_in_turn([one, two], 300) == left

    async def test_what_redis_was_told_in_vain_is_told_again(self, line: tuple[Relay, str]) -> None:
        relay, url = line
        async with sharing(url, "100/minute") as limiter:
            await limiter.touch()
            assert await granted(limiter, 10) == 10
            await relay.cut()
            assert await granted(limiter, 60) == 60
            await relay.mend()
            await limiter.touch()
            relay.is_half_open = True
            await limiter.drain()
            relay.is_half_open = False
            await limiter.touch()
            await limiter.drain()
            assert await granted(limiter, 300) == 30

    async def test_what_was_refused_meanwhile_may_be_asked_for_again(
        self, line: tuple[Relay, str]
    ) -> None:
        relay, url = line
        async with sharing(url, "10/minute") as one, sharing(url, "10/minute"):
            await one.touch()
            await relay.cut()
            assert await granted(one, 10) == 5
            await relay.mend()
            await one.touch()
            assert await granted(one, 10) == 5

    async def test_no_request_waits_for_a_server_that_says_nothing(
        self, line: tuple[Relay, str]
    ) -> None:
        relay, url = line
        async with sharing(url, "10/minute") as limiter:
            relay.is_half_open = True
            asked = relay.connections
            keys = [WRITER._replace(key_id=str(number % 1200)) for number in range(3000)]
            async with asyncio.timeout(5):
                each = await asyncio.gather(*[granted(limiter, 1, key) for key in keys])
            assert sum(each) == 3000
            assert await granted(limiter, 9, keys[0]) == 7
            # It was asked once, and that was the end of its connection.
            assert relay.connections == asked

    async def test_a_server_that_refuses_to_count_is_as_good_as_away(
        self, redis_url: str, redis: Redis
    ) -> None:
        async with sharing(redis_url, "10/minute") as limiter:
            await redis.lpush("{log_queue}:rate:API_KEY:/log", "no counter")
            assert await granted(limiter, 30) == 10

    async def test_a_server_that_is_away_at_the_start_is_found_later(
        self, line: tuple[Relay, str], redis: Redis
    ) -> None:
        relay, url = line
        await relay.cut()
        settings = Settings.model_validate({"redis_url": url, "rate_limit": "10/minute"})
        async with open_limiter(settings, "producer", workers=2) as limiter:
            assert await granted(limiter, 9) == 5
            await relay.mend()
            async with asyncio.timeout(10):
                while not await redis.keys("*:rate:*"):
                    await asyncio.sleep(0.02)
            assert await granted(limiter, 9) == 5

    async def test_an_answer_that_comes_late_is_an_outage_and_mistaken_for_no_other(
        self, line: tuple[Relay, str]
    ) -> None:
        relay, url = line
        claim = Claim("key", "/log", rate_of("1/minute"), wanted=1, spent=0)
        async with opened(url) as permits:
            relay.delay_seconds = 0.2
            with pytest.raises(BackendUnavailable):
                await permits.claim([claim])
            relay.delay_seconds = 0
            (grant,) = await permits.claim([claim])
            assert grant.taken == 1


@pytest.mark.parametrize("uses_redis", [True, False])
def test_the_workers_of_a_producer_share_a_limit(
    environment: dict[str, str], *, uses_redis: bool
) -> None:
    changed = {"RATE_LIMIT_LOG": "20/hour", "USE_REDIS_QUEUE": str(uses_redis)}
    with run_service("producer", environment | changed, "--workers", "2") as producer:
        statuses: Counter[int] = Counter()

        def post(_: int) -> None:
            # A connection each, so that both workers are met.
            answer = requests.post(f"{producer.url}/log", headers=KEY, json=EVENT, timeout=10)
            statuses[answer.status_code] += 1

        with ThreadPoolExecutor(8) as threads:
            assert soon(lambda: bool(list(threads.map(post, range(40)))) and statuses[202] >= 20)
            list(threads.map(post, range(40)))
    assert set(statuses) == {202, 429}
    assert statuses[202] == 20


@pytest.fixture
def few_reads(settings: Settings) -> Settings:
    limits = {"EVENTS_EVENT_ID": "2/hour", "ANALYTICS_LLM": "1/hour"}
    return settings.model_copy(update={"rate_limits": limits})


async def test_reading_is_limited_by_the_paths_template(few_reads: Settings) -> None:
    ids = [f"0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d1{digit}" for digit in range(3)]
    async with served(create_app(few_reads)) as url:
        found = [await ask(f"{url}/events/{one}", headers=KEY) for one in ids]
        assert [answer.status_code for answer in found] == [404, 404, 429]
        assert found[-1].headers["RateLimit-Policy"] == '"default";q=2;w=3600'
        assert 0 < int(found[-1].headers["Retry-After"]) <= 3600
        llm = [await ask(f"{url}/analytics/llm", headers=KEY) for _ in range(2)]
        assert [answer.status_code for answer in llm] == [200, 429]
        without_key = [await ask(f"{url}/analytics/llm") for _ in range(3)]
        assert [answer.status_code for answer in without_key] == [200] * 3
