"""Bodies of the write routes: decompressed, split into events, each judged on its own."""

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

import msgspec
import zstandard

from logging_service.errors import (
    BodyNotSupported,
    BodyRejected,
    BodyTooLarge,
    EventRejected,
)
from logging_service.event_rules import (
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_DEPTH,
)
from logging_service.events import (
    Encoded,
    EventEncoder,
    Origin,
    SentEvent,
)
from logging_service.repeated_keys import distinct_keys, misses_members, repeats_a_key

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_SINGLE_BYTES = 1024 * 1024
MAX_EVENTS = 10_000
_MAX_GZIP_MEMBERS = 100
_MAX_ZSTD_WINDOW = 8 * 1024 * 1024


class FieldError(msgspec.Struct, frozen=True):
    """Which field is at fault, and what it may hold."""

    loc: str
    msg: str


class Rejection(msgspec.Struct, frozen=True):
    """An event of a batch that was not taken; `index` counts from 0."""

    index: int
    event_id: str | None
    errors: list[FieldError]


class Batch(NamedTuple):
    """The events of one body: those to be queued, in order, and those that were refused."""

    accepted: list[Encoded]
    rejected: list[Rejection]


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    events: list[SentEvent]


class _RawEnvelope(msgspec.Struct, forbid_unknown_fields=True):
    events: list[msgspec.Raw]


class _Identified(msgspec.Struct):
    event_id: str | None = None


_one = msgspec.json.Decoder(SentEvent)
_many = msgspec.json.Decoder(list[SentEvent])
_enveloped = msgspec.json.Decoder(_Envelope)
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_raw_enveloped = msgspec.json.Decoder(_RawEnvelope)
_identified = msgspec.json.Decoder(_Identified)

_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json")
_NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
# What msgspec raises for text that is not JSON, too deep, or not UTF-8.
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def decompress(body: bytes, encoding: str, most: int) -> bytes:
    """Return the plain body, `most` bytes at the most; `encoding` is gzip, zstd or identity.

    Raises BodyTooLarge, BodyNotSupported for any other encoding, BodyRejected for a damaged one.
    """
    if encoding in {"", "identity"}:
        plain = body
    elif encoding in {"gzip", "x-gzip"}:
        plain = _gunzip(body, most)
    elif encoding == "zstd":
        plain = _unzstd(body, most)
    else:
        raise BodyNotSupported("Content-Encoding has to be gzip, zstd or identity")
    if len(plain) > most:
        raise BodyTooLarge(f"the body has to be at most {most} bytes, decompressed")
    return plain


def _gunzip(body: bytes, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for _ in range(_MAX_GZIP_MEMBERS):
        reader = zlib.decompressobj(wbits=31)
        try:
            parts.append(reader.decompress(body, most + 1 - size))
        except zlib.error:
            raise BodyRejected("the body is not gzip") from None
        size += len(parts[-1])
        if size > most or (reader.eof and not reader.unused_data):
            return b"".join(parts)
        if not reader.eof:
            raise BodyRejected("the gzip body ends too early")
        body = reader.unused_data
    raise BodyRejected(f"a gzip body may have {_MAX_GZIP_MEMBERS} members")


def _unzstd(body: bytes, most: int) -> bytes:
    codec = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
    try:
        # The stream reader bounds what it makes but hides a frame's missing end, the object
        # sees the end but makes whatever a block says: first the one, then the other.
        if len(codec.stream_reader(body).read(most + 1)) > most:
            raise BodyTooLarge(f"the body has to be at most {most} bytes, decompressed")
        reader = codec.decompressobj()
        plain = reader.decompress(body)
    except zstandard.ZstdError:
        raise BodyRejected("the body is not zstd") from None
    if not reader.eof or reader.unused_data:
        raise BodyRejected("the zstd body has to be one whole frame")
    return plain


def read_one(body: bytes, encoder: EventEncoder, origin: Origin) -> Encoded:
    """Return the one event in `body`; raises EventRejected or, for other text, BodyRejected."""
    try:
        sent = _one.decode(body)
    except msgspec.ValidationError as error:
        raise _rejected(error, body) from None
    except _UNREADABLE as error:
        if _is_json(body):
            raise _rejected(error, body) from None
        raise BodyRejected(f"the body is not JSON: {_syntax(error)}") from None
    one = encoder.encode(sent, origin, suspicious=encoder.is_suspicious(body))
    if body.count(b":") != _least_colons(sent):
        _refuse_repeated(body, sent)
    return one


def _is_json(body: bytes) -> bool:
    """Whether `body` is one JSON value by its grammar, whatever a reader could make of it."""
    try:
        return len([*_cut(b"[" + body + b"]", 1, "")]) == 1
    except ValueError:
        return False


# Tokens that tell where an element ends; all else is passed over.
_TOKENS = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.)*+"|[][{},]|"')
_DEEPER = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}
_MOST_BRACKETS = 500_000
_VALUE = json.JSONDecoder()


