"""What is kept of a review, and what the ones say who have it kept."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from secrets import randbits
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from code_reviewer.call_events import dollars
from code_reviewer.findings import Counts, Review, Submission

Status = Literal["running", "completed", "degraded", "failed", "interrupted"]
RUNNING: Final = "running"
INTERRUPTED: Final = "interrupted"
COMPLETED_EVENT: Final = "review_completed"

_HEX: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ReviewStart(msgspec.Struct, frozen=True, kw_only=True):
    """A review that begins, as it was asked for.

    `idempotency_key` is as the caller sent it, `request_sha256` the digest of what has to be the
    same when it comes again.
    """

    review_id: str
    session_id: str
    project: str
    submission: Submission
    content_key: str
    started_at: datetime
    request_id: str | None = None
    idempotency_key: str | None = None
    request_sha256: str | None = None


class ReviewEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A review that ended; `completed` is the whole payload of its `review_completed`.

    `feedback` is what the model said, validated, as JSON text.
    """

    status: Status
    review: Review
    completed: Mapping[str, object]
    feedback: str | None = None


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What a list tells of a finished review, beside its verdict."""

    summary: str
    counts: Counts


class StoredReview(msgspec.Struct, frozen=True, kw_only=True):
    """A review as it lies in the database or the local buffer, without personal data and secrets.

    `submission_json` has `filename`, `language` and `options`; `code_json` is the code, where that
    is kept. `result_json` is the Review: None while it runs, after an interruption, and where a
    full buffer had to drop it. `event_json` is its `review_completed`, as it is posted.
    """

    review_id: str
    session_id: str
    project: str
    instance: str
    status: Status
    created_at: datetime
    content_key: str
    code_sha256: str
    code_length: int
    submission_json: bytes
    code_json: bytes | None = None
    user_id: str | None = None
    request_id: str | None = None
    idempotency_digest: bytes | None = None
    request_sha256: str | None = None
    finished_at: datetime | None = None
    from_cache: bool = False
    verdict: str | None = None
    outline_json: bytes | None = None
    result_json: bytes | None = None
    feedback_json: bytes | None = None
    usage_json: bytes | None = None
    cost_nanos: int | None = None
    event_json: bytes | None = None
    event_sent_at: datetime | None = None
    event_refused: str | None = None

    @property
    def review(self) -> Review | None:
        """The finished review; None where there is none."""
        return msgspec.json.decode(self.result_json, type=Review) if self.result_json else None

    @property
    def submission(self) -> dict[str, Any]:
        """What was submitted: `filename`, `language`, `options`, perhaps `code`."""
        told: dict[str, Any] = msgspec.json.decode(self.submission_json)
        if self.code_json:
            told["code"] = msgspec.json.decode(self.code_json)
        return told

    @property
    def outline(self) -> "ReviewOutline":
        """What a list tells of it."""
        told = self.submission
        ended = self.outline_json and msgspec.json.decode(self.outline_json, type=Outline)
        return ReviewOutline(
            review_id=self.review_id,
            session_id=self.session_id,
            user_id=self.user_id,
            status=self.status,
            filename=told["filename"],
            language=told["language"],
            code_length=self.code_length,
            cached=self.from_cache,
            cost_usd=dollars(self.cost_nanos),
            created_at=self.created_at,
            finished_at=self.finished_at,
            verdict=self.verdict,
            summary=ended.summary if ended else None,
            counts=ended.counts if ended else None,
        )

    @property
    def event_waits(self) -> bool:
        """Whether its `review_completed` is still to be sent."""
        return bool(self.event_json) and not (self.event_sent_at or self.event_refused)


class ReviewOutline(msgspec.Struct, frozen=True, kw_only=True):
    """A review in a list; verdict, summary and counts are None until it ends."""

    review_id: str
    session_id: str
    user_id: str | None
    status: Status
    filename: str
    language: str
    code_length: int
    cached: bool
    cost_usd: str | None
    created_at: datetime
    finished_at: datetime | None
    verdict: str | None
    summary: str | None
    counts: Counts | None


class Begun(NamedTuple):
    """What became of a start: `new`, or the review that came before with this idempotency key.

    `same` asked for the same, `different` for something else; nothing was written then.
    """

    kind: Literal["new", "same", "different"]
    stored: StoredReview | None = None


Place = tuple[datetime, str]
"""Where a review stands in a list: when it began, and its id."""


class ReviewPage(NamedTuple):
    """Reviews, newest first; `next_after` is None on the last page.

    It is `partial` when the database is away: only what waits for it is listed.
    """

    reviews: list[ReviewOutline]
    next_after: Place | None
    partial: bool


class Wanted(NamedTuple):
    """Which reviews a list is to have; None: whichever."""

    project: str | None = None
    status: str | None = None
    verdict: str | None = None
    session_id: str | None = None
    user_id: str | None = None


def canonical(review_id: str) -> str | None:
    """Return a review's id as it is stored; None for what can be none."""
    text = review_id.lower()
    return text if _HEX.fullmatch(text) else None


def event_id_of(moment: datetime) -> UUID:
    """Return a new UUIDv7 of a time."""
    millis = int(moment.timestamp() * 1000)
    return UUID(int=millis << 80 | 7 << 76 | randbits(12) << 64 | 2 << 62 | randbits(62))


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)
