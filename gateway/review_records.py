"""Makes what is kept of a review: without personal data and secrets, as events are kept."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Final

import msgspec

from code_reviewer.findings import Finding, Review, Submission, Usage
from code_reviewer.prompt import named_literals
from gateway.scrubbing import Scrubber
from gateway.stored_reviews import (
    COMPLETED_EVENT,
    INTERRUPTED,
    Outline,
    ReviewEnd,
    ReviewStart,
    StoredReview,
    event_id_of,
)
from logging_service.facts import facts_of
from logging_service.redaction import Redactor, Rules

_NANOS: Final = 10**9
_MOST_NANOS: Final = 2**63 - 1
_PASSWORDS: Final = frozenset({"S105", "S106", "S107"})
_BARE: Final = 4
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_encode = msgspec.json.Encoder(enc_hook=str).encode


class Records:
    """Makes records; with `stores_code` the code is kept too, its secrets taken out line by line.

    Without `tells` they have no `review_completed`.

    Equal users and sessions get the same tokens as in events, by `rules` and `key`. What a review
    says is searched for what `rules` find in texts, whatever a field is called.
    """

    def __init__(self, rules: Rules, key: bytes, *, stores_code: bool, tells: bool) -> None:
        self._tells = tells
        self._fields = Redactor(rules, key)
        self._texts = Redactor(replace(rules, fields=frozenset(), exempt=frozenset()), key)
        self._scrub = Scrubber(rules) if stores_code else None

    def started(self, start: ReviewStart, instance: str) -> StoredReview:
        """Return the record of a review that runs in `instance`."""
        submission, key = start.submission, start.idempotency_key
        return StoredReview(
            review_id=start.review_id,
            session_id=self.session(start.session_id),
            project=start.project,
            instance=instance,
            status="running",
            created_at=start.started_at,
            content_key=start.content_key,
            code_sha256=sha256(submission.code.encode(errors="surrogatepass")).hexdigest(),
            code_length=len(submission.code),
            submission_json=self._submission(submission),
            code_json=self._code(submission.code),
            user_id=self.user(submission.user_id) if submission.user_id else None,
            request_id=start.request_id and self.session(start.request_id),
            idempotency_digest=sha256(key.encode()).digest() if key is not None else None,
            request_sha256=start.request_sha256,
        )

    def ended(self, begun: StoredReview, code: str, end: ReviewEnd, at: datetime) -> StoredReview:
        """Return the record of a review of `code` that ended, with its `review_completed`."""
        review = self._cleaned(end.review, begun, _passwords(end.review.findings, code))
        outline = Outline(summary=review.summary, counts=review.counts)
        return msgspec.structs.replace(
            begun,
            status=end.status,
            finished_at=at,
            from_cache=review.cached,
            verdict=review.verdict,
            outline_json=_encode(outline),
            result_json=_encode(review),
            feedback_json=self._feedback(end.feedback),
            usage_json=_encode(review.llm.usage),
            cost_nanos=_nanos(review),
            event_json=self._event(begun, end.completed, at),
        )

    def interrupted(self, begun: StoredReview, at: datetime) -> StoredReview:
        """Return the record of a review that nobody will end, with its `review_completed`."""
        payload: dict[str, object] = {
            "review_id": begun.review_id,
            "user_id": begun.user_id,
            "analysis_count": 0,
            "success": False,
            "status": INTERRUPTED,
            "verdict": None,
            "degraded_reasons": [INTERRUPTED],
            "findings_total": None,
            "cached": False,
            # How long it ran is not known; until now is how long nobody noticed.
            "duration_ms": None,
        }
        event = self._event(begun, payload, at)
        return msgspec.structs.replace(
            begun, status="interrupted", finished_at=at, event_json=event
        )

    def session(self, text: str) -> str:
        """Return how a session's id, or another plain text, is stored."""
        return self._fields.text(text.encode(errors="replace")).text.decode().replace("\0", "")

    def user(self, user_id: str) -> str | None:
        """Return how a user's id is stored, as analytics and erasure know it."""
        [(user, _, _)] = facts_of([self._fields.payload(_encode({"user_id": user_id})).text])
        return user

    def _submission(self, submission: Submission) -> bytes:
        told = {
            "filename": submission.filename,
            "language": submission.language,
            "options": submission.options,
        }
        return self._texts.payload(_encode(told)).text

    def _code(self, code: str) -> bytes | None:
        return _encode(self._scrub(code)[0]) if self._scrub else None

    def _cleaned(self, review: Review, begun: StoredReview, passwords: Sequence[str]) -> Review:
        # A number that looks like that of a card would become a text.
        plain = msgspec.structs.replace(
            review, llm=msgspec.structs.replace(review.llm, usage=Usage())
        )
        cleaned = msgspec.json.decode(self._texts.payload(_encode(plain)).text, type=Review)
        return msgspec.structs.replace(
            cleaned,
            review_id=begun.review_id,
            session_id=begun.session_id,
            llm=msgspec.structs.replace(cleaned.llm, usage=review.llm.usage),
            findings=tuple(
                _usable(plain, kept, passwords)
                for plain, kept in zip(review.findings, cleaned.findings, strict=True)
            ),
        )

    def _feedback(self, feedback: str | None) -> bytes | None:
        if feedback is None:
            return None
        try:
            told = msgspec.json.decode(feedback)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            told = feedback
        return self._texts.payload(_encode(told)).text

    def _event(
        self, begun: StoredReview, payload: Mapping[str, object], at: datetime
    ) -> bytes | None:
        if not self._tells:
            return None
        event = {
            "event_id": event_id_of(at),
            "timestamp": at,
            "event_type": COMPLETED_EVENT,
            "session_id": begun.session_id,
            "request_id": begun.request_id,
            "payload": msgspec.Raw(self._fields.payload(_encode(payload)).text),
        }
        return _encode({name: value for name, value in event.items() if value is not None})


