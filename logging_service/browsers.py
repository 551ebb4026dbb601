"""What browsers are told, and what pages of other origins may do: nothing, unless asked for."""

import base64
import re
from collections.abc import Iterable
from hashlib import sha256

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from logging_service.client_address import ClientAddresses
from logging_service.face_settings import read_origins
from logging_service.hosts import is_loopback, without_port
from logging_service.settings import Settings

# Show it in no frame, guess no type, tell nobody where you were, embed it nowhere.
ALWAYS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
ONLY_TLS = (b"strict-transport-security", b"max-age=31536000")
_NOT_KEPT = (b"cache-control", b"no-store")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_TAKEN_HEADERS = (
    "Authorization",
    "Content-Encoding",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Traceparent",
    "X-API-Key",
    "X-Request-ID",
    "X-Session-ID",
)
_SHOWN_HEADERS = (
    "ETag",
    "Link",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-ID",
    "X-Session-ID",
)

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_CDN = "https://cdn.jsdelivr.net"


def admit_browsers(face: FastAPI, settings: Settings) -> None:
    """Give `face` its page /docs, and let in pages of the origins in CORS_ORIGINS."""
    face.add_route("/docs", _show_docs, include_in_schema=False)
    if settings.cors_origins:
        face.add_middleware(
            CORSMiddleware,
            allow_origins=read_origins(settings.cors_origins),
            allow_methods=_METHODS,
            allow_headers=_TAKEN_HEADERS,
            expose_headers=_SHOWN_HEADERS,
        )
    if settings.trusted_proxies:
        face.add_middleware(_ForwardedScheme, ClientAddresses(settings.trusted_proxies))


class _ForwardedScheme:
    """Takes over what a trusted proxy says: whether its client spoke TLS."""

    def __init__(self, app: ASGIApp, addresses: ClientAddresses) -> None:
        self._app = app
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "http":
            peer, _ = scope["client"] or (None, 0)
            if self._addresses.is_secure(peer, scope["headers"]):
                scope["scheme"] = "https"
        await self._app(scope, receive, send)


async def _show_docs(request: Request) -> Response:
    face: FastAPI = request.app
    page = get_swagger_ui_html(
        openapi_url=f"{request.scope['root_path']}{face.openapi_url}", title=face.title
    )
    page.headers["Content-Security-Policy"] = _policy_of(bytes(page.body))
    return page


def _policy_of(page: bytes) -> str:
    """Return the policy under which the page /docs works, with the viewer from the CDN.

    Its own script is known by its hash. What it asks is this service, and nobody else.
    """
    digests = (
        base64.b64encode(sha256(script).digest()).decode() for script in _SCRIPT.findall(page)
    )
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {_CDN} {scripts}; style-src {_CDN} 'unsafe-inline'; "
        "img-src data: https://fastapi.tiangolo.com; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def missing_headers(
    scope: Scope, headers: Iterable[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Return what an answer with `headers`, names in lower case, lacks beside ALWAYS.

    One that does not say how long it may be kept must not be: it may hold what is stored.
    """
    names = {name for name, _ in headers}
    wanted = (POLICY, _NOT_KEPT, ONLY_TLS) if _is_secure(scope) else (POLICY, _NOT_KEPT)
    return [pair for pair in wanted if pair[0] not in names]


def _is_secure(scope: Scope) -> bool:
    """Whether the client speaks TLS, and not to `localhost`, which other servers are too."""
    if scope.get("scheme") != "https":
        return False
    return not any(
        name == b"host" and is_loopback(without_port(value)) for name, value in scope["headers"]
    )
