"""Stored events searched by the rules in force: what they would have replaced and did not."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from logging_service import audit
from logging_service.ports import Event, EventReader, Filter
from logging_service.redaction import Redactor

_PAGE = 500


class RuleHits(msgspec.Struct):
    """How many values a rule finds, in how many events."""

    events: int = 0
    values: int = 0


class Scan(msgspec.Struct):
    """How many events were looked at, and what each rule finds in them; no value is told."""

    since: datetime | None
    until: datetime
    events: int = 0
    rules: dict[str, RuleHits] = {}

    def add(self, found: Counter[str]) -> None:
        """Count an event in which so much was found."""
        self.events += 1
        for rule, values in found.items():
            hits = self.rules.setdefault(rule, RuleHits())
            hits.events += 1
            hits.values += values


async def scan(
    reader: EventReader, redactor: Redactor, told: Scan, advance: Callable[[int], None]
) -> None:
    """Add the events from `told.since` to `told.until` to `told`, oldest first.

    They are read page by page, those of the audit are passed over: who did something is no
    secret there. Raises what the reader raises; `told` then has what was looked at before.
    """
    wanted = Filter(start=told.since, end=told.until, newest_first=False)
    after = None
    while True:
        page = await reader.page(wanted, after, _PAGE)
        for event in page.events:
            if event.source != audit.PROJECT:
                told.add(_found_in(event, redactor))
        advance(len(page.events))
        after = page.after
        if after is None:
            return


def _found_in(event: Event, redactor: Redactor) -> Counter[str]:
    found = Counter(redactor.payload(bytes(event.payload)).found)
    for text in (event.session_id, event.event_type, event.trace_id, event.request_id):
        if text:
            found.update(redactor.text(text.encode()).found)
    return found


def new_scan(since: datetime | None) -> Scan:
    """Return a scan of what was stored until now, in which nothing was looked at yet."""
    return Scan(since, datetime.now(UTC))
