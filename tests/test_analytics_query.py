"""What parameters of analytics ask: which period, which parts of it, which page of groups."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from logging_service.analytics import GroupKey, Question
from logging_service.analytics_query import (
    MOST_DAYS,
    MOST_PARTS,
    Asked,
    LlmQuery,
    PerformanceQuery,
    UsageQuery,
    read_question,
)
from logging_service.errors import QueryRejected
from logging_service.event_query import sealed_cursor

NOW = datetime(2026, 11, 23, 10, 20, 30, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
WANTED: dict[str, Any] = {"group_by": ["model", "user_id"], "days": 7}
KEY = GroupKey((-5, 2**70), ("gpt-4o", None))


def asked(now: datetime = NOW, **parameters: Any) -> Asked:
    return read_question("llm", LlmQuery.model_validate(parameters), now)


def question(**parameters: Any) -> Question:
    return asked(**parameters).question


def period(**parameters: Any) -> tuple[datetime, datetime]:
    points = question(**parameters).points
    return points[0], points[-1]


def fault_of(now: datetime = NOW, **parameters: Any) -> str:
    with pytest.raises(QueryRejected) as caught:
        asked(now, **parameters)
    return caught.value.loc


class TestPeriod:
    def test_without_a_word_it_is_the_seven_days_before_now(self) -> None:
        assert period() == (NOW - 7 * DAY, NOW)

    def test_days_are_24_hours_each_whatever_the_zone(self) -> None:
        assert period(days=30, timezone="America/New_York") == (NOW - 30 * DAY, NOW)

    def test_a_start_alone_goes_until_now(self) -> None:
        start = "2026-11-20T00:00:00+01:00"
        assert period(start_time=start) == (datetime(2026, 11, 19, 23, tzinfo=UTC), NOW)

    def test_an_end_alone_has_the_seven_days_before_it(self) -> None:
        end = datetime(2026, 11, 1, tzinfo=UTC)
        assert period(end_time="2026-11-01T00:00:00Z") == (end - 7 * DAY, end)

    def test_start_and_end_may_lie_ahead(self) -> None:
        start, end = period(start_time="2027-01-01T00:00:00Z", end_time="2027-01-02T00:00:00Z")
        assert end - start == DAY
        assert start > NOW

    def test_a_plus_that_was_lost_is_understood(self) -> None:
        start, _ = period(start_time="2026-11-20T00:00:00 02:00")
        assert start == datetime(2026, 11, 19, 22, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("parameters", "named"),
        [
            ({"days": 1, "start_time": "2026-11-20T00:00:00Z"}, "days"),
            ({"days": 1, "end_time": "2026-11-20T00:00:00Z"}, "days"),
            ({"start_time": "2026-11-23T10:20:30.123456Z"}, "start_time"),
            (
                {"start_time": "2026-11-20T00:00:00Z", "end_time": "2026-11-20T00:00:00Z"},
                "end_time",
            ),
            (
                {"start_time": "2026-11-20T00:00:00Z", "end_time": "2026-11-19T00:00:00Z"},
                "end_time",
            ),
            ({"start_time": "1999-12-31T23:59:59Z"}, "start_time"),
            ({"end_time": "1999-12-31T23:59:59Z"}, "end_time"),
            ({"start_time": "9998-01-01T00:00:00Z"}, "start_time"),
            ({"end_time": "9999-12-31T23:59:59Z"}, "end_time"),
            ({"start_time": "2010-01-01T00:00:00Z"}, "start_time"),
        ],
    )
    def test_what_cannot_be_a_period_is_refused_by_name(
        self, parameters: dict[str, Any], named: str
    ) -> None:
        assert fault_of(**parameters) == named

    def test_the_longest_period_is_taken_and_one_that_is_longer_is_not(self) -> None:
        start, end = period(days=MOST_DAYS)
        assert end - start == MOST_DAYS * DAY
        longer = (end - MOST_DAYS * DAY - timedelta(microseconds=1)).isoformat()
        assert fault_of(start_time=longer) == "start_time"


class TestParts:
    @pytest.mark.parametrize(
        ("days", "interval", "parts"),
        [(2, None, 49), (3, None, 4), (2, "day", 3), (21, "week", 4), (365, "month", 13)],
    )
    def test_the_first_and_the_last_are_cut_off_by_the_period(
        self, days: int, interval: str | None, parts: int
    ) -> None:
        points = question(days=days, interval=interval).points
        assert len(points) - 1 == parts
        assert (points[0], points[-1]) == (NOW - days * DAY, NOW)
        assert all(before < after for before, after in pairwise(points))
        assert {point.minute for point in points[1:-1]} == {0}

    def test_a_period_of_whole_days_has_no_part_beside_them(self) -> None:
        points = question(
            start_time="2026-10-31T00:00:00-04:00",
            end_time="2026-11-03T00:00:00-05:00",
            timezone="America/New_York",
        ).points
        assert [(b - a) / timedelta(hours=1) for a, b in pairwise(points)] == [24, 25, 24]

    def test_points_are_in_utc(self) -> None:
        points = question(timezone="Asia/Kolkata", days=3).points
        assert {point.tzinfo for point in points} == {UTC}
        assert {(point.hour, point.minute) for point in points[1:-1]} == {(18, 30)}

    def test_ten_thousand_parts_are_taken_and_one_more_is_not(self) -> None:
        start = datetime(2025, 1, 1, tzinfo=UTC)
        end = start + timedelta(hours=MOST_PARTS)
        times: dict[str, Any] = {"start_time": start.isoformat(), "interval": "hour"}
        assert len(question(**times, end_time=end.isoformat()).points) == MOST_PARTS + 1
        longer = (end + timedelta(microseconds=1)).isoformat()
        assert fault_of(**times, end_time=longer) == "interval"

    def test_parts_of_all_groups_of_a_page_are_ten_thousand_at_the_most(self) -> None:
        whole_days: dict[str, Any] = {
            "start_time": "2026-01-01T00:00:00Z",
            "end_time": "2026-01-11T00:00:00Z",
            "group_by": ["model"],
            "series": "groups",
        }
        assert question(**whole_days, limit=1000).series_of_groups
        whole_days["end_time"] = "2026-01-11T00:00:00.1Z"
        assert fault_of(**whole_days, limit=1000) == "interval"
        assert question(**whole_days, limit=909).limit == 909


class TestGroups:
    def test_dimensions_may_be_repeated_or_separated_by_commas(self) -> None:
        names = ("model", "user_id", "source")
        for sent in (["model", "user_id", "source"], ["model,user_id", "source"]):
            assert question(group_by=sent).group_by == names

    def test_performance_always_has_groups(self) -> None:
        without = read_question("performance", PerformanceQuery(), NOW).question
        assert without.group_by == ("operation",)

    def test_a_series_of_groups_needs_groups(self) -> None:
        assert fault_of(series="groups") == "series"

    def test_a_cost_is_the_best_one_unless_another_is_asked_for(self) -> None:
        assert question().cost == "best"
        assert question(cost="reported").cost == "reported"


class TestCursor:
    def test_it_leads_behind_a_key_and_to_the_period_of_the_first_page(self) -> None:
        first = asked(**WANTED)
        cursor = first.cursor_behind(KEY)
        later = NOW + timedelta(hours=3)
        second = asked(later, **WANTED, cursor=cursor, limit=5)
        assert second.question.points == first.question.points
        assert (second.question.after, second.question.limit) == (KEY, 5)
        third = asked(later + DAY, **WANTED, cursor=second.cursor_behind(KEY))
        assert third.question.points == first.question.points

    @pytest.mark.parametrize(
        "other",
        [
            {"days": 8},
            {"group_by": ["user_id", "model"]},
            {"interval": "day"},
            {"timezone": "Asia/Kolkata"},
            {"cost": "computed"},
            {"series": "groups", "limit": 1},
        ],
    )
    def test_with_other_parameters_it_is_refused(self, other: dict[str, Any]) -> None:
        cursor = asked(**WANTED).cursor_behind(KEY)
        assert fault_of(**{**WANTED, **other}, cursor=cursor) == "cursor"

    def test_of_another_subject_it_is_refused(self) -> None:
        usage = UsageQuery.model_validate({"group_by": ["user_id"]})
        cursor = read_question("usage", usage, NOW).cursor_behind(GroupKey((1,), ("ada",)))
        assert fault_of(group_by=["user_id"], cursor=cursor) == "cursor"

    @pytest.mark.parametrize("cursor", ["", "x", "é", "AAAA", "A" * 500])
    def test_what_is_none_is_refused(self, cursor: str) -> None:
        assert fault_of(**WANTED, cursor=cursor) == "cursor"

    @pytest.mark.parametrize(
        "position",
        [
            b"",
            b"[]",
            b'[1,[[7],["gpt-4o"]]]',
            b'[9223372036854775807,[[7],["gpt-4o","ada"]]]',
            b'[-1,[[7],["gpt-4o","ada"]]]',
            b'[800000000000000,["7",["gpt-4o","ada"]]]',
            b'[800000000000000,[[7],["gpt-4o","ada"]]]',
            b'[800000000000000,[[7,8,9],["gpt-4o","ada"]]]',
            b'[800000000000000,[[7,8],["gpt-4o","a\\u0000"]]]',
            b'[800000000000000,[[7,%d],["gpt-4o","ada"]]]' % 10**30,
        ],
    )
    def test_one_that_somebody_sealed_by_hand_is_looked_at(self, position: bytes) -> None:
        cursor = sealed_cursor(position, asked(**WANTED).bound_to)
        assert fault_of(**WANTED, cursor=cursor) == "cursor"

    def test_what_it_holds_is_short_for_the_longest_names(self) -> None:
        names = tuple("\x01" * 200 for _ in range(5))
        dimensions = ["model", "provider", "user_id", "session_id", "source"]
        cursor = asked(group_by=dimensions).cursor_behind(GroupKey((2**99, 2**62), names))
        assert len(cursor) < 9000
        question_behind = question(group_by=dimensions, cursor=cursor)
        assert question_behind.after == GroupKey((2**99, 2**62), names)
