"""The statements that read events, composed of the parts in `sql/reads.sql`.

Nothing that a caller sent becomes part of a statement's text: values are bound, all else is fixed.
"""

import json
import re

from logging_service.ports import EventKey, Filter, PayloadMatch
from logging_service.statement_parts import parts_of

SQL = parts_of("reads.sql")


class Statement:
    """Composes a statement of fixed parts; `values` are what its parameters bind."""

    # Text that PostgreSQL cannot make of JSON (`\u0000`, half a surrogate pair) fails the whole
    # statement; this reads such a payload as absent. It costs a second parse.
    GUARDED = "CASE WHEN pg_input_is_valid(payload::text, 'jsonb') THEN payload END"

    def __init__(self, wanted: Filter) -> None:
        self.values: list[object] = []
        self.direction, self._beyond = ("DESC", "<") if wanted.newest_first else ("ASC", ">")
        self._wanted = wanted

    def bind(self, value: object) -> str:
        """Return the number of a new parameter."""
        self.values.append(value)
        return f"${len(self.values)}"

    def rows(self, after: EventKey | None, limit: int) -> str:
        """Return the statement for rows that an index finds."""
        number = self.bind(limit)
        event_types = self._event_types()
        merged = len(event_types) > 1 and self._wanted.session_id is None
        if not merged:
            return self._rows(self.conditions(after, event_types), number)
        each = [self._rows(self.conditions(after, [one]), number) for one in event_types]
        return SQL["merged"].format(
            each=" UNION ALL ".join(f"({rows})" for rows in each),
            direction=self.direction,
            limit=number,
        )

    def everything(self) -> str:
        """Return every condition of the filter, for counting."""
        return f"{self.conditions(None, self._event_types())} AND {self.matches('payload')}"

    def _event_types(self) -> list[str]:
        return list(dict.fromkeys(self._wanted.event_types))

    def _rows(self, conditions: str, limit: str) -> str:
        return SQL["rows"].format(conditions=conditions, direction=self.direction, limit=limit)

    def conditions(self, after: EventKey | None, event_types: list[str]) -> str:
        """Return the conditions that an index serves."""
        wanted = self._wanted
        parts = ["TRUE"]
        if len(event_types) == 1:
            parts.append(f"event_type = {self.bind(event_types[0])}")
        elif event_types:
            parts.append(f"event_type = ANY ({self.bind(event_types)}::text[])")
        if wanted.session_id is not None:
            parts.append(f"session_id = {self.bind(wanted.session_id)}")
        if wanted.start is not None:
            parts.append(f"timestamp >= {self.bind(wanted.start)}")
        if wanted.end is not None:
            parts.append(f"timestamp < {self.bind(wanted.end)}")
        if after is not None:
            moment, event_id = self.bind(after.timestamp), self.bind(after.event_id)
            # Rows are compared by the second condition; only the first one excludes partitions.
            parts.append(f"timestamp {self._beyond}= {moment}")
            parts.append(f"(timestamp, event_id) {self._beyond} ({moment}, {event_id})")
        return " AND ".join(parts)

    def matches(self, payload: str) -> str:
        """Return the conditions for which rows are read; `payload` is how to get at it."""
        wanted = self._wanted
        parts = ["TRUE"]
        for column in ("source", "trace_id", "request_id"):
            value = getattr(wanted, column)
            if value is not None:
                parts.append(f"{column} = {self.bind(value)}")
        parts += [self._payload_condition(match, payload) for match in wanted.payload]
        if wanted.text is not None:
            patterns = self.bind(_patterns(wanted.text))
            parts.append(f"payload::text ILIKE ANY ({patterns}::text[])")
        return " AND ".join(parts)

    def _payload_condition(self, match: PayloadMatch, payload: str) -> str:
        compared, joined = ("IS DISTINCT FROM", "AND") if match.negated else ("=", "OR")
        value = self.bind(match.value)
        # A key may contain dots itself: `gen_ai.provider.name`.
        parts = [f"({payload}) ->> {self.bind(match.path)}::text {compared} {value}"]
        if "." in match.path:
            path = self.bind(match.path.split("."))
            parts.append(f"({payload}) #>> {path}::text[] {compared} {value}")
        return f"({f' {joined} '.join(parts)})"


def _patterns(text: str) -> list[str]:
    r"""Return LIKE patterns for `text` as it may stand in JSON: as it is, or with \u escapes.

    ILIKE ignores the case of a character, but not of one behind an escape, and in some locales
    only that of ASCII.
    """
    forms = [
        json.dumps(cased, ensure_ascii=escaped)[1:-1]
        for cased in (text, text.lower(), text.upper())
        for escaped in (False, True)
    ]
    distinct = dict.fromkeys(form.lower() if form.isascii() else form for form in forms)
    return ["%" + re.sub(r"[%_\\]", r"\\\g<0>", form) + "%" for form in distinct]
