"""Times and lengths of time, as a person gives them to a command."""

import re
from datetime import UTC, date, datetime, time, timedelta

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_LENGTH = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment_given(text: str) -> datetime:
    """Return the time that `text` names, in UTC; a day begins at its midnight in UTC.

    Raises ValueError, which says what is allowed.
    """
    try:
        moment = datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("has to be a day, or a time with an offset") from None
    if moment.tzinfo is None:
        raise ValueError("needs an offset from UTC, such as Z or +02:00")
    if not _EARLIEST <= moment <= LATEST:
        raise ValueError("has to be from 1970 to 9999")
    return moment.astimezone(UTC)


def length_given(text: str) -> timedelta | None:
    """Return the length of time that `text` names, such as `90d`, `12h`, `30m`, `0s`; else None."""
    match = _LENGTH.fullmatch(text)
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]]) if match else None
