"""`GET /analytics/*` of the query service."""

from datetime import UTC, datetime
from typing import Annotated, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from logging_service import analytics_openapi
from logging_service.admission import note_read, principal_of
from logging_service.analytics import AnalyticsReader, Subject
from logging_service.analytics_documents import Told, csv_document, json_document
from logging_service.analytics_query import (
    LlmQuery,
    PerformanceQuery,
    ReviewsQuery,
    SubjectQuery,
    UsageQuery,
    read_question,
)
from logging_service.audit import EXPORTED
from logging_service.event_query import refuse_unknown
from logging_service.http_preferences import entity_tag, is_known, prefers
from logging_service.watermark import read_watermark
from logging_service.web import release

_JSON, _CSV = "application/json", "text/csv"

router = APIRouter()


@router.head("/analytics/usage", include_in_schema=False)
@router.get("/analytics/usage", responses=analytics_openapi.USAGE)
async def show_usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Response:
    """Return what was done: events, sessions, users, the share of errors.

    Without any parameter of the last seven days. Numbers of different sessions and users past
    4,096 are estimates, and marked. Groups come with the most events first.

    Everything accepted before `watermark.complete_to` is in the answer. With `Accept: text/csv`
    the groups come as CSV, or the series where no groups were asked for. Send an answer's `ETag` as
    `If-None-Match`, and as long as nothing changes you get 304.
    """
    return await _answer(request, "usage", query)


@router.head("/analytics/llm", include_in_schema=False)
@router.get("/analytics/llm", responses=analytics_openapi.LLM)
async def show_llm(request: Request, query: Annotated[LlmQuery, Query()]) -> Response:
    """Return what models were asked, used and cost, and how long they took.

    Costs are US dollars, exact to the nano-dollar: read the JSON number as a decimal one. Calls
    without a price count in `unpriced_queries`. Percentiles are off by one in a hundred at the
    most. Groups come with the highest cost first. See `/analytics/usage` for watermark, CSV
    and ETag.
    """
    return await _answer(request, "llm", query)


@router.head("/analytics/performance", include_in_schema=False)
@router.get("/analytics/performance", responses=analytics_openapi.PERFORMANCE)
async def show_performance(
    request: Request, query: Annotated[PerformanceQuery, Query()]
) -> Response:
    """Return how long operations took and how often they went well, together and each.

    Operations are `review`, `syntax_analysis`, `llm_query`, and by its own name every other event
    type with a `duration_ms`. Groups come with the most frequent first. See `/analytics/usage` for
    watermark, CSV and ETag.
    """
    return await _answer(request, "performance", query)


@router.head("/analytics/reviews", include_in_schema=False)
@router.get("/analytics/reviews", responses=analytics_openapi.REVIEWS)
async def show_reviews(request: Request, query: Annotated[ReviewsQuery, Query()]) -> Response:
    """Return how many reviews ended, how well, how soon, what each cost, and what they found.

    A review's cost and tokens are those of the model calls of its session. Findings are those that
    were reported. Groups come with the most reviews first. See `/analytics/usage` for watermark,
    CSV and ETag.
    """
    return await _answer(request, "reviews", query)


class _Form(NamedTuple):
    """How an answer is sent, and how it is known again."""

    is_csv: bool
    headers: dict[str, str]


async def _answer(request: Request, subject: Subject, query: SubjectQuery) -> Response:
    refuse_unknown(
        request.query_params.multi_items(), type(query).model_fields, repeatable={"group_by"}
    )
    now = datetime.now(UTC)
    asked = read_question(subject, query, now, principal_of(request).project)
    reader: AnalyticsReader = request.state.analytics
    # Before the answer: what changes between the two makes the next request compute again.
    form = _form(request, now, await reader.version())
    if is_known(form.headers["ETag"], ",".join(request.headers.getlist("if-none-match"))):
        return Response(status_code=304, headers=form.headers)
    watermark = await read_watermark(request.state.queue)
    answer = await reader.answer(asked.question)
    told = Told(asked.question, asked.zone, answer)
    following = asked.cursor_behind(answer.after) if answer.after else None
    headers = form.headers | (_link(request, following) if following else {})
    if not form.is_csv:
        return Response(json_document(told, following, watermark), 200, headers, _JSON)
    if request.method == "GET":
        note_read(request, EXPORTED, asked.question.source, len(answer.groups or answer.series))
    name = f"{subject}-{answer.start.astimezone(asked.zone):%Y-%m-%d}.csv"
    headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(csv_document(told), 200, headers, f"{_CSV}; charset=utf-8; header=present")


def _form(request: Request, now: datetime, version: str) -> _Form:
    is_csv = prefers(_CSV, ",".join(request.headers.getlist("accept")), _JSON)
    # The minute: an unchanged store's answer still moves on with now, and so does its watermark.
    # The project: what one may read does not tell another that nothing changed.
    project = principal_of(request).project
    asked = (request.url.path, request.url.query, str(is_csv), f"{project!r}")
    parts = (release(), *asked, version, f"{now:%F %R}")
    return _Form(
        is_csv,
        {
            "ETag": entity_tag(*parts),
            # An answer may be kept, and has to be asked for again: events come at any time.
            "Cache-Control": "private, no-cache",
            "Vary": "Accept, X-API-Key, Authorization",
        },
    )


def _link(request: Request, cursor: str) -> dict[str, str]:
    sent = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"Link": f'<?{urlencode([*sent, ("cursor", cursor)])}>; rel="next"'}
