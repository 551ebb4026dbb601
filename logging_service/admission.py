"""Who asks on a route of the framework, and whether they may."""

from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.security import APIKeyHeader

from logging_service.audit import Actor
from logging_service.audit_trail import Reads
from logging_service.auth import Keyring, Principal, ReadingRule
from logging_service.client_address import ClientAddresses
from logging_service.rate_limit import RateLimiter

# How the OpenAPI document says which scope a route needs.
READ_KEY = APIKeyHeader(
    name="X-API-Key", scheme_name="key", auto_error=False, description="scope `read`"
)
WRITE_KEY = APIKeyHeader(
    name="X-API-Key", scheme_name="write_key", auto_error=False, description="scope `write`"
)
ADMIN_KEY = APIKeyHeader(
    name="X-API-Key", scheme_name="admin_key", auto_error=False, description="scope `admin`"
)


def admits(scope: str) -> Callable[[Request], Awaitable[None]]:
    """Return the dependency of a route that needs `scope`; behind it `principal_of` tells who asks.

    It raises what `Keyring.authenticate` raises, and RateLimited when the key's requests of this
    path are used up. Who reads may need no key, as the `ReadingRule` says, and has no limit then.
    """

    async def admit(request: Request) -> None:
        headers, address = request.scope["headers"], address_of(request)
        keyring: Keyring = request.state.keyring
        if scope == "read":
            rule: ReadingRule = request.state.rule
            principal = rule.admit(headers, address)
        else:
            principal = keyring.authenticate(dict(headers), scope, address)
        keyring.note_use(principal)
        request.state.principal = principal
        limiter: RateLimiter = request.state.limiter
        await limiter.require(principal, request.scope["route"].path)

    return admit


def address_of(request: Request) -> str:
    """Return the address that a request comes from, "" where it is unknown."""
    addresses: ClientAddresses = request.state.client_addresses
    return addresses.of(request.client.host if request.client else None, request.scope["headers"])


def principal_of(request: Request) -> Principal:
    """Return who asks on a route that `admits`."""
    principal: Principal = request.state.principal
    return principal


def actor_of(request: Request) -> Actor:
    """Return who asks on a route that `admits`, as the audit names it."""
    principal = principal_of(request)
    return Actor(principal.name, principal.key_id or None)


def note_read(request: Request, event_type: str, project: str | None, number: int) -> None:
    """Note for the audit that this request got `number` events or rows of a project, or of all."""
    reads: Reads = request.state.reads
    reads.note(event_type, actor_of(request), project, number)
