"""Bodies: how they are decompressed, split into events, and refused in part or whole."""

import gzip
import json
import zlib
from typing import Any

import pytest
import zstandard
from events_made import REDACTOR

from logging_service import wire
from logging_service.errors import BodyNotSupported, BodyRejected, BodyTooLarge
from logging_service.event_ttls import EventTtls
from logging_service.events import EventEncoder, Origin
from logging_service.intake import MAX_EVENTS, Batch, decompress, read_many

ENCODER = EventEncoder(EventTtls(7), REDACTOR)
GOOD: dict[str, Any] = {"event_type": "good", "payload": {"n": 1}}
BAD: dict[str, Any] = {"event_type": "not good", "event_id": "0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10"}
NDJSON = "application/x-ndjson"


def read(body: bytes | list[Any] | dict[str, Any], content_type: str = "application/json") -> Batch:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_many(raw, content_type, ENCODER, Origin("tests", None, None, wire.now_micros()))


def lines(*events: dict[str, Any] | bytes) -> bytes:
    return b"\n".join(e if isinstance(e, bytes) else json.dumps(e).encode() for e in events)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps([GOOD, GOOD]).encode(), "application/json"),
        (json.dumps([GOOD, GOOD], indent=2).encode(), "application/json; charset=utf-8"),
        (json.dumps({"events": [GOOD, GOOD]}).encode(), "application/json"),
        (json.dumps([GOOD, GOOD]).encode(), ""),
        (json.dumps([GOOD, GOOD]).encode(), "application/vnd.events+json"),
        (lines(GOOD, GOOD), NDJSON),
        (lines(GOOD, b"", GOOD, b""), "application/x-ndjson; charset=utf-8"),
        (b"\r\n".join([json.dumps(GOOD).encode()] * 2), NDJSON),
    ],
)
def test_every_form_of_a_batch_is_read(body: bytes, content_type: str) -> None:
    batch = read(body, content_type)
    assert [event.event_type for event in batch.accepted] == ["good", "good"]
    assert batch.rejected == []


@pytest.mark.parametrize("form", ["array", "envelope", "lines"])
@pytest.mark.parametrize(
    "bad",
    [BAD, {**GOOD, "colour": 1}, {}, 7, "text", None, [], {"event_type": "a", "payload": 1},
     {"event_type": "a", "payload": {"n": 2**60}}],
)  # fmt: skip
def test_a_bad_event_is_refused_alone(bad: Any, form: str) -> None:
    events = [*[GOOD] * 500, bad, *[GOOD] * 499]
    if form == "lines":
        batch = read("\n".join(map(json.dumps, events)).encode(), NDJSON)
    else:
        batch = read(events if form == "array" else {"events": events})
    assert len(batch.accepted) == 999
    (rejection,) = batch.rejected
    assert rejection.index == 500
    assert rejection.errors
    assert rejection.event_id == (BAD["event_id"] if bad is BAD else None)


HALF = b'{"event_type":"half","payload":{"path":"/tmp/\\udcff"}}'
DEEP = b'{"event_type":"deep","payload":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}"


@pytest.mark.parametrize("form", ["array", "envelope", "lines"])
@pytest.mark.parametrize(
    ("bad", "loc"),
    [
        (HALF, "payload"),
        (HALF.replace(b"/tmp/\\udcff", b"\\ud83dx"), "payload"),
        (b'{"event_type":"a","session_id":"\\ud800"}', "session_id"),
        (DEEP, "payload"),
        (b'{"event_type":"a","payload":{"n":NaN}}', "payload"),
    ],
)
def test_an_event_that_no_reader_could_represent_is_refused_alone(
    form: str, bad: bytes, loc: str
) -> None:
    good = json.dumps(GOOD).encode()
    events = [good, good, bad, good]
    if form == "lines":
        batch = read(b"\n".join(events), NDJSON)
    else:
        array = b" [ " + b" , ".join(events) + b" ] "
        batch = read(array if form == "array" else b'{ "events" :' + array + b"}")
    assert len(batch.accepted) == 3
    (rejection,) = batch.rejected
    assert (rejection.index, rejection.errors[0].loc) == (2, loc)


@pytest.mark.parametrize(
    "body",
    [b"[%b", b"[%b]]", b"[%b,]", b'{"events": [%b], "more": 1}x', b"[%b] []", b"[%b}", b"[%b]}"],
)
def test_around_such_an_event_the_body_has_to_be_json_still(body: bytes) -> None:
    for bad in (HALF, DEEP):
        with pytest.raises(BodyRejected):
            read(body % bad)


def test_a_neighbour_changes_nothing() -> None:
    odd = b'{"event_type":"a","payload":{"k:":1.0,"l":{"k:":2}}}'
    escaped = b'{"event_type":"a","payload":{"k":"\\u00e9"}}'
    alone, beside = read(b"[" + odd + b"]"), read(b"[" + odd + b"," + escaped + b"]")
    assert (len(alone.accepted), len(beside.accepted)) == (1, 2)


