"""The dead letters over HTTP: seen and replayed, by whom has a key with the scope `admin`."""

import struct
from typing import Annotated, Self

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Security
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response

from logging_service.admission import ADMIN_KEY, actor_of, admits, note_read
from logging_service.audit import DEAD_LETTERS_READ
from logging_service.dead_letters import Refusal, ShownLetter, page_of, replay, shown
from logging_service.event_query import (
    EventTypeName,
    Text,
    position_in,
    refuse_unknown,
    sealed_cursor,
)
from logging_service.ports import DeadLetters, LetterFilter, LetterKey
from logging_service.web import body_as, json_answer, schema_of

_MOST_REPLAYED = 10_000
_MOST_REPLAYED_BYTES = 64 * 1024 * 1024
_MOST_BODY_BYTES = 512 * 1024
_POSITION = struct.Struct(">q")

LetterId = Annotated[int, Field(ge=1, le=2**63 - 1)]
Reason = Annotated[Text, Field(min_length=1, max_length=100)]


class LetterQuery(BaseModel):
    """The parameters of GET /dead-letters."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    reason: Reason | None = Field(default=None, description="put aside for this reason")
    event_type: EventTypeName | None = Field(default=None, description="of this event type")
    replayed: bool = Field(
        default=False, description="true: those that were replayed in the last seven days"
    )
    limit: int = Field(default=50, ge=1, le=1000, description="letters on a page")
    cursor: str | None = Field(
        default=None, description="`next_cursor` of the page before, with the same filter"
    )


class ReplayOrder(BaseModel):
    """Which letters are to be replayed: these `ids`, those with this `reason`, or `all`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ids: Annotated[list[LetterId], Field(min_length=1, max_length=_MOST_REPLAYED)] | None = None
    reason: Reason | None = None
    all: bool = False
    after: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(
        default=0, description="only letters with higher ids: `after` of the answer before"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if sum((self.ids is not None, self.reason is not None, self.all)) != 1:
            raise ValueError("has to have one of ids, reason and all")
        return self

    @property
    def wanted(self) -> LetterFilter:
        """Which letters these are."""
        return LetterFilter(ids=tuple(self.ids) if self.ids else None, reason=self.reason)


class LetterPage(msgspec.Struct):
    """Dead letters, the newest first."""

    dead_letters: list[ShownLetter]
    next_cursor: str | None


class Replayed(msgspec.Struct):
    """How many letters are in the queue again, which were refused and stay.

    `remaining` letters that were asked for were not reached: ask again with `after`.
    """

    replayed: int
    refused: list[Refusal]
    remaining: int
    after: int | None


_LETTER_EXAMPLE = {
    "id": 7,
    "reason": "conflict",
    "detail": "an event with this id and time is stored with other content",
    "sqlstate": None,
    "attempts": 2,
    "first_seen": "2026-11-23T10:00:00.125Z",
    "last_seen": "2026-11-23T11:30:00.5Z",
    "replayed_at": None,
    "size": 161,
    "event_id": "0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10",
    "timestamp": "2026-11-23T10:00:00.123456Z",
    "event_type": "llm_query_sent",
    "session_id": "123",
    "source": "default",
    "payload": {"model": "gpt-4o", "tokens_used": 812},
}
_PAGE_EXAMPLE = {"dead_letters": [_LETTER_EXAMPLE], "next_cursor": None}
_REPLAYED_EXAMPLE = {
    "replayed": 12,
    "refused": [{"id": 9, "detail": "the bytes are damaged: their checksum differs"}],
    "remaining": 0,
    "after": None,
}


router = APIRouter(dependencies=[Security(ADMIN_KEY), Depends(admits("admin"))])


def _letters(request: Request) -> DeadLetters:
    letters: DeadLetters = request.state.dead_letters
    return letters


@router.get("/dead-letters", responses={200: schema_of(LetterPage, _PAGE_EXAMPLE)})
async def list_dead_letters(request: Request, query: Annotated[LetterQuery, Query()]) -> Response:
    """Return dead letters, the newest first: events that cannot be stored, and why."""
    refuse_unknown(request.query_params.multi_items(), LetterQuery.model_fields)
    wanted = LetterFilter(None, query.reason, query.event_type, query.replayed)
    beyond = 0
    if query.cursor is not None:
        (beyond,) = _POSITION.unpack(position_in(query.cursor, wanted, _POSITION.size))
    page, following = await page_of(_letters(request), wanted, beyond, query.limit)
    cursor = None if following is None else sealed_cursor(_POSITION.pack(following), wanted)
    note_read(request, DEAD_LETTERS_READ, None, len(page))
    return json_answer(LetterPage(page, cursor))


@router.get("/dead-letters/{letter_id}", responses={200: schema_of(ShownLetter, _LETTER_EXAMPLE)})
async def show_dead_letter(
    request: Request, letter_id: Annotated[int, Path(ge=1, le=2**63 - 1)]
) -> Response:
    """Return one dead letter, also one that was replayed."""
    refuse_unknown(request.query_params.multi_items(), ())
    letter = (await _letters(request).letters([letter_id])).get(letter_id)
    if letter is None:
        raise HTTPException(404, f"There is no dead letter {letter_id}.")
    note_read(request, DEAD_LETTERS_READ, None, 1)
    return json_answer(shown(letter))


@router.post(
    "/dead-letters/replay",
    responses={200: schema_of(Replayed, _REPLAYED_EXAMPLE)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ReplayOrder.model_json_schema(),
                    "example": {"reason": "rejected"},
                }
            },
        }
    },
)
async def replay_dead_letters(request: Request) -> Response:
    """Put the events of dead letters into the queue again: these `ids`, a `reason`, or `all`.

    Each is checked as a new event is; what cannot be read or breaks a rule is refused and stays.
    An event that cannot be stored this time either brings its letter back, with one attempt more.
    A request reaches 10,000 letters or 64 MiB of them, those with the lowest ids first; ask again
    with `after` until `remaining` is 0.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    order = await body_as(request, ReplayOrder, _MOST_BODY_BYTES)
    return json_answer(await _replay(request, order))


async def _replay(request: Request, order: ReplayOrder) -> Replayed:
    letters = _letters(request)
    keys = _within_bounds(await letters.keys(order.wanted, _MOST_REPLAYED, beyond=order.after))
    replayed, refused = 0, []
    queue, redactor = request.state.queue, request.state.redactor()
    async for step in replay(letters, queue, keys, actor_of(request), redactor):
        replayed += step.replayed
        refused += step.refused
    reached = keys[-1].id if keys else order.after
    remaining = await letters.count(order.wanted, reached) if keys else 0
    known = {key.id for key in keys}
    refused += [
        Refusal(asked, "there is no such letter, or it was replayed")
        for asked in sorted(set(order.ids or ()) - known)
        if asked > order.after and (asked <= reached or not remaining)
    ]
    return Replayed(replayed, refused, remaining, reached if remaining else None)


def _within_bounds(keys: list[LetterKey]) -> list[LetterKey]:
    size = 0
    for place, key in enumerate(keys):
        size += key.size
        if place and size > _MOST_REPLAYED_BYTES:
            return keys[:place]
    return keys
