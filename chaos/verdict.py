"""What became of the acknowledged events: the ledger against the tables, and the balance."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from chaos.pipeline import PRODUCERS, QUERY_SERVICE, Pipeline
from logging_service import wire

_ASK_SECONDS = 0.5
_QUIET_ANSWERS = 4
_BALANCE_TRIES = 20
_ROWS = 10_000
_MOST_SHOWN = 20


class Ledger:
    """The ids of acknowledged events, and of those sent with other content under such an id."""

    def __init__(self, file: Path) -> None:
        self.events: set[bytes] = set()
        self.conflicts: set[bytes] = set()
        for line in file.read_text(encoding="ascii").splitlines():
            mark, _, text = line.partition(" ")
            (self.conflicts if mark == "c" else self.events).add(UUID(text).bytes)


class Kept(msgspec.Struct):
    """What the database holds: event ids as bytes, `more_than_once` those of several rows."""

    rows: int = 0
    stored: set[bytes] = msgspec.field(default_factory=set)
    more_than_once: set[bytes] = msgspec.field(default_factory=set)
    dead: set[bytes] = msgspec.field(default_factory=set)
    dead_letters: int = 0


async def read_kept(url: str) -> Kept:
    """Return what the tables hold now."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            kept = Kept()
            ids = "SELECT uuid_send(event_id) AS id FROM log_events"
            async for row in connection.cursor(ids, prefetch=_ROWS):
                kept.rows += 1
                (kept.more_than_once if row["id"] in kept.stored else kept.stored).add(row["id"])
            async for row in connection.cursor("SELECT event FROM dead_letters", prefetch=_ROWS):
                kept.dead_letters += 1
                kept.dead |= _id_of(row["event"])
            return kept
    finally:
        await connection.close()


def _id_of(element: bytes) -> set[bytes]:
    try:
        return {wire.decode(element).event_id.bytes}
    except ValueError:
        return set()


class Verdict(msgspec.Struct):
    """The outcome of a run; `faults` says what must not be, a sentence each."""

    line: str
    faults: list[str]


def judge(ledger: Ledger, kept: Kept, kills: int) -> Verdict:
    """Compare what was acknowledged with what is kept.

    An acknowledged event has to be stored or a dead letter; one that was sent with other content
    under the same id has to be both, since one of the two is stored.
    """
    lost = ledger.events - kept.stored - kept.dead
    lost |= ledger.conflicts - (kept.stored & kept.dead)
    line = (
        f"acknowledged={len(ledger.events | ledger.conflicts)} stored={kept.rows} lost={len(lost)} "
        f"duplicated={len(kept.more_than_once)} dead_lettered={kept.dead_letters} kills={kills}"
    )
    faults = [
        f"{what}: {_shown(ids)}"
        for what, ids in (("lost", lost), ("duplicated", kept.more_than_once))
        if ids
    ]
    if not ledger.events:
        faults.append("nothing was acknowledged")
    return Verdict(line, faults)


def _shown(ids: Iterable[bytes]) -> str:
    found = sorted(str(UUID(bytes=one)) for one in ids)
    more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return ", ".join(found[:_MOST_SHOWN]) + more


async def _ask(port: int, path: str) -> dict[str, Any] | None:
    """Return a document, {} where there is no such route, None without an answer."""

    def get() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            body: bytes = answer.read()
            return body

    try:
        document: dict[str, Any] = json.loads(await asyncio.to_thread(get))
    except urllib.error.HTTPError as error:
        error.close()
        return {} if error.code == HTTPStatus.NOT_FOUND else None
    except (OSError, ValueError):
        return None
    return document


async def until_empty(pipeline: Pipeline, seconds: float) -> list[str]:
    """Wait until nothing waits, is under way or spooled; say after `seconds` what still is."""
    until = time.monotonic() + seconds
    quiet = 0
    while quiet < _QUIET_ANSWERS:
        await asyncio.sleep(_ASK_SECONDS)
        ports = [pipeline.services[name].port for name in PRODUCERS]
        states = [await _ask(port, "/queue/status") for port in ports]
        is_quiet = all(state is not None and not _unfinished(state) for state in states)
        quiet = quiet + 1 if is_quiet else 0
        if time.monotonic() > until:
            return [f"after {seconds:.0f} s the queue is not empty: {states}"]
    return []


def _unfinished(state: dict[str, Any]) -> int:
    return sum(state.get(name) or 0 for name in ("size", "in_flight", "spooled", "damaged"))


async def _balance(port: int) -> dict[str, Any] | None:
    """Return the balance once it is exact, or as it is after some seconds."""
    for _ in range(_BALANCE_TRIES):
        balance = await _ask(port, "/balance")
        if balance == {} or (balance is not None and balance["exact"] and balance["balanced"]):
            break
        await asyncio.sleep(_ASK_SECONDS)
    return balance


async def balance_faults(pipeline: Pipeline, kept: Kept, ledger: Ledger) -> tuple[str, list[str]]:
    """Return the balance as a line, and what is wrong with it."""
    balance = await _balance(pipeline.services[QUERY_SERVICE].port)
    if balance is None:
        return "balance: no answer", ["GET /balance does not answer"]
    if not balance:
        return "balance: there is no such route", []
    faults = []
    if not balance["balanced"]:
        faults.append("the balance does not close")
    if balance["stored"] != kept.rows:
        faults.append(f"the balance says stored={balance['stored']}, there are {kept.rows} rows")
    if balance["accepted"] < len(ledger.events):
        faults.append("the balance has accepted less than was acknowledged")
    return "balance: " + " ".join(f"{name}={value}" for name, value in balance.items()), faults