def test_lines_and_events_are_one_to_one() -> None:
    whole = json.dumps(GOOD).encode()
    broken = whole.replace(b", ", b",\n", 1)
    batch = read(b"\n".join([whole, broken, whole + whole]), NDJSON)
    assert len(batch.accepted) == 1
    assert [rejection.index for rejection in batch.rejected] == [1, 2, 3]


def test_the_order_of_the_events_is_kept() -> None:
    batch = read([{"event_type": f"t{n}"} for n in range(100)])
    assert [event.event_type for event in batch.accepted] == [f"t{n}" for n in range(100)]
    ids = [event.event_id for event in batch.accepted]
    assert ids == sorted(ids)


def test_a_line_that_is_not_json_is_refused_alone() -> None:
    batch = read(lines(GOOD, b'{"event_type": ', GOOD, b"\xff\xfe", b"null"), NDJSON)
    assert len(batch.accepted) == 2
    assert [rejection.index for rejection in batch.rejected] == [1, 3, 4]


def test_a_line_may_not_hold_two_events() -> None:
    batch = read(
        lines(GOOD, lines(GOOD).replace(b"}}", b"}},") + json.dumps(GOOD).encode()), NDJSON
    )
    assert len(batch.accepted) == 1
    assert [rejection.index for rejection in batch.rejected] == [1]


@pytest.mark.parametrize(
    "body",
    [b"", b"   ", b"null", b"7", b'"text"', b"{}", b'{"events": 1}', b"[{]", b"[1,", b"\xff",
     b"[" * 100_000, b'{"events": [], "more": 1}', b"\xef\xbb\xbf[]"],
)  # fmt: skip
def test_a_body_that_is_no_batch_is_refused_whole(body: bytes) -> None:
    with pytest.raises(BodyRejected):
        read(body)


def test_an_empty_batch_has_no_events() -> None:
    assert read(b"[]") == Batch([], [])
    assert read(b"\n\n", NDJSON) == Batch([], [])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "x"])
def test_another_content_type_is_not_supported(content_type: str) -> None:
    with pytest.raises(BodyNotSupported, match="application/json"):
        read([GOOD], content_type)


def test_ten_thousand_events_are_taken_and_not_one_more() -> None:
    body = b"[" + b",".join([b'{"event_type":"a"}'] * MAX_EVENTS) + b"]"
    assert len(read(body).accepted) == MAX_EVENTS
    with pytest.raises(BodyTooLarge, match="10000"):
        read(body[:-1] + b',{"event_type":"a"}]')


def test_of_a_batch_that_is_too_large_no_more_is_looked_at_than_tells_so() -> None:
    # What no reader takes makes each element be cut out by itself.
    body = b'["\\ud800"' + b",1" * 10_000
    with pytest.raises(BodyTooLarge, match="10000"):
        read(body + b", no JSON any more")
    with pytest.raises(BodyRejected):
        read(body[:-2] + b", no JSON any more")


COMPRESSED = {
    "gzip": gzip.compress(b"x" * 1000, mtime=0),
    "x-gzip": gzip.compress(b"x" * 500) + gzip.compress(b"x" * 500),
    "zstd": zstandard.compress(b"x" * 1000),
    "identity": b"x" * 1000,
    "": b"x" * 1000,
}


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_compressed_body_is_what_it_was(encoding: str) -> None:
    assert decompress(COMPRESSED[encoding], encoding, 1000) == b"x" * 1000


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_body_is_bounded_after_decompression(encoding: str) -> None:
    with pytest.raises(BodyTooLarge):
        decompress(COMPRESSED[encoding], encoding, 999)


def bomb(encoding: str) -> bytes:
    if encoding == "gzip":
        packer = zlib.compressobj(9, wbits=31)
        return b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    return zstandard.ZstdCompressor(level=19, write_content_size=False).compress(bytes(200 * 2**20))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_has_exploded(encoding: str) -> None:
    with pytest.raises(BodyTooLarge):
        decompress(bomb(encoding), encoding, 10 * 2**20)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"not gzip", "gzip"),
        (b"not zstd", "zstd"),
        (b"", "gzip"),
        (b"", "zstd"),
        (COMPRESSED["gzip"][:-5], "gzip"),
        (COMPRESSED["zstd"][:-5], "zstd"),
        (COMPRESSED["zstd"] + b"tail", "zstd"),
        (COMPRESSED["gzip"] + b"tail", "gzip"),
        (gzip.compress(b"", mtime=0) * 100_000, "gzip"),
    ],
)
def test_a_damaged_compressed_body_is_refused(body: bytes, encoding: str) -> None:
    with pytest.raises(BodyRejected):
        decompress(body, encoding, 10_000)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd,gzip"])
def test_another_encoding_is_not_supported(encoding: str) -> None:
    with pytest.raises(BodyNotSupported, match="gzip, zstd"):
        decompress(b"", encoding, 10)
