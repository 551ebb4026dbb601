"""`POST /erasures` of the query service: a session or a user goes, and what they said."""

from typing import Self

import msgspec
from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from logging_service.admission import actor_of, admits, principal_of
from logging_service.erasing import erase, subject_of
from logging_service.erasure import Erased
from logging_service.errors import Forbidden
from logging_service.event_query import Text, refuse_unknown
from logging_service.web import body_as, json_answer, schema_of

_MOST_BODY_BYTES = 16 * 1024
_WAIT_SECONDS = 30.0
_ERASE_KEY = APIKeyHeader(
    name="X-API-Key", scheme_name="erase_key", auto_error=False, description="scope `erase`"
)


class ErasureOrder(BaseModel):
    """Who is to be erased: a session, or a user."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    session_id: int | Text | None = Field(default=None, description="the session, as it was sent")
    user_id: int | Text | None = Field(default=None, description="the user, as in payloads")
    project: Text | None = Field(
        default=None, description="only events of this project; default: all that the key reads"
    )

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.session_id is None) == (self.user_id is None):
            raise ValueError("has to have one of session_id and user_id")
        if "" in {self.session_id, self.user_id}:
            raise ValueError("the id may not be empty")
        return self


class ErasureDone(msgspec.Struct):
    """What was erased; `subject` stands for who it was in the audit."""

    subject: str
    erased: Erased


_DONE_EXAMPLE = {
    "subject": "5d41402abc4b2a76",
    "erased": {
        "events": 12,
        "ledger_entries": 3,
        "reviews": 1,
        "dead_letters": 0,
        "stored_reviews": 1,
    },
}
TYPES = (ErasureDone, Erased)
router = APIRouter(dependencies=[Security(_ERASE_KEY), Depends(admits("erase"))])


@router.post(
    "/erasures",
    responses={200: schema_of(ErasureDone, _DONE_EXAMPLE)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ErasureOrder.model_json_schema(),
                    "example": {"user_id": "user123"},
                }
            },
        }
    },
)
async def erase_subject(request: Request) -> Response:
    """Erase what a session or a user said, in events, the ledger, roll-ups and dead letters.

    That the events happened stays, with what is counted of them: tokens, costs and durations. With
    a user go the sessions in which no other user is named.

    It answers when it is done. What was accepted before is waited for, up to 30 seconds; where that
    is not enough nothing was erased, and the answer is 409. What fails half-way is asked again. A
    key without the scope `admin` erases in its own project.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    order = await body_as(request, ErasureOrder, _MOST_BODY_BYTES)
    project = _project_of(request, order.project)
    session, user = order.session_id, order.user_id
    told = ("session", f"{session}") if session is not None else ("user", f"{user}")
    settings = request.state.settings
    subject = subject_of(settings, *told, project)  # type: ignore[arg-type]
    erased = await erase(
        settings, request.state.queue, subject, actor_of(request), wait_seconds=_WAIT_SECONDS
    )
    return json_answer(ErasureDone(subject.pseudonym, erased))


def _project_of(request: Request, asked: str | None) -> str | None:
    own = principal_of(request).project
    if own is not None and asked not in {None, own}:
        raise Forbidden(f"This key erases in its own project, '{own}', alone.")
    return own or asked
