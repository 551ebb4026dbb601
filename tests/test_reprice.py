"""Calls priced anew: what the ledger says then, and what `logging-service reprice` shows."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from events_made import a_delivery, an_event
from recounted import counted, rolled_up
from servers import ROOT
from truth_table import CALLS

from logging_service import postgres_reprice
from logging_service.errors import LoggingServiceError
from logging_service.ports import Sorted
from logging_service.postgres_reprice import open_postgres_call_ledger
from logging_service.postgres_store import open_postgres_store
from logging_service.price_file import read_price_file
from logging_service.pricing import Prices
from logging_service.repricing import OTHERS, Difference, LineKey, Wanted, reprice

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ALL = Wanted(NOON - timedelta(days=2), NOON + timedelta(days=2))
PriceFile = Callable[..., Path]


@pytest.fixture
def price_file(tmp_path: Path) -> PriceFile:
    def made(**dollars: float) -> Path:
        """Return a file with the price of input and output for each model."""
        file = tmp_path / f"{uuid.uuid4().hex}.toml"
        file.write_text(
            "".join(
                f'[[price]]\nprovider = "*"\nmodel = "{model}"\ninput = {price}\noutput = {price}\n'
                for model, price in dollars.items()
            )
        )
        return file

    return made


@pytest.fixture
def prices(price_file: PriceFile) -> Callable[..., Prices]:
    return lambda **dollars: Prices(read_price_file(price_file(**dollars)) if dollars else None)


def a_call(
    model: str = "m1", tokens: int = 1_000, *, seconds: float = 0, at: datetime = NOON, **more: Any
) -> bytes:
    """An event of a call; a dollar a million tokens makes a thousand nano-dollars of each."""
    event_id, source = more.pop("event_id", None), more.pop("source", "tests")
    payload = {"model": model, "provider": "acme", "input_tokens": tokens, "user_id": "ada", **more}
    moment = at + timedelta(seconds=seconds)
    return an_event(
        "llm_query_sent", "s1", payload, event_id=event_id or uuid.uuid4(), timestamp=moment,
        source=source,
    )  # fmt: skip


async def store(url: str, prices: Prices, *events: bytes) -> None:
    async with open_postgres_store(url, connections=2, prices=prices) as opened:
        delivery = a_delivery(*events)
        await opened.append(Sorted(delivery, delivery.events))


async def corrected(
    url: str, prices: Prices, wanted: Wanted = ALL, *, record: bool = True
) -> Difference:
    difference = Difference()
    async with open_postgres_call_ledger(url) as ledger:
        async for step in reprice(ledger, wanted, prices, record=record):
            difference.add(step.changes)
    return difference


async def state(database: asyncpg.Connection) -> dict[str, tuple[Any, ...]]:
    """The present state of each model: unpriced, computed, reported and best cost."""
    rows = await database.fetch(
        "SELECT model, sum(queries), sum(unpriced), sum(cost_nanos), sum(reported_nanos),"
        " sum(best_nanos) FROM llm_calls GROUP BY model"
    )
    return {row[0]: tuple(row)[1:] for row in rows}


async def entries(database: asyncpg.Connection) -> list[tuple[Any, ...]]:
    return [
        tuple(row)
        for row in await database.fetch(
            "SELECT entry, queries, unpriced, cost_nanos, best_nanos FROM llm_calls"
            " ORDER BY timestamp, event_id, entry"
        )
    ]


@pytest.fixture
async def unchanged_sums(database: asyncpg.Connection) -> AsyncIterator[None]:
    """After the test the roll-ups say what the events and the ledger say."""
    yield
    assert await rolled_up(database) == await counted(database)


@pytest.mark.usefixtures("unchanged_sums")
class TestLedger:
    async def test_a_correction_is_a_new_entry_with_the_difference(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        await store(database_url, prices(m1=1), a_call())
        await corrected(database_url, prices(m1=3))
        assert await entries(database) == [
            (0, 1, 0, 1_000_000, 1_000_000),
            (1, 0, 0, 2_000_000, 2_000_000),
        ]
        await corrected(database_url, prices(m1=2))
        assert (await entries(database))[2:] == [(2, 0, 0, -1_000_000, -1_000_000)]
        assert await state(database) == {"m1": (1, 0, 2_000_000, None, 2_000_000)}

    async def test_a_correction_says_where_the_new_price_is_from_and_whose_call_it_is(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        call = a_call(service_tier="batch", duration_ms=7)
        await store(database_url, prices(m1=1), call)
        await corrected(database_url, prices(m1=3))
        same = (
            "timestamp, event_id, session_id, source, user_id, provider, model, fault, service,"
            " has_media, is_told"
        )
        first, second = await database.fetch(f"SELECT {same} FROM llm_calls ORDER BY entry")
        assert first == second
        row = await database.fetchrow("SELECT * FROM llm_calls WHERE entry = 1")
        assert row is not None
        assert row["price_source"].startswith("prices file ")
        assert (row["reported_nanos"], row["duration_us"], row["is_failed"]) == (None, None, False)

    async def test_a_call_that_has_a_price_now_is_unpriced_no_more(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        await store(
            database_url, prices(), a_call(), a_call("m2", cost=0.5), a_call("m3", user_id=None)
        )
        assert (await state(database))["m1"] == (1, 1, None, None, None)
        await corrected(database_url, prices(m1=1, m2=1, m3=0))
        assert await state(database) == {
            "m1": (1, 0, 1_000_000, None, 1_000_000),
            "m2": (1, 0, 1_000_000, 500_000_000, 1_000_000),
            "m3": (1, 0, 0, None, 0),
        }

    async def test_a_call_that_has_no_price_any_more_is_unpriced(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        await store(database_url, prices(m1=1, m2=1), a_call(), a_call("m2", cost=0.5))
        difference = await corrected(database_url, prices(x=1))
        assert difference.total[:5] == (2, 0, 2, 2_000_000, 0)
        assert await state(database) == {
            "m1": (1, 1, 0, None, 0),
            "m2": (1, 1, 0, 500_000_000, 500_000_000),
        }
        reasons = await database.fetch("SELECT unpriced_reason FROM llm_calls WHERE entry = 1")
        assert {row[0] for row in reasons} == {"unknown_provider"}
        await corrected(database_url, prices(m1=1, m2=1))
        assert (await state(database))["m2"] == (1, 0, 1_000_000, 500_000_000, 1_000_000)

    async def test_the_second_run_finds_nothing(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        calls = [a_call(f"m{n % 3}", n, seconds=n) for n in range(50)]
        await store(database_url, prices(m0=1, m1=1), *calls)
        assert (await corrected(database_url, prices(m1=2, m2=5))).lines
        before = await entries(database)
        assert not (await corrected(database_url, prices(m1=2, m2=5))).lines
        assert await entries(database) == before

    async def test_a_look_alone_records_nothing_and_says_what_a_recording_does(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        await store(database_url, prices(m0=1), *(a_call(f"m{n % 2}", n) for n in range(9)))
        before = await entries(database)
        seen = await corrected(database_url, prices(m0=2, m1=5), record=False)
        assert await entries(database) == before
        assert (await corrected(database_url, prices(m0=2, m1=5))).lines == seen.lines

    async def test_the_difference_is_told_by_day_and_model(
        self, database_url: str, prices: Callable[..., Prices]
    ) -> None:
        midnight = NOON.replace(hour=0)
        await store(
            database_url, prices(m1=1),
            a_call(at=midnight), a_call(at=midnight, seconds=-1), a_call("m2"), a_call("m2"),
        )  # fmt: skip
        lines = (await corrected(database_url, prices(m1=3, m2=1), record=False)).lines
        today, before = midnight.date(), midnight.date() - timedelta(days=1)
        assert {key: tuple(line) for key, line in lines.items()} == {
            LineKey(before, "acme", "m1"): (1, 0, 0, 1_000_000, 3_000_000),
            LineKey(today, "acme", "m1"): (1, 0, 0, 1_000_000, 3_000_000),
            LineKey(today, "acme", "m2"): (2, 2, 0, 0, 2_000_000),
        }

    async def test_only_calls_of_the_time_and_model_wanted_are_touched(
        self, database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
    ) -> None:
        first = UUID(int=0)
        calls = [a_call(seconds=s, event_id=first) for s in (-1e-6, 0, 9.999999, 10)]
        await store(database_url, prices(m1=1), *calls, a_call("m2", seconds=5))
        wanted = Wanted(NOON, NOON + timedelta(seconds=10), "m1")
        await corrected(database_url, prices(m1=2, m2=2), wanted)
        rows = await database.fetch("SELECT timestamp FROM llm_calls WHERE entry = 1 ORDER BY 1")
        assert [(row[0] - NOON).total_seconds() for row in rows] == [0, 9.999999]

    async def test_a_run_that_was_ended_leaves_whole_steps_and_the_next_one_does_the_rest(
        self,
        database_url: str,
        database: asyncpg.Connection,
        prices: Callable[..., Prices],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(postgres_reprice, "_CALLS_AT_ONCE", 3)
        calls = [a_call(seconds=n // 2) for n in range(10)]
        await store(database_url, prices(m1=1), *calls)
        async with open_postgres_call_ledger(database_url) as ledger:
            steps = reprice(ledger, ALL, prices(m1=2), record=True)
            assert [len((await anext(steps)).changes) for _ in range(2)] == [3, 3]
        assert await rolled_up(database) == await counted(database)
        assert (await corrected(database_url, prices(m1=2))).total.calls == 4
        assert await state(database) == {"m1": (10, 0, 20_000_000, None, 20_000_000)}

    async def test_what_is_stored_meanwhile_is_counted_too(
        self,
        database_url: str,
        database: asyncpg.Connection,
        prices: Callable[..., Prices],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(postgres_reprice, "_CALLS_AT_ONCE", 7)
        old, new = prices(m1=1), prices(m1=2)
        await store(database_url, old, *(a_call(seconds=n) for n in range(60)))
        async with open_postgres_store(database_url, connections=2, prices=new) as consumer:

            async def consume() -> None:
                for n in range(20):
                    delivery = a_delivery(a_call(seconds=n), a_call("m1", 5, seconds=100 + n))
                    await consumer.append(Sorted(delivery, delivery.events))
                    await consumer.fold()

            await asyncio.gather(consume(), corrected(database_url, new))
        assert (await state(database))["m1"][:2] == (100, 0)
        total = 60 * 2_000_000 + 20 * 2_000_000 + 20 * 10_000
        assert (await state(database))["m1"][2] == total

    async def test_by_the_same_prices_no_call_of_any_shape_costs_anything_else(
        self, database_url: str
    ) -> None:
        events = [
            an_event("llm_query_sent", "s1", call.payload, event_id=uuid.uuid4(), timestamp=call.at)
            for call in CALLS
        ]
        await store(database_url, Prices(), *events)
        ever = Wanted(datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
        assert not (await corrected(database_url, Prices(), ever, record=False)).lines


async def test_two_cannot_reprice_at_once(database_url: str) -> None:
    async with open_postgres_call_ledger(database_url):
        with pytest.raises(LoggingServiceError, match="another reprice or rebuild is at work"):
            async with open_postgres_call_ledger(database_url):
                pass
    async with open_postgres_call_ledger(database_url):
        pass


async def test_who_keeps_an_answer_learns_that_it_may_have_changed(
    database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
) -> None:
    await store(database_url, prices(m1=1), a_call())
    number = "SELECT number FROM ledger_changes"
    before = await database.fetchval(number)
    await corrected(database_url, prices(m1=2), record=False)
    assert await database.fetchval(number) == before
    await corrected(database_url, prices(m1=2))
    await corrected(database_url, prices(m1=2))
    assert await database.fetchval(number) == before + 1


async def test_the_documented_questions_tell_the_present_state_and_the_history(
    database_url: str, database: asyncpg.Connection, prices: Callable[..., Prices]
) -> None:
    text = (ROOT / "docs" / "analytics.md").read_text(encoding="utf-8")
    state_then, history = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    event_id = UUID("019aa113-1f00-7000-8000-000000000001")
    await store(database_url, prices(), a_call(event_id=event_id))
    for dollars in (1, 3):
        await corrected(database_url, prices(m1=dollars))
    rows = [tuple(row) for row in await database.fetch(history)]
    changes = [(row[0], *row[3:]) for row in rows]
    assert changes == [(0, None, None), (1, 1_000_000, 1_000_000), (2, 2_000_000, 3_000_000)]
    assert rows[0][2] == "unknown_provider"
    assert "recorded_at < '2026-11-20Z'" in state_then
    now = state_then.replace("recorded_at < '2026-11-20Z'", "recorded_at < 'infinity'")
    assert [tuple(row) for row in await database.fetch(now)] == [("m1", 1, 0, Decimal("0.003"))]


async def test_more_models_than_can_be_told_apart_are_added_up(
    database_url: str, prices: Callable[..., Prices], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging_service.repricing.MAX_LINES", 2)
    await store(database_url, prices(), *(a_call(f"m{n}", seconds=n) for n in range(5)))
    difference = await corrected(database_url, prices(**{f"m{n}": 1 for n in range(5)}))
    assert [(key.model, line.calls) for key, line in difference.lines.items()] == [
        ("m0", 1),
        ("m1", 1),
        (OTHERS, 3),
    ]
    assert difference.total.calls == 5


class Command:
    """`logging-service reprice` as a process, with a price file."""

    def __init__(self, environment: dict[str, str], file: Path) -> None:
        self.environment = {
            "PATH": os.environ["PATH"], "PRICES_FILE": str(file), **environment
        }  # fmt: skip

    async def run(
        self, *arguments: str, code: int = 0, stdin: int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "logging_service.cli", "reprice", *arguments],
            cwd=ROOT, env=self.environment, stdin=stdin, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done


class TestCommand:
    @pytest.fixture
    async def command(
        self,
        environment: dict[str, str],
        price_file: PriceFile,
        prices: Callable[..., Prices],
        database_url: str,
    ) -> Command:
        await store(database_url, prices(m1=1), a_call(), a_call("m\x1b[2J[b]"), a_call("m3"))
        return Command(environment, price_file(m1=3, m3=1))

    async def test_a_dry_run_shows_the_difference_and_records_nothing(
        self, command: Command, database: asyncpg.Connection
    ) -> None:
        shown = (await command.run("--since", "2026-11-20", "--dry-run")).stdout.splitlines()
        cells = [line.split() for line in shown]
        day = ["2026-11-20", "acme"]
        one = ["1", "0", "0", "0.001000000", "0.003000000", "+0.002000000"]
        three = ["1", "1", "0", "0.000000000", "0.001000000", "+0.001000000"]
        assert [*day, "m1", *one] in cells
        assert [*day, "m3", *three] in cells
        total = ["all", "2", "1", "0", "0.001000000", "0.004000000", "+0.003000000"]
        assert total in cells
        assert shown[-1] == "3 calls looked at"
        assert len(await entries(database)) == 3

    async def test_it_records_and_says_how_much(
        self, command: Command, database: asyncpg.Connection
    ) -> None:
        done = await command.run("--since", "2026-11-20T13:00+02:00", "--yes")
        assert done.stdout.endswith("recorded 2 corrections, +0.003000000 dollars\n")
        assert len(await entries(database)) == 5
        again = await command.run("--since", "2026-11-20", "--yes")
        assert again.stdout == "3 calls looked at: each costs what the ledger says\n"

    async def test_programs_get_json_with_exact_dollars(
        self, command: Command, database: asyncpg.Connection
    ) -> None:
        done = await command.run("--since", "2026-11-20", "--model", "m1", "--yes", "--json")
        answer = json.loads(done.stdout)
        numbers = {
            "calls": 1, "newly_priced": 0, "no_longer_priced": 0,
            "cost_before": 0.001, "cost_after": 0.003, "difference": 0.002,
        }  # fmt: skip
        group = {"day": "2026-11-20", "provider": "acme", "model": "m1", **numbers}
        assert answer == {"calls": 3, "total": numbers, "groups": [group], "recorded": numbers}
        assert len(await entries(database)) == 4

    async def test_a_person_is_asked_first(
        self, command: Command, database: asyncpg.Connection
    ) -> None:
        for answer, code, number in ((b"n\n", 1, 3), (b"y\n", 0, 5)):
            ours, theirs = pty.openpty()
            try:
                os.write(ours, answer)
                done = await command.run("--since", "2026-11-20", code=code, stdin=theirs)
            finally:
                os.close(ours)
                os.close(theirs)
            assert "Record 2 corrections?" in done.stdout + done.stderr
            assert len(await entries(database)) == number

    async def test_where_nobody_can_be_asked_it_is_refused_in_one_line(
        self, command: Command, database: asyncpg.Connection
    ) -> None:
        for more in ((), ("--json",)):
            done = await command.run("--since", "2026-11-20", *more, code=2)
            assert len(done.stderr.splitlines()) == 1
            assert "--yes" in done.stderr
        assert len(await entries(database)) == 3

    @pytest.mark.parametrize(
        "time", ["yesterday", "2026-11-20T12:00", "1969-12-31", "0001-01-01T00:00+01:00", ""]
    )
    async def test_a_time_that_cannot_be_is_refused(self, command: Command, time: str) -> None:
        done = await command.run("--since", time, "--dry-run", code=2)
        assert "--since" in done.stderr

    async def test_an_end_before_the_beginning_is_refused(self, command: Command) -> None:
        times = ("--since", "2026-11-10", "--until", "2026-11-10")
        done = await command.run(*times, "--dry-run", code=2)
        assert done.stderr == "--until has to be later than --since\n"

    async def test_a_terminal_obeys_nothing_that_a_model_is_called(
        self, command: Command, price_file: PriceFile
    ) -> None:
        command.environment["PRICES_FILE"] = str(price_file(**{"m*": 2}))
        text = (await command.run("--since", "2026-11-20", "--dry-run")).stdout
        assert "[b]" in text
        assert all(line.isprintable() for line in text.splitlines())
