"""When most of a run is bad: how many events may be put aside before it is too many."""

from hypothesis import given
from hypothesis import strategies as st

from logging_service.recent_events import RecentEvents

COUNTS = st.integers(min_value=0, max_value=20_000)


def after(ratio: float, *deliveries: tuple[int, int]) -> RecentEvents:
    recent = RecentEvents(ratio)
    for events, dead in deliveries:
        recent.note(events, dead)
    return recent


def test_few_bad_events_are_never_too_many() -> None:
    assert after(0.01).most_dead(1) == 99
    assert after(0.01, (50, 50), (40, 40)).most_dead(20) == 9


def test_a_large_delivery_is_judged_by_itself() -> None:
    assert after(0.5).most_dead(10_000) == 5000
    assert after(0.5, (1000, 400)).most_dead(10_000) == 5000


def test_small_deliveries_are_judged_with_the_last_thousand_events() -> None:
    assert after(0.5, (1000, 0)).most_dead(10) == 500
    assert after(0.5, (1000, 0), (500, 490)).most_dead(100) == 10
    assert after(0.5, (500, 499), *[(100, 0)] * 10).most_dead(10) == 500


def test_of_a_large_delivery_its_share_counts() -> None:
    assert after(0.5, (10_000, 4000)).most_dead(500) == 300


def test_nothing_is_too_many_with_a_ratio_of_one() -> None:
    recent = after(1.0)
    for events in (1, 5000, 10, 300):
        assert recent.most_dead(events) >= events
        recent.note(events, events)


def test_what_was_too_many_stays_so() -> None:
    recent = after(0.5, (120, 99))
    assert [recent.most_dead(1) for _ in range(3)] == [0] * 3


@given(st.lists(COUNTS), COUNTS, st.floats(min_value=0.01, max_value=1))
def test_a_run_of_bad_events_alone_ends_at_a_bound(
    sizes: list[int], last: int, ratio: float
) -> None:
    recent, buried = RecentEvents(ratio), 0
    for size in sizes:
        if size <= recent.most_dead(size):
            recent.note(size, size)
            buried += size
    assert buried < 100 or ratio == 1
    assert recent.most_dead(last) >= 0
    assert len(recent._deliveries) <= 1001