def _cut(body: bytes, start: int, closing: str) -> Iterator[bytes]:
    """Yield the elements of the array whose inside begins at `start`; `closing` is what follows it.

    Raises ValueError unless all of it is JSON by its grammar. Half a surrogate pair and any depth
    pass, which msgspec refuses with the whole body.
    """
    text = body.decode("latin-1")
    place = start
    while True:
        place = _after_space(text, place)
        after = _end_of_value(body, text, place)
        yield body[place:after]
        place = _after_space(text, after)
        if text[place : place + 1] != ",":
            break
        place += 1
    if text[place : place + 1] != "]" or text[place + 1 :].strip("".join(_SPACE)) != closing:
        raise ValueError("the array does not end")


def _after_space(text: str, place: int) -> int:
    while text[place : place + 1] in _SPACE:
        place += 1
    return place


_SPACE = frozenset(" \t\r\n")


def _end_of_value(body: bytes, text: str, place: int) -> int:
    try:
        return _VALUE.raw_decode(text, place)[1]
    except RecursionError:
        # Too deep for a reader that goes down with it: count the brackets instead, as long as
        # that takes less than half a second.
        if body.count(b"{") + body.count(b"[") > _MOST_BRACKETS:
            raise ValueError("there are too many brackets") from None
        depth = 0
        for token in _TOKENS.finditer(body, place):
            depth += _DEEPER.get(token[0], 0)
            if depth == 0:
                return token.end()
        raise ValueError("the value does not end") from None


@lru_cache(maxsize=64)
def check_json(content_type: str) -> None:
    """Raise BodyNotSupported for a Content-Type that is not JSON; none at all is taken as JSON."""
    media = content_type.partition(";")[0].strip().lower()
    if media and not _JSON.fullmatch(media):
        raise BodyNotSupported(
            "Content-Type has to be application/json, for a batch also application/x-ndjson"
        )


def read_many(body: bytes, content_type: str, encoder: EventEncoder, origin: Origin) -> Batch:
    """Return the events in `body`: an array, `{"events": […]}` or, by its type, NDJSON.

    Raises BodyRejected when the body as a whole cannot be read.
    """
    if content_type.partition(";")[0].strip().lower() in _NDJSON:
        texts_in, read, colons = _lines, _read_lines, body.count(b":")
    else:
        check_json(content_type)
        texts_in, read = _elements, _read_document
        # That of "events" is no event's.
        colons = body.count(b":") - (body.lstrip()[:1] == b"{")
    events, raws = read(body)
    if max(len(events), len(raws)) > MAX_EVENTS:
        raise BodyTooLarge(f"a batch may have {MAX_EVENTS} events")
    suspicious = encoder.is_suspicious(body)
    if events:
        raws = [] if _are_plain(events, colons) else texts_in(body)
        return _encode_all(
            events, raws, partial(encoder.encode, origin=origin, suspicious=suspicious)
        )

    def encode(raw: bytes) -> Encoded:
        sent = _one.decode(raw)
        one = encoder.encode(sent, origin, suspicious=suspicious)
        _refuse_repeated(raw, sent)
        return one

    return _judge_each(raws, encode)


# Either every event at once or, when something is wrong with one, the bytes of each.
_Events = tuple[list[SentEvent], list[bytes]]


def _are_plain(events: list[SentEvent], colons: int) -> bool:
    """Whether there are as many colons as keys that differ, so that none can stand twice.

    It is found out quickly; a text with a colon or an inner object has more of them.
    """
    return colons == sum(map(_least_colons, events))


def _least_colons(sent: SentEvent) -> int:
    # One that is too large is refused, and its keys may be a million.
    keys = distinct_keys(sent.payload) if len(sent.payload) <= MAX_PAYLOAD_BYTES else 0
    inside = keys + 2 if keys else 1
    return inside + (sent.session_id is not None) + (sent.event_id is not None)


def _refuse_repeated(raw: bytes, sent: SentEvent) -> None:
    # No key of an event has a colon.
    if misses_members(raw):
        names = Counter(json.loads(raw, object_pairs_hook=lambda pairs: [key for key, _ in pairs]))
        raise EventRejected(names.most_common(1)[0][0], "may stand only once")
    if repeats_a_key(bytes(sent.payload)):
        raise EventRejected("payload", "may not have a key twice in an object")


