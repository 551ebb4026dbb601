"""An ASGI application that does nothing but answer, served with the producer's own options."""

if __name__ == "__main__" and not __package__:
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from starlette.types import Receive, Scope, Send

from logging_service.logs import configure_logs
from logging_service.server import serve
from logging_service.settings import load_settings

# As long as the producer's answer to one event.
_BODY = b'{"status":"queued","event_id":"0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10"}'
_START = {
    "type": "http.response.start",
    "status": 202,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_BODY)).encode()),
    ],
}
_END = {"type": "http.response.body", "body": _BODY}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 202 to anything, and read nothing."""
    if scope["type"] == "lifespan":
        for state in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{state}.complete"})
        return
    await send(_START)
    await send(_END)


if __name__ == "__main__":
    settings = load_settings()
    configure_logs("empty_app", settings.log_level)
    serve(app, "producer", settings)