def _passwords(findings: Iterable[Finding], code: str) -> list[str]:
    """Return the texts that ruff or a name calls passwords, long ones first."""
    lines = _LINE_END.split(code)
    places = {(one.start, one.end) for one in findings if one.rule in _PASSWORDS}
    found = []
    for start, end in places.union(named_literals(code)):
        if 0 < start.line == end.line <= len(lines):
            text = lines[start.line - 1][start.column - 1 : end.column - 1]
            bare = text.lstrip("bBfFrRuU").strip("\"'")
            found.append(bare if len(bare) >= _BARE else text)
    return sorted(filter(None, found), key=len, reverse=True)


def _usable(plain: Finding, cleaned: Finding, passwords: Sequence[str]) -> Finding:
    """Return a finding without passwords in its words or edits that hold what is not kept.

    What was replaced in them would be put into somebody's code.
    """
    words = cleaned.message
    for text in passwords:
        words = words.replace(text, "[secret]")
    cleaned = msgspec.structs.replace(cleaned, message=words)
    if (
        cleaned.fix
        and cleaned.fix.message
        and any(text in cleaned.fix.message for text in passwords)
    ):
        wordless = msgspec.structs.replace(cleaned.fix, message=None)
        cleaned = msgspec.structs.replace(cleaned, fix=wordless)
    if not plain.fix or not cleaned.fix:
        return cleaned
    tells = any(text in edit.text for edit in plain.fix.edits for text in passwords)
    if plain.fix.edits == cleaned.fix.edits and not tells:
        return cleaned
    fix = msgspec.structs.replace(cleaned.fix, applicability="display", edits=())
    return msgspec.structs.replace(cleaned, fix=fix)


def _nanos(review: Review) -> int | None:
    """Return what a review's own calls cost, in nano-dollars; None where that is not known."""
    if review.cached:
        return 0
    try:
        nanos = int(Decimal(review.llm.cost_usd or "nan") * _NANOS)
    except (InvalidOperation, ValueError, OverflowError):
        return None
    return min(max(nanos, 0), _MOST_NANOS)
