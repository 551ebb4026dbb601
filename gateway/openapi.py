"""What the OpenAPI document says of the gateway's bodies and answers."""

from typing import Any, Final

import msgspec

from code_reviewer.findings import Review
from gateway.bodies import ReviewBody
from gateway.stored_reviews import ReviewOutline
from logging_service.web import schema_of

Json = dict[str, Any]
_Answers = dict[int | str, Json]


class Accepted(msgspec.Struct):
    """A review that is not finished; ask for it under its id."""

    review_id: str
    session_id: str
    status: str


class Reviews(msgspec.Struct):
    """A page of reviews, newest first; `partial` while the database is away."""

    reviews: list[ReviewOutline]
    next_cursor: str | None
    partial: bool


FORMAT: Final = "the form of the answer; default: by the Accept header"
TYPES: Final = (Review, Accepted, Reviews)

_ID, _SESSION = "019abf3c-5d1e-7c52-9f0b-6a41d2c0e7aa", "9d2f6f1c-2c8e-4a7c-8a53-1f6d6f0a4b11"
_FINDING: Final[Json] = {
    "id": "fp:1f0e7c7a0f0d4ce5b0a4d1f1b7b3a9d5",
    "source": "ruff",
    "rule": "S307",
    "category": "security",
    "severity": "error",
    "start": {"line": 1, "column": 18},
    "end": {"line": 1, "column": 25},
    "message": "Use of possibly insecure function; consider using `ast.literal_eval`",
    "url": "https://docs.astral.sh/ruff/rules/suspicious-eval-usage",
    "fix": None,
    "suppressed": False,
}
REVIEW_EXAMPLE: Final[Json] = {
    "review_id": _ID,
    "session_id": _SESSION,
    "status": "completed",
    "degraded_reasons": [],
    "verdict": "fail",
    "summary": "1 error.",
    "cached": False,
    "counts": {"error": 1, "warning": 0, "info": 0},
    "findings": [_FINDING],
    "metrics": {"lines": 1, "functions": [{"name": "f", "line": 1, "complexity": 1}]},
    "llm": {
        "status": "disabled",
        "model": None,
        "attempts": 0,
        "usage": {"input": 0, "cached_input": 0, "output": 0, "reasoning": 0},
        "cost_usd": None,
        "reason": "no_model",
        "dropped": 0,
        "unanchored": 0,
        "redacted": 0,
    },
    "timings_ms": {"static": 21, "llm": 0, "total": 22},
    "truncated": False,
}
_ACCEPTED: Final[Json] = {"review_id": _ID, "session_id": _SESSION, "status": "running"}
_REVIEWS: Final[Json] = {
    "reviews": [
        {
            "review_id": _ID,
            "session_id": _SESSION,
            "user_id": "user123",
            "status": "completed",
            "filename": "snippet.py",
            "language": "python",
            "code_length": 26,
            "cached": False,
            "cost_usd": None,
            "created_at": "2026-11-23T10:00:00.123456Z",
            "finished_at": "2026-11-23T10:00:00.145Z",
            "verdict": "fail",
            "summary": "1 error.",
            "counts": {"error": 1, "warning": 0, "info": 0},
        }
    ],
    "next_cursor": None,
    "partial": False,
}
_EVENTS: Final[Json] = {
    "events": [
        {
            "event_id": "019abf3c-5d1f-7b3a-9d53-3f2b8f1c6d10",
            "timestamp": "2026-11-23T10:00:00.123Z",
            "received_at": "2026-11-23T10:00:00.171Z",
            "event_type": "review_started",
            "session_id": _SESSION,
            "source": "default",
            "trace_id": None,
            "request_id": None,
            "payload": {"review_id": _ID, "user_id": "user123", "language": "python"},
        }
    ],
    "pagination": {
        "page": None,
        "limit": 100,
        "total": None,
        "total_pages": None,
        "next_cursor": None,
    },
}


def _forms(review: Json) -> Json:
    texts = {"application/sarif+json": {"type": "object"}, "text/markdown": {"type": "string"}}
    others = {media: {"schema": schema} for media, schema in texts.items()}
    return {**review, "content": {**review["content"], **others}}


_REVIEW: Final = _forms(schema_of(Review, REVIEW_EXAMPLE))
_STREAM: Final[Json] = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'event: stage\ndata: {"stage":"syntax","status":"started"}\n\n',
    }
}
_RUNNING: Final = schema_of(Accepted, _ACCEPTED)

POSTED: Final[_Answers] = {
    200: {**_REVIEW, "content": {**_REVIEW["content"], **_STREAM}},
    202: _RUNNING,
}
SHOWN: Final[_Answers] = {200: _REVIEW, 202: _RUNNING}
LISTED: Final[_Answers] = {200: schema_of(Reviews, _REVIEWS)}
TRACED: Final[_Answers] = {
    200: {
        "description": "The events, the first ones first, as `GET /events` answers them.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": _EVENTS}},
    }
}


def _inlined(schema: Any, parts: Json) -> Any:
    """Return a schema with its parts in their places: OpenAPI looks for them elsewhere."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
        return {name: _inlined(value, parts) for name, value in schema.items() if name != "$defs"}
    return [_inlined(one, parts) for one in schema] if isinstance(schema, list) else schema


def _header(name: str, description: str) -> Json:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
    }


def _request() -> Json:
    schema = ReviewBody.model_json_schema()
    content = {
        "schema": _inlined(schema, schema["$defs"]),
        "example": {"code": "def f(x): return eval(x)"},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": content}},
        "parameters": [
            _header(
                "X-Session-ID", "the session of the events, 1 to 200 characters; else a new one"
            ),
            _header("Idempotency-Key", "the same key and body again: the same review"),
            _header("Prefer", "`respond-async`: 202 at once, and the review under `Location`"),
        ],
    }


REQUEST: Final = _request()
