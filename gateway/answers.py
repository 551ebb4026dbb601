"""The forms in which a review leaves: JSON, SARIF, Markdown, or as a stream of events."""

from collections.abc import AsyncIterator, Sequence
from typing import Literal

import msgspec
from starlette.responses import Response

from code_reviewer.findings import Review
from code_reviewer.markdown import markdown
from code_reviewer.sarif import sarif
from gateway.jobs import Job
from logging_service.errors import LoggingServiceError
from logging_service.http_preferences import prefers
from logging_service.web import problem_for

Form = Literal["json", "sarif", "markdown"]

STREAM = "text/event-stream"
_MEDIA: dict[Form, str] = {
    "json": "application/json",
    "sarif": "application/sarif+json",
    "markdown": "text/markdown",
}
_VARY = {"Vary": "Accept"}


def form_of(accept: str, format_: Form | None) -> Form:
    """Return the form that is asked for: by `format`, else by the Accept header, else JSON."""
    if format_ is not None:
        return format_
    others: Sequence[Form] = ("sarif", "markdown")
    return next((form for form in others if prefers(_MEDIA[form], accept, _MEDIA["json"])), "json")


def wants_stream(accept: str) -> bool:
    """Whether the Accept header asks for the stages as they come."""
    return prefers(STREAM, accept, _MEDIA["json"])


def answer(
    review: Review,
    form: Form,
    filename: str,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return `review` in a form; with the `code` its Markdown shows the lines."""
    headers = {**_VARY, **(headers or {})}
    if form == "json":
        return Response(msgspec.json.encode(review), 200, headers, _MEDIA[form])
    if form == "sarif":
        document = msgspec.json.encode(sarif(review, filename))
        return Response(document, 200, headers, _MEDIA[form])
    return Response(
        markdown(review, filename, code), 200, headers, f"{_MEDIA[form]}; charset=utf-8"
    )


async def stages_of(job: Job, root_path: str) -> AsyncIterator[bytes]:
    """Yield server-sent events: each `stage` as it comes, then the `result` or the `problem`.

    A comment every ten seconds without a stage keeps the connection open.
    """
    async for stage in job.follow():
        yield _event("stage", msgspec.json.encode(stage)) if stage else b": it goes on\n\n"
    try:
        yield _event("result", msgspec.json.encode(await job.result()))
    except LoggingServiceError as error:
        yield _event("problem", bytes(problem_for(error, root_path).body))


def _event(name: str, document: bytes) -> bytes:
    # JSON has no line ends.
    return b"event: %b\ndata: %b\n\n" % (name.encode(), document)
