"""A buffer keeps what it can: in order, within its bounds, whatever it finds in its file."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import apsw
import msgspec
import pytest

from gateway.local_buffer import BufferFull, Dropped, LocalBuffer, held
from gateway.stored_reviews import StoredReview, event_id_of

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
BYTES = 200_000


def a_record(size: int = 20_000, **more: object) -> StoredReview:
    base = StoredReview(
        review_id=str(event_id_of(AT)),
        session_id="s",
        project="shop",
        instance=str(event_id_of(AT)),
        status="completed",
        created_at=AT,
        content_key="c",
        code_sha256="0" * 64,
        code_length=1,
        submission_json=b'{"filename":"f.py","language":"python","options":{}}',
        verdict="pass",
        result_json=b" " * size,
        event_json=b"{}",
    )
    return msgspec.structs.replace(base, **more)


def a_running() -> StoredReview:
    return a_record(status="running", result_json=None, event_json=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "reviews-0.sqlite"


@pytest.fixture
def buffer(file: Path) -> Iterator[LocalBuffer]:
    opened = LocalBuffer(file, max_bytes=BYTES, max_reviews=20)
    yield opened
    opened.close()


def test_what_was_put_is_there_after_a_start_in_its_order(buffer: LocalBuffer, file: Path) -> None:
    records = [a_record(100, idempotency_digest=bytes([n]) * 32) for n in range(5)]
    for record in records:
        buffer.put(record, "here")
    buffer.close()
    again = LocalBuffer(file, max_bytes=BYTES, max_reviews=20)
    assert [one.review for one in again.ended(10)] == records
    assert again.ids == {record.review_id for record in records}
    assert file.stat().st_mode & 0o777 == 0o600
    again.close()


def test_a_full_one_drops_the_oldest_results_and_keeps_their_events(buffer: LocalBuffer) -> None:
    records = [a_record() for _ in range(15)]
    running = a_running()
    buffer.put(running, "here")
    for record in records:
        buffer.put(record, "here")
    left = [one.review for one in buffer.ended(20)]
    assert [one.review_id for one in left] == [one.review_id for one in records]
    whole = [one.result_json is not None for one in left]
    assert whole == sorted(whole)
    assert 5 <= sum(whole) < 15
    assert buffer.dropped == Dropped(15 - sum(whole), 0)
    assert len(buffer.unsent(20)) == 15
    assert [one.review for one in buffer.running()] == [running]


def test_too_many_drop_the_oldest_whose_event_was_sent_and_then_the_oldest(
    buffer: LocalBuffer,
) -> None:
    records = [a_record(10, event_sent_at=AT if number == 3 else None) for number in range(20)]
    for record in records:
        buffer.put(record, "here")
    buffer.put(a_record(10), "here")
    assert records[3].review_id not in buffer.ids
    assert buffer.dropped == Dropped(1, 0)
    buffer.put(a_record(10), "here")
    assert records[0].review_id not in buffer.ids
    assert buffer.dropped == Dropped(2, 1)
    assert len(buffer.ids) == 20


def test_what_runs_is_never_dropped(buffer: LocalBuffer) -> None:
    running = [a_running() for _ in range(20)]
    for record in running:
        buffer.put(record, "here")
    with pytest.raises(BufferFull):
        buffer.put(a_record(), "here")
    assert len(buffer.running()) == 20
    ended = a_record(review_id=running[0].review_id)
    buffer.put(ended, "here")
    assert [one.review for one in buffer.ended(2)] == [ended]


def test_one_that_is_too_large_goes_without_its_result(buffer: LocalBuffer) -> None:
    kept = a_record()
    buffer.put(kept, "here")
    buffer.put(a_record(10 * BYTES), "here")
    assert [bool(one.review.result_json) for one in buffer.ended(2)] == [True, False]


def test_the_file_stays_within_its_bounds_and_shrinks(buffer: LocalBuffer, file: Path) -> None:
    def size() -> int:
        return sum(part.stat().st_size for part in file.parent.glob("reviews-0.sqlite*"))

    most = 0
    for _ in range(300):
        buffer.put(a_record(), "here")
        most = max(most, size())
    assert most < 2 * BYTES + 5_000_000
    for one in buffer.ended(100):
        buffer.forget(one.review.review_id, one.version)
    assert not buffer.ids
    assert size() < 200_000
    assert all(
        b"filename" not in part.read_bytes() for part in file.parent.glob("reviews-0.sqlite*")
    )


def test_a_review_that_changed_meanwhile_is_not_forgotten(buffer: LocalBuffer) -> None:
    record = a_record(10)
    buffer.put(record, "doubt")
    [found] = buffer.ended(1)
    assert buffer.unsent(1) == []
    buffer.put(record, "here")
    buffer.forget(record.review_id, found.version)
    buffer.settle(found, msgspec.structs.replace(record, event_sent_at=AT))
    [there] = buffer.unsent(1)
    buffer.settle(there, msgspec.structs.replace(record, event_sent_at=AT))
    assert buffer.unsent(1) == []
    [sent] = buffer.ended(1)
    buffer.forget(record.review_id, sent.version)
    assert (buffer.ended(1), buffer.ids) == ([], set())


def test_a_row_that_cannot_be_read_holds_up_no_other(
    buffer: LocalBuffer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = a_record(10), a_record(10)
    for record in (bad, good):
        buffer.put(record, "here")
    with sqlite3.connect(file) as other:
        other.execute("UPDATE reviews SET review = ? WHERE review_id = ?", (b"?", bad.review_id))
    other.close()
    assert [one.review for one in buffer.ended(5)] == [good]
    assert buffer.ids == {good.review_id}
    assert "buffered_review_unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["another program's", "another release's", "cut off", "garbage"])
def test_a_file_that_is_none_of_ours_is_set_aside(file: Path, fault: str) -> None:
    LocalBuffer(file, max_bytes=BYTES, max_reviews=20).close()
    if fault == "garbage":
        file.write_bytes(b"garbage " * 2000)
    elif fault == "cut off":
        file.write_bytes(file.read_bytes()[:8192])
    else:
        pragma = "application_id" if fault == "another program's" else "user_version"
        with sqlite3.connect(file) as other:
            other.execute(f"PRAGMA {pragma} = 7")
        other.close()
    buffer = LocalBuffer(file, max_bytes=BYTES, max_reviews=20)
    buffer.put(a_record(), "here")
    assert len(buffer.ended(2)) == 1
    buffer.close()
    assert len([*file.parent.glob("reviews-0.sqlite.damaged-*")]) == 1


def test_a_disk_without_room_is_said_and_leaves_what_was_there(file: Path) -> None:
    buffer = LocalBuffer(file, max_bytes=BYTES, max_reviews=20)
    record = a_record(10)
    buffer.put(record, "here")
    buffer._connection.pragma("max_page_count", 1)
    with pytest.raises(apsw.FullError):
        buffer.put(a_record(40_000), "here")
    found = buffer.find(record.review_id)
    assert found is not None
    assert found.review == record
    assert buffer.ids == {one.review.review_id for one in buffer.ended(20)}
    buffer.close()


def test_instances_that_are_over_are_remembered_until_they_are_done_with(file: Path) -> None:
    for instance in ("a", "b", "c"):
        buffer = LocalBuffer(file, max_bytes=BYTES, max_reviews=20)
        buffer.begin_instance(instance)
        over = buffer.over_instances()
        buffer.close()
    assert over == ["a", "b"]
    buffer = LocalBuffer(file, max_bytes=BYTES, max_reviews=20)
    buffer.begin_instance(None)
    buffer.forget_instances(["a"])
    assert buffer.over_instances() == ["b", "c"]
    buffer.close()


def test_a_lock_has_one_holder(file: Path) -> None:
    with held(file) as first, held(file) as second:
        assert (first, second) == (True, False)
    with held(file) as third:
        assert third
