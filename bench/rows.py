"""The events that the benchmark sends: all different, and the same ones for the same seed."""

import random
import string
from collections.abc import Iterable
from uuid import UUID

import msgspec

from logging_service import wire
from logging_service.event_ttls import EventTtls
from logging_service.events import EventEncoder, Origin
from logging_service.intake import read_many
from logging_service.redaction import Redactor
from logging_service.redaction_file import rules_for
from logging_service.settings import Settings

LLM_TYPE = "llm_query_sent"
OTHER_TYPES = (
    "review_started",
    "review_completed",
    "syntax_analysis_started",
    "syntax_analysis_completed",
    "llm_feedback_received",
    "error_occurred",
    "file_opened",
    "file_saved",
    "suggestion_shown",
    "suggestion_accepted",
    "session_opened",
)
LLM_SHARE = 0.3
SESSIONS = 5_000
USERS = 400
MODELS = (("gpt-4o", "openai"), ("claude-sonnet-4", "anthropic"), ("gemini-2.5-pro", "google"))
SMALLEST_PAYLOAD, LARGEST_PAYLOAD = 150, 1_500
_MEAN_ABOVE_SMALLEST = 350
_TEXT_BYTES = 1 << 20
_COPY_BEGIN = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_END = b"\xff\xff"

_MICROS_A_BATCH = 5_000

_encode = msgspec.json.encode
_RULES = rules_for(Settings.model_fields["pii_fields"].default.split(","))
REDACTOR = Redactor(_RULES, b"the key of the bench")
_encoder = EventEncoder(EventTtls(0), REDACTOR)


class EventMaker:
    """Makes the JSON text of one event after the other."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        letters = string.ascii_lowercase + "     "
        self._text = "".join(self._random.choices(letters, k=_TEXT_BYTES))

    def payload(self, *, of_llm: bool) -> bytes:
        """Return a payload of 150 to 1,500 bytes, about 500 on average."""
        rng = self._random
        fields: dict[str, object] = {
            "user_id": f"user{rng.randrange(USERS)}",
            "reference": f"{rng.getrandbits(64):016x}",
            "duration_ms": rng.randrange(20, 9_000),
        }
        if of_llm:
            model, provider = rng.choice(MODELS)
            used, answered = rng.randrange(50, 8_000), rng.randrange(10, 1_500)
            fields |= {
                "model": model,
                "provider": provider,
                "input_tokens": used,
                "output_tokens": answered,
                "tokens_used": used + answered,
                "cost": round(used * 2.5e-6 + answered * 1e-5, 6),
            }
        else:
            fields |= {"language": "python", "success": rng.random() > 0.02}  # noqa: PLR2004
        wanted = SMALLEST_PAYLOAD + rng.expovariate(1 / _MEAN_ABOVE_SMALLEST)
        room = round(min(wanted, LARGEST_PAYLOAD)) - len(_encode(fields)) - len(',"text":""')
        start = rng.randrange(_TEXT_BYTES - LARGEST_PAYLOAD)
        fields["text"] = self._text[start : start + max(room, 0)]
        return _encode(fields)

    def event(self, event_id: UUID | None = None) -> bytes:
        """Return an event as a client sends it, with an id only where one is given."""
        rng = self._random
        of_llm = rng.random() < LLM_SHARE
        event: dict[str, object] = {
            "event_type": LLM_TYPE if of_llm else rng.choice(OTHER_TYPES),
            "session_id": f"session-{rng.randrange(SESSIONS)}",
            "payload": msgspec.Raw(self.payload(of_llm=of_llm)),
        }
        if event_id is not None:
            event["event_id"] = event_id
        return _encode(event)

    def batch(self, size: int) -> bytes:
        """Return the body of a batch."""
        return b"[" + b",".join(self.event() for _ in range(size)) + b"]"

    def event_id(self, unix_millis: int) -> UUID:
        """Return a UUIDv7 of the given time, which is then the time of the event that bears it."""
        return UUID(int=unix_millis << 80 | 7 << 76 | 2 << 62 | self._random.getrandbits(62))


def http_request(path: str, body: bytes, api_key: str) -> bytes:
    """Return the bytes of a POST on a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {api_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def bodies(seed: int, batches: int, size: int) -> list[bytes]:
    """Return the bodies of that many batches."""
    maker = EventMaker(seed)
    return [maker.batch(size) for _ in range(batches)]


def copy_buffer(batches: Iterable[bytes], received_at: int) -> bytes:
    """Return the events of some bodies as one whole input of `COPY`, with ids of their own.

    The rows are what the producer makes of the events: the reference stores what we store.
    """
    rows = []
    for place, body in enumerate(batches):
        # As far apart as batches are that arrive at a hundred thousand events a second.
        origin = Origin("default", None, None, received_at + place * _MICROS_A_BATCH)
        taken = read_many(body, "application/json", _encoder, origin)
        rows += [event.element[wire.SEAL_SIZE :] for event in taken.accepted]
    return b"".join((_COPY_BEGIN, *rows, _COPY_END))
