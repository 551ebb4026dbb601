"""Where Redis is, as its URL says: a server, or sentinels that know which server it is."""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379}
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = {
    "redis": (),
    "rediss": (*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname"),
    "redis+sentinel": ("sentinel_password",),
}
_CHOICES = {"ssl_cert_reqs": ("required", "none"), "ssl_check_hostname": ("true", "false")}
_MOST_SENTINELS = 9
_ALLOWED = (
    "allowed is redis://host:port/0, rediss://host:port/0 or "
    "redis+sentinel://host:port,host:port/service/0"
)


class Place(NamedTuple):
    """A host and a port that something listens on."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A server and how to enter it; with a `service`, `places` are the sentinels to ask for it.

    Each sentinel is there once: a majority of them is one of different ones.

    With `tls`, everything is encrypted and the server has to prove its name.
    """

    places: tuple[Place, ...]
    service: str | None
    database: int
    username: str | None
    password: str | None = field(repr=False)
    sentinel_password: str | None = field(repr=False)
    tls: ssl.SSLContext | None


def parse_redis_url(url: str) -> RedisAddress:
    """Read a URL and the files that it names; raises ValueError, which repeats no secret."""
    parts = _split(url)
    login, _, places = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    service, database = _service_and_database(parts)
    options = _options(parts)
    is_sentinel = service is not None
    return RedisAddress(
        places=tuple(
            dict.fromkeys(
                _place(place, _PORTS[parts.scheme])
                for place in (places.split(",") if is_sentinel else [places])
            )
        ),
        service=service,
        database=database,
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_password=options.get("sentinel_password"),
        tls=_tls(options) if parts.scheme == "rediss" else None,
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_ALLOWED) from None
    if parts.scheme not in _PORTS or not parts.netloc:
        raise ValueError(_ALLOWED)
    if parts.fragment:
        raise ValueError("a # has to be written as %23")
    if parts.netloc.count(",") >= _MOST_SENTINELS:
        raise ValueError(f"at most {_MOST_SENTINELS} sentinels can be named")
    return parts


def _place(text: str, default_port: int) -> Place:
    try:
        parts = urlsplit(f"//{text}")
        port = default_port if parts.port is None else parts.port
    except ValueError:
        # What looks like a port may be the half of a password: it is not repeated.
        raise ValueError("a port has to be a number from 1 to 65535") from None
    if port == 0:
        raise ValueError("a port has to be a number from 1 to 65535")
    if not re.fullmatch(r"[^\s,/]+", parts.hostname or ""):
        raise ValueError(_ALLOWED)
    return Place(str(parts.hostname), port)


def _service_and_database(parts: SplitResult) -> tuple[str | None, int]:
    if parts.scheme != "redis+sentinel":
        match = re.fullmatch(r"/?([0-9]{0,5})", parts.path)
        if match is None:
            raise ValueError("the path has to be the number of a database, such as /0")
        return None, int(match[1] or 0)
    match = re.fullmatch(r"/([^/]+)(?:/([0-9]{0,5}))?", parts.path)
    if match is None:
        raise ValueError("the path has to be the service's name and the database: /mymaster/0")
    return unquote(match[1]), int(match[2] or 0)


def _options(parts: SplitResult) -> dict[str, str]:
    allowed = _OPTIONS[parts.scheme]
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in options.items():
        if name not in allowed:
            raise ValueError(f"of options, {parts.scheme}:// knows {', '.join(allowed) or 'none'}")
        choices = _CHOICES.get(name)
        if choices and value not in choices:
            raise ValueError(f"{name} has to be {' or '.join(choices)}")
        if name in _TLS_FILES and not Path(value).is_absolute():
            raise ValueError(f"{name} has to be the absolute path of a file")
    return options


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    authority, certificate, key = (options.get(name) for name in _TLS_FILES)
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            # Without a password here, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        files = ", ".join(name for name in _TLS_FILES if name in options)
        raise ValueError(f"{files}: {error.strerror or error}") from None
    if options.get("ssl_check_hostname") == "false":
        context.check_hostname = False
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