def _read_document(body: bytes) -> _Events:
    is_object = body.lstrip()[:1] == b"{"
    try:
        events = _enveloped.decode(body).events if is_object else _many.decode(body)
        return events, [] if events else _elements(body)
    except _UNREADABLE:
        pass
    try:
        return [], _elements(body)
    except msgspec.ValidationError:
        raise BodyRejected('the body has to be an array of events or {"events": […]}') from None
    except _UNREADABLE as error:
        try:
            texts = _cut(body, _start_of_array(body), "}" if is_object else "")
            return [], [*islice(texts, MAX_EVENTS + 1)]
        except ValueError:
            raise BodyRejected(f"the body is not JSON: {_syntax(error)}") from None


def _elements(body: bytes) -> list[bytes]:
    if body.lstrip()[:1] != b"{":
        return [*map(bytes, _raws.decode(body))]
    texts = [*map(bytes, _raw_enveloped.decode(body).events)]
    if body.count(b":") != 1 + sum(text.count(b":") for text in texts):
        raise BodyRejected("events may stand only once")
    return texts


_ARRAY = re.compile(rb'\s*(?:\{\s*"events"\s*:\s*)?\[')


def _start_of_array(body: bytes) -> int:
    match = _ARRAY.match(body)
    if match is None:
        raise ValueError("there is no array")
    return match.end()


def _read_lines(body: bytes) -> _Events:
    lines = _lines(body)
    try:
        # Line by line: an event may neither span two lines nor share one.
        return [_one.decode(line) for line in lines], []
    except _UNREADABLE:
        return [], lines


def _lines(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line.strip()]


def _encode_all(
    events: list[SentEvent], raws: list[bytes], encode: Callable[[SentEvent], Encoded]
) -> Batch:
    """Return the batch; `raws` are the texts of the events where a key may stand in one twice."""
    accepted: list[Encoded] = []
    rejected: list[Rejection] = []
    for index, sent in enumerate(events):
        try:
            one = encode(sent)
            if raws:
                _refuse_repeated(raws[index], sent)
            accepted.append(one)
        except EventRejected as error:
            event_id = str(sent.event_id) if sent.event_id else None
            rejected.append(Rejection(index, event_id, [FieldError(error.loc, error.message)]))
    return Batch(accepted, rejected)


def _judge_each(raws: list[bytes], encode: Callable[[bytes], Encoded]) -> Batch:
    accepted: list[Encoded] = []
    rejected: list[Rejection] = []
    for index, raw in enumerate(raws):
        try:
            accepted.append(encode(raw))
        except (EventRejected, *_UNREADABLE) as error:
            fault = error if isinstance(error, EventRejected) else _rejected(error, raw)
            rejected.append(Rejection(index, _id_in(raw), [FieldError(fault.loc, fault.message)]))
    return Batch(accepted, rejected)


def _id_in(raw: bytes) -> str | None:
    try:
        return _identified.decode(raw).event_id
    except _UNREADABLE:
        return None


_PLACE = re.compile(r"(?P<msg>.*) - at `\$\.?(?P<loc>[^`]*)`", re.DOTALL)
_NAMED = re.compile(r"Object (?P<msg>.*) field `(?P<loc>[^`]*)`", re.DOTALL)
_EXPECTED = {
    "event_type": "has to be 1 to 100 characters of A-Z a-z 0-9 _ . : -",
    "session_id": "has to be a 64-bit integer or a string of at most 200 characters",
    "payload": "has to be a JSON object",
    "event_id": "has to be a UUID",
    "timestamp": "has to be an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z",
    "trace_id": "has to be a string of at most 64 characters",
    "request_id": "has to be a string of at most 64 characters",
}


def _rejected(error: Exception, raw: bytes) -> EventRejected:
    """Say in our words which field of `raw` msgspec stumbled over."""
    text = str(error)
    if isinstance(error, RecursionError):
        return EventRejected("payload", f"may be {MAX_PAYLOAD_DEPTH} levels deep")
    if isinstance(error, UnicodeDecodeError):
        return EventRejected(_field_at_fault(raw), "has to be UTF-8")
    if not isinstance(error, msgspec.ValidationError):
        return EventRejected(_field_at_fault(raw), f"cannot be read: {_syntax(error)}")
    if place := _PLACE.match(text):
        loc = place["loc"] or "body"
        return EventRejected(loc, _EXPECTED.get(loc, place["msg"]))
    if named := _NAMED.match(text):
        missing = "missing" in named["msg"]
        return EventRejected(
            named["loc"][:100], "is required" if missing else "is not a field of an event"
        )
    return EventRejected("body", "an event has to be a JSON object")


def _field_at_fault(raw: bytes) -> str:
    """Return the field that no JSON has: half a pair, NaN, no UTF-8; else `body`."""
    try:
        members = json.loads(raw.decode(errors="surrogateescape"))
        for name in members.keys() & _EXPECTED.keys():
            msgspec.json.decode(json.dumps(members[name]))
    except msgspec.DecodeError:
        return str(name)
    except (ValueError, AttributeError, RecursionError):
        return "body"
    return "body"


def _syntax(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ")
