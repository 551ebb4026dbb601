"""`GET /balance` of the query service, and the balance as gauges."""

from contextlib import suppress

from fastapi import APIRouter, Request
from starlette.responses import Response

from logging_service import metrics
from logging_service.admission import principal_of
from logging_service.balance import TERMS, Balance
from logging_service.bookkeeper import balance_as_noted, read_balance
from logging_service.errors import Forbidden, LoggingServiceError
from logging_service.event_query import refuse_unknown
from logging_service.health import answer_within
from logging_service.web import json_answer, schema_of

_SCRAPE_SECONDS = 1.0
_EXAMPLE = {
    "accepted": 1000,
    "stored": 970,
    "duplicates": 10,
    "dead_lettered": 2,
    "expired": 0,
    "waiting": 15,
    "in_flight": 3,
    "damaged": 0,
    "removed_outside": 0,
    "reappeared": 0,
    "rolled_back": 0,
    "balanced": True,
    "exact": True,
    "queue": "redis",
    "epochs": 1,
}

router = APIRouter()


@router.get("/balance", responses={200: schema_of(Balance, _EXAMPLE)})
async def show_balance(request: Request) -> Response:
    """Say what was accepted since the beginning, and what became of it.

    `accepted` + `reappeared` is the sum of `stored`, `duplicates`, `dead_lettered`, `expired`,
    `waiting`, `in_flight`, `damaged` and `removed_outside`. `removed_outside` is what somebody took
    out of the queue by hand (`FLUSHDB`, `DEL log_queue`), `rolled_back` what the queue's server no
    longer knew of when it came back, `reappeared` what it delivered again though it was done.

    While events move, `exact` is false: then a difference is told only where it is larger than
    what moved. Without the queue its terms are null.

    The numbers are those of all projects: a key needs the scope `admin`.
    """
    refuse_unknown(request.query_params.multi_items(), ())
    if principal_of(request).project is not None:
        raise Forbidden("The balance is of all projects: it takes a key with the scope 'admin'.")
    return json_answer(await read_balance(request.state.queue, request.state.books))


async def measure_balance(request: Request) -> None:
    """Bring the gauges up to date, within a second; what is not known then has no series."""
    balance = None
    with suppress(LoggingServiceError, TimeoutError):
        balance = await answer_within(
            _SCRAPE_SECONDS, lambda: balance_as_noted(request.state.queue, request.state.books)
        )
    metrics.BALANCE_EVENTS.clear()
    for term in TERMS:
        events = getattr(balance, term, None)
        if events is not None:
            metrics.BALANCE_EVENTS.labels(term).set(events)
