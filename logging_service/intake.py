"""Bodies of the write routes: decompressed, split into events, each judged on its own."""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import msgspec
import zstandard

from logging_service.errors import (
    BodyNotSupported,
    BodyRejected,
    BodyTooLarge,
    EventRejected,
)
from logging_service.events import (
    MAX_PAYLOAD_DEPTH,
    Encoded,
    EventEncoder,
    Origin,
    SentEvent,
    is_suspicious,
)

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
    return encoder.encode(sent, origin, suspicious=is_suspicious(body))


def _is_json(body: bytes) -> bool:
    """Whether `body` is one JSON value by its grammar, whatever a reader could make of it."""
    try:
        return len([*_cut(b"[" + body + b"]", 1, "")]) == 1
    except ValueError:
        return False


# Tokens that tell where an element ends; all else is passed over.
_TOKENS = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.)*+"|[][{},]|"')
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
        # Too deep for a reader that goes down with it: count the brackets instead.
        depth = 0
        for token in _TOKENS.finditer(body, place):
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
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
    media = content_type.partition(";")[0].strip().lower()
    if media in _NDJSON:
        events, raws = _read_lines(body)
    else:
        check_json(content_type)
        events, raws = _read_document(body)
    if max(len(events), len(raws)) > MAX_EVENTS:
        raise BodyTooLarge(f"a batch may have {MAX_EVENTS} events")
    suspicious = is_suspicious(body)
    if events:
        return _encode_all(events, encoder, origin, suspicious=suspicious)
    return _judge_each(
        raws, lambda raw: encoder.encode(_one.decode(raw), origin, suspicious=suspicious)
    )


# Either every event at once or, when something is wrong with one, the bytes of each.
_Events = tuple[list[SentEvent], list[bytes]]


def _read_document(body: bytes) -> _Events:
    is_object = body.lstrip()[:1] == b"{"
    try:
        return (_enveloped.decode(body).events if is_object else _many.decode(body)), []
    except _UNREADABLE:
        pass
    try:
        raws = _raw_enveloped.decode(body).events if is_object else _raws.decode(body)
        return [], [bytes(raw) for raw in raws]
    except msgspec.ValidationError:
        raise BodyRejected('the body has to be an array of events or {"events": […]}') from None
    except _UNREADABLE as error:
        try:
            return [], [*_cut(body, _start_of_array(body), "}" if is_object else "")]
        except ValueError:
            raise BodyRejected(f"the body is not JSON: {_syntax(error)}") from None


_ARRAY = re.compile(rb'\s*(?:\{\s*"events"\s*:\s*)?\[')


def _start_of_array(body: bytes) -> int:
    match = _ARRAY.match(body)
    if match is None:
        raise ValueError("there is no array")
    return match.end()


def _read_lines(body: bytes) -> _Events:
    lines = [line for line in body.split(b"\n") if line.strip()]
    try:
        # Line by line: an event may neither span two lines nor share one.
        return [_one.decode(line) for line in lines], []
    except _UNREADABLE:
        return [], lines


def _encode_all(
    events: list[SentEvent], encoder: EventEncoder, origin: Origin, *, suspicious: bool
) -> Batch:
    accepted: list[Encoded] = []
    rejected: list[Rejection] = []
    for index, sent in enumerate(events):
        try:
            accepted.append(encoder.encode(sent, origin, suspicious=suspicious))
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
        return EventRejected("body", "has to be UTF-8")
    if not isinstance(error, msgspec.ValidationError):
        return EventRejected(_field_of_half_pair(raw), f"cannot be read: {_syntax(error)}")
    if place := _PLACE.match(text):
        loc = place["loc"] or "body"
        return EventRejected(loc, _EXPECTED.get(loc, place["msg"]))
    if named := _NAMED.match(text):
        missing = "missing" in named["msg"]
        return EventRejected(
            named["loc"][:100], "is required" if missing else "is not a field of an event"
        )
    return EventRejected("body", "an event has to be a JSON object")


_HALF_PAIR = re.compile("[\ud800-\udfff]")


def _field_of_half_pair(raw: bytes) -> str:
    """Return the field that holds half a surrogate pair, `body` where none does."""
    try:
        members = json.loads(raw)
    except ValueError:
        return "body"
    for name, value in members.items() if isinstance(members, dict) else ():
        if name in _EXPECTED and _HALF_PAIR.search(json.dumps(value, ensure_ascii=False)):
            return str(name)
    return "body"


def _syntax(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).removeprefix("JSON is malformed: ")
