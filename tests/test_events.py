"""The rules of an event, field by field, and the bytes that carry it."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from events_made import REDACTOR, an_event
from hypothesis import given
from hypothesis import strategies as st

from logging_service import wire
from logging_service.errors import BodyRejected, EventRejected
from logging_service.event_rules import (
    check_payload,
    is_suspicious,
)
from logging_service.event_ttls import EventTtls
from logging_service.events import (
    EventEncoder,
    Origin,
    SentEvent,
    Uuid7Clock,
    uuid7_micros,
)
from logging_service.intake import read_one
from logging_service.redaction import Redactor, Rules

NOW = datetime.now(UTC).replace(microsecond=123_456)
ORIGIN = Origin("a-project", "t" * 32, None, wire.to_micros(NOW))


def read(fields: dict[str, Any] | bytes, ttl_days: int = 7) -> wire.Decoded:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return wire.decode(read_one(body, EventEncoder(EventTtls(ttl_days), REDACTOR), ORIGIN).element)


def uuid7(moment: datetime) -> uuid.UUID:
    return uuid.UUID(int=Uuid7Clock().next(wire.to_micros(moment))[0])


def test_an_event_needs_a_type_and_nothing_else() -> None:
    event = read({"event_type": "review_started"})
    assert (event.event_type, event.session_id, event.payload) == ("review_started", None, b"{}")
    assert event.received_at == wire.to_micros(NOW)
    assert event.timestamp == wire.to_micros(NOW) // 1000 * 1000
    assert uuid7_micros(event.event_id) == event.timestamp


def test_the_request_gives_what_the_event_does_not_say() -> None:
    event = read({"event_type": "a"})
    assert (event.source, event.trace_id, event.request_id) == ("a-project", "t" * 32, None)
    event = read({"event_type": "a", "trace_id": "mine", "request_id": "r"})
    assert (event.trace_id, event.request_id) == ("mine", "r")


@pytest.mark.parametrize("session_id", [0, -(2**63), 2**63 - 1, "", "s" * 200, "é" * 200, None])
def test_a_session_is_a_64_bit_integer_or_a_text(session_id: int | str | None) -> None:
    expected = None if session_id is None else str(session_id)
    assert read({"event_type": "a", "session_id": session_id}).session_id == expected


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({}, "event_type"),
        ({"event_type": None}, "event_type"),
        ({"event_type": 1}, "event_type"),
        ({"event_type": ""}, "event_type"),
        ({"event_type": "a" * 101}, "event_type"),
        ({"event_type": "a b"}, "event_type"),
        ({"event_type": "a\n"}, "event_type"),
        ({"event_type": "é"}, "event_type"),
        ({"event_type": "a", "session_id": 2**63}, "session_id"),
        ({"event_type": "a", "session_id": -(2**63) - 1}, "session_id"),
        ({"event_type": "a", "session_id": 1.5}, "session_id"),
        ({"event_type": "a", "session_id": True}, "session_id"),
        ({"event_type": "a", "session_id": []}, "session_id"),
        ({"event_type": "a", "session_id": "s" * 201}, "session_id"),
        ({"event_type": "a", "session_id": "a\x00b"}, "session_id"),
        ({"event_type": "a", "payload": []}, "payload"),
        ({"event_type": "a", "payload": "text"}, "payload"),
        ({"event_type": "a", "payload": None}, "payload"),
        ({"event_type": "a", "payload": {"a": "x" * 262_144}}, "payload"),
        ({"event_type": "a", "payload": {"a": "\x00"}}, "payload"),
        ({"event_type": "a", "payload": {"\x00": 1}}, "payload"),
        ({"event_type": "a", "payload": {"a": 2**53}}, "payload"),
        ({"event_type": "a", "payload": {"a": -(2**53)}}, "payload"),
        ({"event_type": "a", "event_id": "x"}, "event_id"),
        ({"event_type": "a", "event_id": 1}, "event_id"),
        ({"event_type": "a", "event_id": str(uuid.uuid4())}, "event_id"),
        ({"event_type": "a", "event_id": str(uuid7(NOW - timedelta(days=8)))}, "event_id"),
        ({"event_type": "a", "event_id": str(uuid7(NOW + timedelta(days=2)))}, "event_id"),
        ({"event_type": "a", "timestamp": "yesterday"}, "timestamp"),
        ({"event_type": "a", "timestamp": 1_700_000_000}, "timestamp"),
        ({"event_type": "a", "timestamp": NOW.replace(tzinfo=None).isoformat()}, "timestamp"),
        ({"event_type": "a", "timestamp": (NOW - timedelta(days=8)).isoformat()}, "timestamp"),
        ({"event_type": "a", "timestamp": (NOW + timedelta(days=2)).isoformat()}, "timestamp"),
        ({"event_type": "a", "trace_id": "t" * 65}, "trace_id"),
        ({"event_type": "a", "trace_id": 1}, "trace_id"),
        ({"event_type": "a", "trace_id": "\x00"}, "trace_id"),
        ({"event_type": "a", "request_id": "r" * 65}, "request_id"),
        ({"event_type": "a", "request_id": {}}, "request_id"),
        ({"event_type": "a", "colour": "red"}, "colour"),
    ],
)
def test_each_rule_that_is_broken_names_its_field(fields: dict[str, Any], loc: str) -> None:
    with pytest.raises(EventRejected) as refused:
        read(fields)
    assert refused.value.loc == loc
    assert refused.value.message


@pytest.mark.parametrize(
    "payload",
    [b'{"a": 1e400}', b'{"a": -1e999}', b'{"a": 12345678901234567890}',
     b'{"a":"\\u0000"}', b'{"a":"\xff"}', b'{"a":[1,9007199254740992]}',
     b'{"a": 1' + b"0" * 400 + b".0}"],
)  # fmt: skip
def test_what_no_reader_could_represent_is_refused(payload: bytes) -> None:
    with pytest.raises(EventRejected) as refused:
        read(b'{"event_type":"a","payload":' + payload + b"}")
    assert refused.value.loc == "payload"


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def test_a_payload_may_be_32_levels_deep() -> None:
    assert read(b'{"event_type":"a","payload":' + nested(32) + b"}").payload == nested(32)
    for depth in (33, 40, 500):
        with pytest.raises(EventRejected, match="32 levels"):
            read(b'{"event_type":"a","payload":' + nested(depth) + b"}")


def test_many_objects_side_by_side_are_not_deep() -> None:
    payload = json.dumps({"list": [{"n": n} for n in range(200)]}).encode()
    assert read(b'{"event_type":"a","payload":' + payload + b"}").payload == payload


def test_a_payload_of_exactly_256_kib_is_taken() -> None:
    payload = b'{"a":"' + b"x" * (262_144 - 8) + b'"}'
    assert len(read(b'{"event_type":"a","payload":' + payload + b"}").payload) == 262_144


@pytest.mark.parametrize(
    "payload",
    [b'{"b":1.0,"a":1e2,"c":-0}', b'{ "a" : [ 1 , 2 ] }', b'{"n":9007199254740991}',
     '{"text":"é😀"}'.encode(),
     b'{"id":"3e512345678901234567890"}', b'{"e":"\\u00e9\\ud83d\\ude00"}',
     b'{"small":1e-400}', b'{"long":0.1234567890123456789}'],
)  # fmt: skip
def test_what_is_accepted_is_carried_to_the_byte(payload: bytes) -> None:
    assert read(b'{"event_type":"a","payload":' + payload + b"}").payload == payload


def test_an_id_that_is_a_uuid7_gives_the_time() -> None:
    event_id = uuid7(NOW - timedelta(days=2))
    event = read({"event_type": "a", "event_id": str(event_id)})
    assert (event.event_id, event.timestamp) == (event_id, uuid7_micros(event_id))


def test_a_timestamp_goes_with_any_id_and_keeps_its_microseconds() -> None:
    event_id, moment = uuid.uuid4(), NOW - timedelta(hours=1)
    event = read({"event_type": "a", "event_id": str(event_id), "timestamp": moment.isoformat()})
    assert (event.event_id, wire.from_micros(event.timestamp)) == (event_id, moment)


def test_a_timestamp_without_an_id_gets_an_id_of_its_own_time() -> None:
    moment = NOW - timedelta(days=3)
    event = read({"event_type": "a", "timestamp": moment.isoformat()})
    assert wire.from_micros(event.timestamp) == moment
    assert uuid7_micros(event.event_id) == event.timestamp // 1000 * 1000


def test_without_retention_five_years_are_taken() -> None:
    moment = NOW - timedelta(days=4 * 365)
    read({"event_type": "a", "timestamp": moment.isoformat()}, ttl_days=0)
    with pytest.raises(EventRejected):
        read({"event_type": "a", "timestamp": (NOW - timedelta(days=2000)).isoformat()}, ttl_days=0)


def test_ids_of_one_millisecond_ascend_and_differ() -> None:
    clock = Uuid7Clock()
    ids = [clock.next(wire.to_micros(NOW))[0] for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(int=value).version for value in ids} == {7}
    assert {uuid.UUID(int=value).variant for value in ids} == {uuid.RFC_4122}


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_bytes_that_were_changed_are_no_event(place: int) -> None:
    element = bytearray(an_event(payload={"text": "x" * 200}))
    wire.check(bytes(element))
    element[place] ^= 0x10
    with pytest.raises(ValueError, match=r"differs|not known"):
        wire.check(bytes(element))


@pytest.mark.parametrize("element", [b"", b"\x01", b"garbage", an_event()[:-1], an_event() + b"x"])
def test_bytes_that_are_no_event_are_refused(element: bytes) -> None:
    with pytest.raises(ValueError, match=r"differs|not known"):
        wire.check(element)


def test_events_of_one_session_sort_together() -> None:
    events = [an_event(event_type=f"t{n}", session_id=f"s{n % 3}") for n in range(9)]
    sessions = [wire.decode(event).session_id for event in sorted(events, key=wire.session_of)]
    assert sessions == ["s0"] * 3 + ["s1"] * 3 + ["s2"] * 3


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    payload=st.dictionaries(
        st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), json_values,
        max_size=4,
    ),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 2]),
)  # fmt: skip
def test_every_well_formed_payload_is_taken_and_kept(
    payload: dict[str, Any], *, escaped: bool, indent: int | None
) -> None:
    text = json.dumps(payload, ensure_ascii=escaped, indent=indent).encode()
    body = b'{"event_type": "a", "payload": ' + text + b"}"
    # A text of chance may be somebody's address.
    encoder = EventEncoder(EventTtls(7), Redactor(Rules(patterns=()), b"key"))
    assert wire.decode(read_one(body, encoder, ORIGIN).element).payload == text


@given(st.binary(max_size=80))
def test_whatever_is_sent_is_an_event_or_refused(noise: bytes) -> None:
    for body in (noise, b'{"event_type":"a","payload":{"k":"' + noise + b'"}}'):
        try:
            event = read(body)
        except (EventRejected, BodyRejected):
            continue
        else:
            assert event.payload in body
            assert json.loads(event.payload)


def test_what_is_not_suspicious_is_passed_over() -> None:
    payload = b'{"a":"text","n":[1,2.5,-3e5],"u":"2026-11-23T12:00:00.123456Z"}'
    assert not is_suspicious(payload)
    check_payload(payload, suspicious=True)


@pytest.mark.parametrize("payload", [b'{"a":"\\\\u0000"}', b'{"a":"1234567890123456 1e999"}'])
def test_what_only_looks_suspicious_is_taken(payload: bytes) -> None:
    assert is_suspicious(payload) or b"1e999" in payload
    assert read(b'{"event_type":"a","payload":' + payload + b"}").payload == payload


def test_a_sent_event_keeps_its_raw_payload() -> None:
    sent = msgspec.json.decode(b'{"event_type":"a","payload":{"x":1.50}}', type=SentEvent)
    assert bytes(sent.payload) == b'{"x":1.50}'
