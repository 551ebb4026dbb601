"""The events that are asked about: sessions of code reviews over thirty days, made in batches."""

import random
from itertools import accumulate
from typing import NamedTuple

import msgspec

from bench.rows import REDACTOR
from logging_service.event_ttls import EventTtls
from logging_service.events import EventEncoder, Origin, SentEvent

DAYS = 30
EVENTS_A_SESSION = 12
USERS = 2_000
# 9,996 events: as many whole sessions as a delivery of the consumer has room for.
SESSIONS_A_BATCH = 833
_DAY = 86_400_000_000
_LONGEST_SESSION = 3_600_000_000
_SOURCES, _SOURCE_WEIGHTS = ("default", "nightly"), (9, 1)
# Two sessions of five ask a model three times, the others twice: one event in five.
_THIRD_CALL_SHARE = 0.4
_FAILED_SHARE = 0.01
# Of the 3.2 events of a session that are of no certain type, so that 1 % of all are errors.
_ERROR_SHARE = _FAILED_SHARE * EVENTS_A_SESSION / (8 - 2 * (2 + _THIRD_CALL_SHARE))
_OTHER_TYPES = ("file_opened", "file_saved", "suggestion_shown", "suggestion_accepted")
_ANALYSIS_MS, _CALL_MS, _REVIEW_MS = 40.0, 2_400.0, 9_000.0
_LONGEST_MS = 600_000.0

# By how often they are asked: each an eighth less than the one before.
MODELS = (
    ("anthropic", "claude-sonnet-4-5"),
    ("openai", "gpt-5"),
    ("openai", "gpt-4o-mini"),
    ("google", "gemini-2.5-flash"),
    ("anthropic", "claude-haiku-4-5"),
    ("openai", "gpt-4o"),
    ("google", "gemini-2.5-pro"),
    ("openai", "gpt-5-mini"),
    ("anthropic", "claude-opus-4-5"),
    ("deepseek", "deepseek-chat"),
    ("openai", "gpt-4.1"),
    ("anthropic", "claude-opus-4-1"),
    ("mistral", "codestral"),
    ("openai", "gpt-4.1-mini"),
    ("x-ai", "grok-code-fast-1"),
    ("google", "gemini-2.5-flash-lite"),
    ("ollama", "qwen3-coder:30b"),
    ("groq", "llama-3.3-70b-versatile"),
    ("openai", "gpt-5.1"),
    ("deepseek", "deepseek-reasoner"),
    ("mistral", "mistral-large"),
    ("anthropic", "claude-sonnet-4-6"),
    ("openai", "gpt-5-nano"),
    ("google", "gemini-2.0-flash"),
    ("x-ai", "grok-4-0709"),
    ("openai", "gpt-4.1-nano"),
    ("groq", "llama-3.1-8b-instant"),
    ("mistral", "mistral-nemo"),
    ("cohere", "command-r-plus"),
    ("vllm", "our-reviewer-7b"),
    ("anthropic", "claude-3-haiku"),
    ("openai", "gpt-4-turbo"),
    ("mistral", "ministral-8b"),
    ("x-ai", "grok-3-mini"),
    ("cohere", "command-r"),
    ("google", "gemini-1.5-pro"),
    ("openai", "gpt-3.5-turbo"),
    ("perplexity", "sonar-pro"),
    ("groq", "openai/gpt-oss-120b"),
    ("in-house", "reviewer-next"),
)
_MODEL_WEIGHTS = tuple(accumulate(0.875**place for place in range(len(MODELS))))

_encoder = EventEncoder(EventTtls(0), REDACTOR)


