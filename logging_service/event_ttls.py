"""How many days events are kept, by type."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, Self

_NO_NAME: Final = re.compile(r"[^A-Z0-9]+")
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@lru_cache(maxsize=4096)
def variable_part(text: str) -> str:
    """Return a path or an event type as it stands in a variable: `llm.query-sent` LLM_QUERY_SENT.

    What is no letter of ASCII and no digit becomes `_`, several of it together one.
    """
    return _NO_NAME.sub("_", text.upper())


class EventTtls(NamedTuple):
    """The days that events are kept, 0: for good; `own` has types, by their `variable_part`."""

    days: int
    own: Mapping[str, int] = _NONE

    def of(self, event_type: str) -> int:
        """Return the days that events of a type are kept."""
        return self.own.get(variable_part(event_type), self.days) if self.own else self.days

    def at_least(self, days: int) -> Self:
        """Return the same, with none shorter than so many days."""
        own = {name: max(each, days) for name, each in self.own.items()}
        return type(self)(max(self.days, days), own)

    @property
    def shortest(self) -> int:
        """The fewest days after which anything is removed; 0: nothing ever is."""
        return min(filter(None, (self.days, *self.own.values())), default=0)

    @property
    def longest(self) -> int:
        """The days after which no event is kept; 0: some are kept for good."""
        return longest_of((self.days, *self.own.values()))


def longest_of(ttls: Iterable[int]) -> int:
    """Return the longest of some times in days, of which 0 has no end."""
    several = list(ttls)
    return max(several) if all(several) else 0
