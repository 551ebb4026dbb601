"""The statements that add up facts and roll-ups, composed of the parts in `sql/analytics.sql`.

Nothing that a caller sent becomes part of a statement's text: values are bound, all else is fixed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import starmap
from typing import Final, Literal, NamedTuple

from logging_service.analytics import GroupKey, Question
from logging_service.periods import Period, Pieces, Stretch, pieces_of
from logging_service.rollups import CALL_COUNTS, LLM, USAGE, USER, RollUp
from logging_service.statement_parts import parts_of

SQL: Final = parts_of("analytics.sql")

Names = tuple[str | None, ...]


class _Column(NamedTuple):
    """A value of a row: in a roll-up, of a single fact, and of all rows of a group together."""

    name: str
    rolled_up: str
    fact: str
    together: str = "sum({})"
    nothing: str = "0"


_COLLECTED = "array_agg({0}) FILTER (WHERE {0} IS NOT NULL)"
_DIFFERENT = "array_agg(DISTINCT {0}) FILTER (WHERE {0} IS NOT NULL)"
_TIMES: Final = (
    _Column("timed", "timed", "(duration_us IS NOT NULL)::int"),
    _Column("total_us", "total_us", "duration_us"),
    _Column("durations", "durations", "NULL::json", "string_agg({}::text, ',')", "NULL::json"),
    _Column("duration_us", "NULL::bigint", "duration_us", _COLLECTED, "NULL::bigint"),
)
_SESSIONS: Final = (
    _Column("sessions", "sessions", "NULL::bytea", _COLLECTED),
    _Column("session_ids", "NULL::text", "session_id", _DIFFERENT),
)
_USERS: Final = (
    _Column("users", "users", "NULL::bytea", _COLLECTED),
    _Column("user_ids", "NULL::text", "user_id", _DIFFERENT),
)
# When there was anything of a group.
_ENDS: Final = (
    _Column("since", "NULL::timestamptz", "timestamp", "min({})"),
    _Column("until", "NULL::timestamptz", "timestamp", "max({})"),
)
# The planner knows how many rows there are in a few, and takes its time for many.
_FEW_STRETCHES: Final = 9

COSTS: Final = {"computed": "cost_nanos", "reported": "reported_nanos", "best": "best_nanos"}
"""The column of each kind of cost."""


def _columns(question: Question, dimensions: Collection[str]) -> tuple[_Column, ...]:
    if question.subject == "usage":
        return (
            _Column("events", "events", "1"),
            _Column("errors", "errors", "(event_type = 'error_occurred')::int"),
            *(() if "session_id" in dimensions else _SESSIONS),
            *(() if "user_id" in dimensions else _USERS),
        )
    if question.subject == "performance":
        return (
            *_TIMES,
            _Column("failed", "failed", "is_failed::int"),
            _Column("max_us", "max_us", "duration_us", "max({})"),
        )
    cost = COSTS[question.cost]
    return (
        *(_Column(name, name, name) for name in CALL_COUNTS),
        _Column("cost", cost, f"coalesce({cost}, 0)"),
        *_TIMES,
    )


# What groups are ordered by; of the last there is more than none in a group.
_RANKS: Final = {
    "usage": ("events",),
    "llm": ("cost", "queries"),
    "performance": ("timed",),
}


class _Name(NamedTuple):
    """What a row belongs to, in a roll-up, which has '' for what was not told, and in a fact."""

    rolled_up: str
    fact: str


_OPERATION: Final = (
    "CASE event_type WHEN 'review_completed' THEN 'review'"
    " WHEN 'syntax_analysis_completed' THEN 'syntax_analysis'"
    " WHEN 'llm_query_sent' THEN 'llm_query' ELSE event_type END"
)
_NAMES: Final = {
    "operation": _Name(_OPERATION, _OPERATION),
    **{name: _Name(name, name) for name in ("event_type", "source", "session_id")},
    **{name: _Name(f"nullif({name}, '')", name) for name in ("user_id", "provider", "model")},
}


_ALL_CALLS: Final = "event_type = 'llm_query_sent'"


class _Origin(NamedTuple):
    """Where rows are: in a roll-up, with the edges of the period among the facts, or only there."""

    facts: str
    roll_up: RollUp | None = None
    of_roll_up: str = "TRUE"
    of_facts: str = "TRUE"


def _origin(subject: str, dimensions: Collection[str]) -> _Origin:
    asked = frozenset(dimensions)
    if subject == "llm":
        if asked <= {"provider", "model", "source"}:
            return _Origin("llm_calls", LLM)
        return _Origin("llm_calls", USER if asked <= {"user_id", "source"} else None)
    timed = "duration_us IS NOT NULL" if subject == "performance" else "TRUE"
    if asked <= {"event_type", "operation"}:
        types = f"event_type {'<>' if asked else '='} ''"
        return _Origin("event_facts", USAGE, types, timed)
    return _Origin("event_facts", USER if asked == {"user_id"} else None)


def _added(column: _Column) -> str:
    return f"{column.together.format(column.name)} AS {column.name}"


class Statement:
    """Composes a statement of fixed parts; `values` are what its parameters bind.

    It is about the parts between aligned points, and the groups of `dimensions`: all of them, or
    those whose names are `wanted`; without dimensions everything is one group. Where single facts
    are added up, all that counts lies in `times`, which are apart from each other, if any are told.
    """

    def __init__(
        self,
        question: Question,
        points: Sequence[datetime],
        dimensions: Sequence[str] = (),
        wanted: Sequence[Names] | None = None,
        times: Sequence[Period] = (),
    ) -> None:
        self.values: list[object] = []
        self._question = question
        self._points = points
        self._dimensions = tuple(dimensions)
        self._groups = wanted
        self._known_times = times
        self._names = [f"name_{place}" for place in range(len(dimensions))]
        self._origin = _origin(question.subject, dimensions)

    @property
    def adds_up_when_ranking(self) -> bool:
        """Whether `ranked` tells the sums of groups too, since these are few or have few rows."""
        return self._origin.roll_up in {USAGE, LLM}

    @property
    def tells_times(self) -> bool:
        """Whether `ranked` tells when groups began and ended: sessions are short, mostly."""
        return self._origin.roll_up is None and "session_id" in self._dimensions

    def ranked(self, after: GroupKey | None, limit: int) -> str:
        """Return the statement for the names and ranks of groups behind `after`, in their order."""
        ranks = _RANKS[self._question.subject]
        columns = _columns(self._question, self._dimensions)
        if self.adds_up_when_ranking:
            columns = tuple(column for column in columns if column not in self._sketched())
        else:
            columns = tuple(column for column in columns if column.name in ranks)
            columns += _ENDS if self.tells_times else ()
        return SQL["ranked"].format(
            columns=", ".join([*self._names, *map(_added, columns)]),
            names=", ".join(self._names),
            rows=self._rows(columns),
            number=f"sum({ranks[-1]})",
            **self._order([f"sum({rank})" for rank in ranks], after, limit),
        )

    def ranked_reviews(self, after: GroupKey | None, limit: int) -> str:
        """Return the statement for the names and numbers of groups of reviews, likewise."""
        return SQL["ranked_reviews"].format(
            names=", ".join(self._names),
            columns=", ".join(self._named("fact")),
            conditions=f"{self._times(self._points[0], self._points[-1])} AND {self._of_source()}",
            **self._order(["count(*)"], after, limit),
        )

    def sketches(self) -> str | None:
        """Return the statement for the hashes that `ranked` does not tell, as they are in rows.

        Where each group has many, putting them together costs more than all else; None: no hashes.
        """
        columns = self._sketched()
        if not columns:
            return None
        names = [column.name for column in columns]
        return SQL["sketches"].format(
            columns=", ".join([*self._names, *names]), rows=self._rows(columns), some=names[0]
        )

    def _sketched(self) -> list[_Column]:
        columns = _columns(self._question, self._dimensions)
        return [column for column in columns if column.fact == "NULL::bytea"]

    def added_up(self) -> str:
        """Return the statement for the sums of each part and group."""
        columns = _columns(self._question, self._dimensions)
        keys = ["part", *self._names]
        return SQL["added_up"].format(
            columns=", ".join([*keys, *map(_added, columns)]),
            rows=self._rows(columns),
            keys=", ".join(keys),
        )

    def reviews(self, *, with_total: bool) -> str:
        """Return the statement for reviews by part and group, and with part None for all parts."""
        keys = ["part", *self._names]
        return SQL["reviews"].format(
            keys=", ".join(keys),
            columns=", ".join([self._part("timestamp"), *self._named("fact")]),
            cost=COSTS[self._question.cost],
            start=f"{self._bind(self._points[0])}::timestamptz",
            end=f"{self._bind(self._points[-1])}::timestamptz",
            source=self._of_source(),
            wanted=self._wanted("fact"),
            sets=f"({', '.join(keys)})" + (", ()" if with_total else ""),
        )

    def _bind(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def _rows(self, columns: Sequence[_Column]) -> str:
        """Return the statement for rows of all origins, in the same columns."""
        origin = self._origin
        if origin.roll_up is None:
            known = self._known_times or [(self._points[0], self._points[-1])]
            facts = self._facts if len(known) <= _FEW_STRETCHES else self._facts_at
            return facts(columns, known)
        pieces = pieces_of(self._points)
        values = {column.name: column.rolled_up for column in columns}
        if self._question.subject == "llm" and not self._dimensions:
            # One row has the times of all calls, where there is one of sums for each model.
            nothing = {column.name: column.nothing for column in columns}
            times = {column.name: column.rolled_up for column in _TIMES}
            no_times = {column.name: column.nothing for column in _TIMES}
            branches = self._rolled_up(LLM, "TRUE", values | no_times, pieces)
            branches += self._rolled_up(USAGE, _ALL_CALLS, nothing | times, pieces)
        else:
            branches = self._rolled_up(origin.roll_up, origin.of_roll_up, values, pieces)
        if pieces.edges:
            branches.append(self._facts(columns, pieces.edges))
        return " UNION ALL ".join(f"({branch})" for branch in branches)

    def _rolled_up(
        self, roll_up: RollUp, condition: str, values: Mapping[str, str], pieces: Pieces
    ) -> list[str]:
        columns = [f"{value} AS {name}" for name, value in values.items()]
        fixed = {
            "columns": ", ".join([self._part("bucket"), *self._named("rolled_up"), *columns]),
            "conditions": f"{condition} AND {self._of_source()} AND {self._wanted('rolled_up')}",
        }
        return [
            self._stretched(pieces.stretches, table=roll_up.table, **fixed),
            SQL["not_folded"].format(
                table=roll_up.deltas,
                first=self._bind(pieces.quarters[0]),
                last=self._bind(pieces.quarters[1]),
                **fixed,
            ),
        ]

    def _stretched(self, stretches: Sequence[Stretch], **fixed: str) -> str:
        if 0 < len(stretches) <= _FEW_STRETCHES:
            bound = (map(self._bind, stretch) for stretch in stretches)
            times = " OR ".join(starmap(SQL["stretch"].format, bound))
            return SQL["rolled_up"].format(times=times, **fixed)
        return SQL["rolled_up_often"].format(
            spans=self._bind([stretch.span for stretch in stretches]),
            starts=self._bind([stretch.start for stretch in stretches]),
            ends=self._bind([stretch.end for stretch in stretches]),
            **fixed,
        )

    def _facts(self, columns: Sequence[_Column], times: Iterable[Period]) -> str:
        either = " OR ".join(self._times(*period) for period in times)
        return SQL["facts"].format(times=either, **self._of_facts(columns))

    def _facts_at(self, columns: Sequence[_Column], times: Sequence[Period]) -> str:
        starts, ends = map(list, zip(*times, strict=True))
        return SQL["facts_at"].format(
            starts=self._bind(starts), ends=self._bind(ends), **self._of_facts(columns)
        )

    def _of_facts(self, columns: Sequence[_Column]) -> dict[str, str]:
        values = [f"{column.fact} AS {column.name}" for column in columns]
        conditions = [self._origin.of_facts, self._of_source(), self._wanted("fact")]
        return {
            "columns": ", ".join([self._part("timestamp"), *self._named("fact"), *values]),
            "table": self._origin.facts,
            "conditions": " AND ".join(conditions),
        }

    def _part(self, moment: str) -> str:
        """Return the column that numbers the parts, from 1 on."""
        if len(self._points) == 2:  # noqa: PLR2004 - the ends of the one part
            return "1 AS part"
        starts = self._bind(list(self._points[:-1]))
        return f"width_bucket({moment}, {starts}::timestamptz[]) AS part"

    def _times(self, start: datetime, end: datetime) -> str:
        return f"(timestamp >= {self._bind(start)} AND timestamp < {self._bind(end)})"

    def _named(self, of: Literal["rolled_up", "fact"]) -> list[str]:
        """Return the columns that name a row's group."""
        return list(map("{} AS {}".format, self._keys(of), self._names))

    def _keys(self, of: Literal["rolled_up", "fact"]) -> list[str]:
        return [getattr(_NAMES[dimension], of) for dimension in self._dimensions]

    def _of_source(self) -> str:
        source = self._question.source
        return "TRUE" if source is None else f"source = {self._bind(source)}"

    def _wanted(self, of: Literal["rolled_up", "fact"]) -> str:
        """Return the condition for rows of the wanted groups; it lets '' pass for no name."""
        if self._groups is None:
            return "TRUE"
        keys = self._dimensions
        if of == "fact" or "operation" in keys:
            keys = tuple(f"coalesce({key}, '')" for key in self._keys(of))
        texts = [[name or "" for name in names] for names in zip(*self._groups, strict=True)]
        return SQL["wanted" if len(keys) == 1 else "wanted_together"].format(
            columns=", ".join(keys),
            names=", ".join(f"{self._bind(names)}::text[]" for names in texts),
        )

    def _order(self, ranks: Sequence[str], after: GroupKey | None, limit: int) -> dict[str, str]:
        """Return the parts that put groups in order and leave out those up to `after`."""
        places = [f"-({rank})" for rank in ranks]
        for name in self._names:
            places += [f"{name} IS NULL", f"coalesce({name}, '')"]
        return {
            "ranks": ", ".join(f"{rank} AS rank_{place}" for place, rank in enumerate(ranks)),
            "beyond": "TRUE" if after is None else f"({', '.join(places)}) > {self._place(after)}",
            "order": ", ".join(places),
            "limit": self._bind(limit),
        }

    def _place(self, key: GroupKey) -> str:
        parts = [f"{self._bind(Decimal(-rank))}::numeric" for rank in key.rank]
        for name in key.names:
            parts += [f"{self._bind(name is None)}::boolean", f"{self._bind(name or '')}::text"]
        return f"({', '.join(parts)})"


