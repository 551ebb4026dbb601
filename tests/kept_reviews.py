"""Reviews to be stored, a gateway's settings, and a wire-level stand-in for the logging service."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from conftest import API_KEY
from pydantic import SecretStr
from reviews_made import a_finding, a_review

from code_reviewer.findings import Review, Submission
from gateway.settings import GatewaySettings
from gateway.stored_reviews import ReviewEnd, ReviewStart, event_id_of
from storage import Storage

PROJECT = "shop"


class LogSink:
    """Takes `/logs` as the logging service does, and keeps what it was sent.

    `answer` may say something else, by the events that came: a status and a body.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests: list[Mapping[str, str]] = []
        self.answer: Callable[[list[dict[str, Any]]], tuple[int, bytes]] | None = None
        self.retry_after: str | None = None
        self.url = ""

    def ids(self) -> set[str]:
        return {event["event_id"] for event in self.events}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                sent = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.requests.append({**headers, "path": lines[0].split()[1]})
                status, body = self.answered(sent)
                told = f"Retry-After: {self.retry_after}\r\n" if self.retry_after else ""
                writer.write(
                    f"HTTP/1.1 {status} Said\r\n{told}Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answered(self, sent: list[dict[str, Any]]) -> tuple[int, bytes]:
        if self.answer is not None:
            return self.answer(sent)
        self.events += sent
        return 202, taken(len(sent))


def taken(accepted: int, *rejected: int) -> bytes:
    faults = [{"index": index, "errors": [{"msg": "too old"}]} for index in rejected]
    return json.dumps({"status": "queued", "accepted": accepted, "rejected": faults}).encode()


@asynccontextmanager
async def a_sink() -> AsyncIterator[LogSink]:
    sink = LogSink()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/log"
    try:
        yield sink
    finally:
        server.close()


def gateway_settings(
    database_url: str, folder: Path, logs_url: str = "http://127.0.0.1:9/log", **more: Any
) -> GatewaySettings:
    return GatewaySettings(
        database_url=database_url,
        data_dir=folder,
        logging_service_url=logs_url,
        api_key=SecretStr(API_KEY),
        **more,
    )


def a_start(**more: Any) -> ReviewStart:
    at = datetime.now(UTC)
    base = ReviewStart(
        review_id=str(event_id_of(at)),
        session_id="session-1",
        project=PROJECT,
        submission=Submission(code="def f(x): return eval(x)\n", filename="f.py", user_id="ada"),
        content_key="c" * 64,
        started_at=at,
        request_id="request-1",
    )
    return msgspec.structs.replace(base, **more)


def an_end(start: ReviewStart, review: Review | None = None, **more: Any) -> ReviewEnd:
    review = msgspec.structs.replace(
        review or a_review(a_finding()), review_id=start.review_id, session_id=start.session_id
    )
    payload = {
        "review_id": start.review_id,
        "user_id": start.submission.user_id,
        "analysis_count": 4,
        "success": True,
        "duration_ms": 25,
    }
    base = ReviewEnd(status="completed", review=review, completed=payload)
    return msgspec.structs.replace(base, **more)


async def store_one(storage: Storage, **more: Any) -> ReviewStart:
    start = a_start(**more)
    assert (await storage.begin(start)).kind == "new"
    await storage.finish(start.review_id, an_end(start))
    return start


async def rows(database: asyncpg.Connection) -> dict[str, asyncpg.Record]:
    found = await database.fetch("SELECT * FROM reviews ORDER BY created_at, review_id")
    return {str(row["review_id"]): row for row in found}
