"""Answers of analytics as JSON and as CSV."""

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from io import StringIO
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from logging_service.analytics import Answer, Metrics, Question, UsageMetrics
from logging_service.sketches import RELATIVE_ERROR
from logging_service.watermark import Watermark

# A spreadsheet takes what begins like this for a formula, and runs it; some also the wide signs.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Period(msgspec.Struct):
    """What was counted: from `start` on, before `end`; both in the zone asked for."""

    start: datetime
    end: datetime
    timezone: str


class Told(NamedTuple):
    """An answer, and what is needed to tell it."""

    question: Question
    zone: ZoneInfo
    answer: Answer


def json_document(told: Told, next_cursor: str | None, watermark: Watermark) -> bytes:
    """Return the answer as JSON; costs are numbers with all their digits, without an exponent."""
    answer, names = told.answer, told.question.group_by
    start, end = _local(told, answer.start), _local(told, answer.end)
    document = {
        "period": Period(start, end, told.zone.key),
        "metrics": _members(answer.metrics),
        "groups": [
            {**dict(zip(names, group.names, strict=True)), **_members(group.metrics)}
            for group in answer.groups
        ],
        "series": [
            {
                "start": _local(told, part.start),
                "end": _local(told, part.end),
                **dict(zip(names, part.names or (), strict=part.names is not None)),
                **_members(part.metrics),
            }
            for part in answer.series
        ],
        "groups_next_cursor": next_cursor,
        "watermark": watermark,
    }
    if not isinstance(answer.metrics, UsageMetrics):
        document["percentiles"] = {"relative_error": RELATIVE_ERROR}
    return msgspec.json.encode(document)


def csv_document(told: Told) -> bytes:
    """Return the groups as CSV (RFC 4180), the series where no groups were asked for.

    Dimensions come first, nothing for null. A text that a spreadsheet would take for a formula
    has an apostrophe before it.
    """
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(_rows(told))
    return text.getvalue().encode()


def _rows(told: Told) -> Iterator[Sequence[object]]:
    question, answer = told.question, told.answer
    metrics = [name for name, _ in _cells(answer.metrics)]
    if question.group_by and not question.series_of_groups:
        yield (*question.group_by, *metrics)
        for group in answer.groups:
            yield (*_harmless(group.names), *_values(group.metrics))
        return
    yield (*question.group_by, "start", "end", *metrics)
    for part in answer.series:
        times = (_time(_local(told, moment)) for moment in (part.start, part.end))
        yield (*_harmless(part.names or ()), *times, *_values(part.metrics))


def _local(told: Told, moment: datetime) -> datetime:
    return moment.astimezone(told.zone)


def _time(moment: datetime) -> str:
    return str(msgspec.to_builtins(moment))


def _members(metrics: Metrics) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(metrics, builtin_types=(Decimal,))
    for name, value in members.items():
        if isinstance(value, Decimal):
            members[name] = msgspec.Raw(_dollars(value).encode())
    return members


def _dollars(amount: Decimal) -> str:
    digits = f"{amount:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _cells(metrics: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the name and value of each column; those of a member's members bear its name too."""
    for name, value in msgspec.structs.asdict(metrics).items():
        if isinstance(value, msgspec.Struct):
            yield from _cells(value, f"{prefix}{name}_")
        else:
            yield prefix + name, value


def _values(metrics: Metrics) -> Iterator[object]:
    for _, value in _cells(metrics):
        if isinstance(value, Decimal):
            yield _dollars(value)
        else:
            yield str(value).lower() if isinstance(value, bool) else value


def _harmless(names: Sequence[str | None]) -> Iterator[str | None]:
    for name in names:
        yield f"'{name}" if name is not None and name.startswith(_FORMULA) else name
