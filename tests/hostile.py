"""What an enemy, or a bug, sends for an event, and the field that the refusal has to name."""

from typing import NamedTuple


class Hostile(NamedTuple):
    """The text of an event, and the field at fault."""

    text: bytes
    loc: str


def of_payload(payload: bytes) -> bytes:
    return b'{"event_type":"hostile","payload":' + payload + b"}"


def in_payload(value: bytes) -> Hostile:
    return Hostile(of_payload(b'{"fine":[1,"x"],"n":' + value + b"}"), "payload")


def _of(fields: bytes, loc: str) -> Hostile:
    return Hostile(b"{" + fields + b"}", loc)


MOST_PAYLOAD = 256 * 1024
_LONG = b'{"text":"%b"}' % (b"x" * (MOST_PAYLOAD + 1 - len(b'{"text":""}')))
_KEYS = b",".join(b'"%x":0' % number for number in range(1_000_000))
DEEP = b"[" * 100_000 + b"]" * 100_000

# Each is one JSON value, by the grammar or nearly, so that it can be told from its neighbours.
EVENTS = {
    "NaN": in_payload(b"NaN"),
    "Infinity": in_payload(b"Infinity"),
    "-Infinity": in_payload(b"[-Infinity]"),
    "1e400": in_payload(b"1e400"),
    "-1e400": in_payload(b'{"deep":[-1E+400]}'),
    "2^53": in_payload(b"9007199254740992"),
    "-2^53": in_payload(b"-9007199254740992"),
    "thirty digits": in_payload(b"1" * 30),
    "ten thousand digits": in_payload(b"9" * 10_000),
    "half a pair": in_payload(b'"\\ud800"'),
    "the other half": in_payload(b'"x\\udfff\\ud83dx"'),
    "half a pair in a key": _of(b'"event_type":"a","payload":{"\\udc00":1}', "payload"),
    "half a pair in the session": _of(b'"event_type":"a","session_id":"\\ud83d"', "session_id"),
    "NUL": in_payload(b'"a\\u0000b"'),
    "NUL in a key": _of(b'"event_type":"a","payload":{"\\u0000":1}', "payload"),
    "NUL in the session": _of(b'"event_type":"a","session_id":"\\u0000"', "session_id"),
    "NUL in the trace": _of(b'"event_type":"a","trace_id":"\\u0000"', "trace_id"),
    "depth": in_payload(DEEP),
    "depth of objects": in_payload(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a million keys": Hostile(of_payload(b"{" + _KEYS + b"}"), "payload"),
    "256 KiB + 1": Hostile(of_payload(_LONG), "payload"),
    "not UTF-8": in_payload(b'"\xff\xfe"'),
    "half a character": in_payload(b'"\xc3"'),
    "UTF-8 of half a pair": in_payload(b'"\xed\xa0\x80"'),
    "not UTF-8 in a key": _of(b'"event_type":"a","payload":{"\xff":1}', "payload"),
    "not UTF-8 in the session": _of(b'"event_type":"a","session_id":"\xff"', "session_id"),
    "null": Hostile(b"null", "body"),
    "a string": Hostile(b'"event"', "body"),
    "a number": Hostile(b"1", "body"),
    "an array": Hostile(b"[]", "body"),
    "a payload that is a string": _of(b'"event_type":"a","payload":"{}"', "payload"),
    "a payload that is null": _of(b'"event_type":"a","payload":null', "payload"),
    "a key twice": in_payload(b'{"a":1,"b":2,"a":3}'),
    "a key twice, far apart": _of(b'"event_type":"a","payload":{"a":{},"b":[],"a":{}}', "payload"),
    "a key twice, escaped": in_payload(b'[{"a":{"k:":":"}},{"a:b":1,"\\u0061:b":1}]'),
    "a key twice, in text": _of(b'"event_type":"a","payload":{"a":"b:c","a":"d"}', "payload"),
    "a field twice": _of(b'"event_type":"a","session_id":1,"session_id":2', "session_id"),
    "a field twice, escaped": _of(b'"event_type":"a","payload":{},"p\\u0061yload":{}', "payload"),
    "the type twice": _of(b'"event_type":"a","payload":{"b":"c:d"},"event_type":"e"', "event_type"),
    "a type of two lines": _of(b'"event_type":"a\\n"', "event_type"),
    "a type of the audit": _of(b'"event_type":"audit.forged"', "event_type"),
    "an unknown field": _of(b'"event_type":"a","source":"other"', "source"),
    "a session beyond 64 bits": _of(
        b'"event_type":"a","session_id":9223372036854775808', "session_id"
    ),
    "a time without an offset": _of(
        b'"event_type":"a","timestamp":"2026-11-23T10:00:00"', "timestamp"
    ),
}

# These are no JSON: in NDJSON the line is refused alone, in an array nobody can say where it ends.
TEXTS = {
    "a BOM": b"\xef\xbb\xbf" + of_payload(b"{}"),
    "UTF-16": of_payload(b"{}").decode().encode("utf-16"),
    "nothing but a comma": b",",
    "a comma too many": of_payload(b'{"a":1,}'),
    "single quotes": b"{'event_type':'a'}",
    "a comment": of_payload(b"{}") + b"//",
    "a bare NUL": of_payload(b'{"a":"\x00"}'),
    "a bare escape": of_payload(b'{"a":"\x1b[2J"}'),
    "an end too few": b'{"event_type":"a","payload":{"a":1}',
    "an end too many": of_payload(b"{}") + b"}",
    "a zero before": of_payload(b'{"a":01}'),
    "a sign before": of_payload(b'{"a":+1}'),
    "hexadecimal": of_payload(b'{"a":0x1f}'),
}

# These are taken, and come back to the byte.
PAYLOADS = [
    b'{"n":9007199254740991,"m":-9007199254740991}',
    b'{"n":1e308,"m":-1.7976931348623157e308}',
    b'{"n":0.1000000000000000055511151231257827,"m":1.0,"o":-0,"p":1E2,"q":5e-324}',
    b'{"n":1.50,"cost":0.000000001}',
    b'{ "a" : [ ] ,\t"b":{ } }',
    b'{"a":"\\ud83d\\ude00","b":"\\\\u0000","c":"\\u0001\\u007f\\u2028\\u202e"}',
    '{"é":"日本 😀","\u202e":"\ufeff"}'.encode(),
    b'{"":1," ":2,"a.b":{"":3},"__proto__":{"a":1},"$ne":null}',
    b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}],"a:":1,"\\"a\\":":":"}',
    b'{"text":"%b"}' % (b"\\u0041" * ((MOST_PAYLOAD - len(b'{"text":""}')) // 6)),
    b'{"a":' * 31 + b"{}" + b"}" * 31,
]