class SessionStatement(Statement):
    """Composes the statements for sessions, of sums of some `hours` and single facts at `times`.

    Both together are the period, and apart from each other.
    """

    def __init__(
        self,
        question: Question,
        period: Period,
        times: Sequence[Period],
        hours: Sequence[datetime],
        wanted: Sequence[Names] | None = None,
    ) -> None:
        nothing = period[0], period[0]
        super().__init__(question, period, ("session_id",), wanted, times or [nothing])
        self._hours = hours

    def ranked(self, after: GroupKey | None, limit: int) -> str:
        """Return the statement for the names and ranks of sessions behind `after`, in order."""
        ranks = _RANKS[self._question.subject]
        columns = [column for column in self._sums() if column.name in ranks]
        summed = {column.name: self._summed(column) for column in columns}
        places = [f"(- {summed[rank]})" for rank in ranks]
        return SQL["ranked_sessions"].format(
            sums=", ".join(map(_added, columns)),
            rows=self._rows(columns),
            values=", ".join(f"{summed[column.name]} AS {column.name}" for column in columns),
            conditions=self._of_source(),
            hours=f"{self._bind(self._hours)}::timestamptz[]",
            some=ranks[-1],
            behind="TRUE" if after is None else self._behind(places, after),
            order_alone=", ".join(places),
            number=f"sum({ranks[-1]})",
            **self._order([f"sum({rank})" for rank in ranks], after, limit),
        )

    def _behind(self, places: Sequence[str], after: GroupKey) -> str:
        """Return the condition for a session, which has a name, in the order of an index."""
        ranks = [f"{self._bind(Decimal(-rank))}::numeric" for rank in after.rank]
        (name,) = after.names
        if name is None:
            return f"({', '.join(places)}) > ({', '.join(ranks)})"
        names = f"{self._bind(name)}::text"
        return f"({', '.join(places)}, session_id) > ({', '.join(ranks)}, {names})"

    def summed_up(self, page: Sequence[Names]) -> str:
        """Return the statement for what is summed up of the sessions of a page, in several rows."""
        names = [name for (name,) in page if name is not None]
        return SQL["summed_sessions"].format(
            values=", ".join(f"{self._summed(one)} AS {one.name}" for one in self._sums()),
            names=f"{self._bind(names)}::text[]",
            with_none=self._bind(len(names) < len(page)),
            hours=f"{self._bind(self._hours)}::timestamptz[]",
            conditions=self._of_source(),
        )

    def _sums(self) -> list[_Column]:
        """Return the columns without those that only a roll-up has."""
        columns = _columns(self._question, self._dimensions)
        return [column for column in columns if not column.fact.startswith("NULL::")]

    def _summed(self, column: _Column) -> str:
        return COSTS[self._question.cost] if column.name == "cost" else column.name
