"""What `POST /reviews` takes: the body, checked to the last field, and the headers beside it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from code_reviewer.findings import Options, Severity, Submission
from logging_service.errors import FieldRejected

MOST_BODY_BYTES = 256 * 1024
_MOST_SESSION, _MOST_KEY = 200, 255

TargetVersion = Literal[
    "py37", "py38", "py39", "py310", "py311", "py312", "py313", "py314", "py315"
]


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("may hold printable characters only, no line ends")
    return text


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


OneLine = Annotated[str, AfterValidator(_one_line)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReviewOptions(_Strict):
    """What a caller may choose."""

    target_version: TargetVersion | None = Field(
        default=None, description="the oldest Python that the code is for; default: the newest"
    )
    select: list[Annotated[str, Field(pattern=r"^(?:default|[A-Z]{1,10}[0-9]{0,4})$")]] | None = (
        Field(
            default=None,
            min_length=1,
            max_length=50,
            description="rules of ruff, or beginnings of them; `default` are ours",
            examples=[["default", "PL"]],
        )
    )
    llm: bool = Field(default=True, strict=True, description="false: no model is asked")
    max_llm_findings: int = Field(
        default=10, ge=0, le=50, strict=True, description="findings that the model may add"
    )
    min_severity: Severity = Field(
        default=Severity.INFO, description="findings below it are left out"
    )


class ReviewBody(_Strict):
    """Code to be reviewed."""

    code: str = Field(strict=True, description="Python, as it stands in the file")
    filename: Annotated[OneLine, Field(min_length=1, max_length=255, strict=True)] = Field(
        default="snippet.py", description="what the findings call it; nothing is read or written"
    )
    language: Literal["python"] = Field(default="python", description="no other is reviewed")
    user_id: Annotated[OneLine, BeforeValidator(_as_text), Field(max_length=200)] | None = Field(
        default=None, description="on whose behalf; goes into the events"
    )
    options: ReviewOptions = ReviewOptions()

    def submission(self) -> Submission:
        """Return it in the reviewer's own words."""
        chosen = self.options
        options = Options(
            target_version=chosen.target_version,
            select=None if chosen.select is None else tuple(chosen.select),
            llm=chosen.llm,
            max_llm_findings=chosen.max_llm_findings,
            min_severity=chosen.min_severity,
        )
        return Submission(
            code=self.code,
            filename=self.filename,
            language=self.language,
            user_id=self.user_id,
            options=options,
        )


def session_of(headers: Mapping[str, str]) -> str:
    """Return X-Session-ID, a new id unless that is 1 to 200 printable ASCII characters."""
    sent = headers.get("x-session-id", "").strip()
    good = sent.isascii() and sent.isprintable() and 0 < len(sent) <= _MOST_SESSION
    return sent if good else str(uuid4())


def idempotency_key_of(headers: Mapping[str, str]) -> str | None:
    """Return the Idempotency-Key; raises FieldRejected for one that is not 1 to 255 characters."""
    sent = headers.get("idempotency-key")
    if sent is None:
        return None
    if not (sent.isascii() and sent.isprintable() and 0 < len(sent) <= _MOST_KEY):
        raise FieldRejected("Idempotency-Key", "has to be 1 to 255 printable ASCII characters")
    return sent


_PREFERENCE = re.compile(r"\s*respond-async\s*(?:;.*)?", re.IGNORECASE)


def prefers_async(headers: Any) -> bool:
    """Whether a Prefer header (RFC 7240) asks for an answer before the work is done."""
    asked = ",".join(headers.getlist("prefer")).split(",")
    return any(_PREFERENCE.fullmatch(one) for one in asked)