class Plan(NamedTuple):
    """How many sessions there are, the last of which end by `until`, microseconds since 2000."""

    sessions: int
    until: int

    @classmethod
    def of(cls, events: int, until: int) -> "Plan":
        """Return the plan for about so many events."""
        return cls(max(1, round(events / EVENTS_A_SESSION)), until)

    @property
    def events(self) -> int:
        """How many events there are."""
        return self.sessions * EVENTS_A_SESSION

    @property
    def batches(self) -> int:
        """How many batches they come in."""
        return -(-self.sessions // SESSIONS_A_BATCH)

    def begins(self, session: int) -> int:
        """Return when a session begins; all of them lie evenly over the days."""
        return self.moment(1 - session / self.sessions) - _LONGEST_SESSION

    def moment(self, share: float) -> int:
        """Return the moment behind which so large a share of the events lies."""
        return self.until - round(share * (DAYS * _DAY - _LONGEST_SESSION))


def session_id(session: int) -> str:
    """Return what a session is called."""
    return f"review-{session:07d}"


class Batch(NamedTuple):
    """Elements of the queue in the order of their times, and these."""

    elements: list[bytes]
    received: list[int]


def batch_of(plan: Plan, number: int) -> Batch:
    """Return a batch; each has the same payloads at the same distances every time."""
    maker = _SessionMaker(random.Random(number))  # noqa: S311 - not a secret
    first = number * SESSIONS_A_BATCH
    rows: list[tuple[int, bytes]] = []
    for session in range(first, min(first + SESSIONS_A_BATCH, plan.sessions)):
        rows += maker.rows(session, plan.begins(session))
    rows.sort()
    return Batch([element for _, element in rows], [moment for moment, _ in rows])


class _SessionMaker:
    """Makes the events of one session after the other."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def rows(self, session: int, begins: int) -> list[tuple[int, bytes]]:
        """Return the times and the elements of a session."""
        rng = self._rng
        user, commit = rng.randrange(USERS), rng.getrandbits(160)
        common = (
            f'{{"user_id":"user{user:04d}","repository":"team-{user % 40:02d}/service",'
            f'"commit":"{commit:040x}","file":"src/part_{rng.randrange(90)}/module_'
            f'{rng.randrange(900)}.py"'
        )
        source = rng.choices(_SOURCES, _SOURCE_WEIGHTS)[0]
        moment, rows = begins, []
        for event_type in self._types():
            payload = f"{common}{self._details(event_type)}}}"
            moment += round(min(rng.lognormvariate(15.4, 0.8), _LONGEST_SESSION / EVENTS_A_SESSION))
            sent = SentEvent(event_type, session_id(session), msgspec.Raw(payload.encode()))
            encoded = _encoder.encode(sent, Origin(source, None, None, moment), suspicious=False)
            rows.append((moment, encoded.element))
        return rows

    def _types(self) -> list[str]:
        rng = self._rng
        calls = 3 if rng.random() < _THIRD_CALL_SHARE else 2
        types = ["review_started", "syntax_analysis_started", "syntax_analysis_completed"]
        types += ["llm_query_sent", "llm_feedback_received"] * calls
        for _ in range(EVENTS_A_SESSION - 1 - len(types)):
            is_error = rng.random() < _ERROR_SHARE
            types.append("error_occurred" if is_error else rng.choice(_OTHER_TYPES))
        return [*types, "review_completed"]

    def _details(self, event_type: str) -> str:
        """Return what the payload of this type has beside what all have."""
        if event_type == "llm_query_sent":
            return self._call()
        if event_type == "syntax_analysis_completed":
            return f',"findings":{self._rng.randrange(9)}{self._outcome(_ANALYSIS_MS)}'
        if event_type == "review_completed":
            counts = f'{{"error":{self._rng.randrange(3)},"warning":2,"info":5}}'
            return f',"findings_by_severity":{counts}{self._outcome(_REVIEW_MS)}'
        if event_type == "error_occurred":
            return ',"error_type":"TimeoutError","error_message":"no answer in time"'
        return f',"lines":{self._rng.randrange(20, 900)}'

    def _call(self) -> str:
        rng = self._rng
        provider, model = rng.choices(MODELS, cum_weights=_MODEL_WEIGHTS)[0]
        used, answered = round(rng.lognormvariate(7.6, 0.7)), round(rng.lognormvariate(6, 0.6))
        return (
            f',"provider":"{provider}","model":"{model}","input_tokens":{used},'
            f'"cached_tokens":{used // 3},"output_tokens":{answered},'
            f'"cost":{used * 2e-6 + answered * 1e-5:.6f}{self._outcome(_CALL_MS)}'
        )

    def _outcome(self, median_ms: float) -> str:
        milliseconds = min(self._rng.lognormvariate(0, 0.7) * median_ms, _LONGEST_MS)
        success = "false" if self._rng.random() < _FAILED_SHARE else "true"
        return f',"duration_ms":{milliseconds:.2f},"success":{success}'
