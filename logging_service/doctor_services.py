"""What an examination asks the services over HTTP: do they answer, how are they, what of keys."""

import asyncio
import errno
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

from logging_service.doctor_findings import (
    Check,
    Examined,
    Finding,
    Status,
    clock_finding,
    examine_all,
    failure,
    ok,
    warning,
)
from logging_service.health import answer_within
from logging_service.hosts import reached_at
from logging_service.settings import Settings, project_root
from logging_service.tls import TlsFiles, certificate_in
from logging_service.web import release

_ASK_SECONDS = 1.9
_MOST_BYTES = 262_144
_UNAUTHENTICATED, _TOO_MANY = 401, 429
# The header has whole seconds, and is made anew once a second.
_DATE_AFTER_SECONDS, _DATE_UNCERTAIN_SECONDS = 1.0, 1.0
_NOT_HTTP = (
    OSError,
    ValueError,
    LookupError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
)
_CLIENT_URL = "http://localhost:8001/log"


class _Face(NamedTuple):
    """One of our servers: its name, and how to start it."""

    service: str
    settings_name: str
    start: str

    @property
    def variable(self) -> str:
        return f"{self.settings_name.upper()}_PORT"


_FACES = (
    _Face("producer", "producer", "`logging-service producer`"),
    _Face("consumer", "metrics", "`logging-service consumer`"),
    _Face("query_service", "query_service", "`logging-service query`"),
    _Face("gateway", "gateway", "`python main.py`"),
)


class _Address(NamedTuple):
    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, face: _Face, settings: Settings) -> Self:
        name = face.settings_name
        host, port = getattr(settings, f"{name}_host"), getattr(settings, f"{name}_port")
        return cls(reached_at(host), port, settings.tls_files(name) is not None)

    @property
    def place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Answer(NamedTuple):
    """What came back, the certificate that was shown, and when by our clock the way was half."""

    status: int
    headers: Mapping[str, str]
    told: Mapping[str, Any]
    certificate: bytes | None
    moment: float
    took: float

    @property
    def service(self) -> object:
        return self.told.get("service")


class _Silent(Exception):
    """Nothing answers, or not as HTTP; `is_absent` where nothing listens."""

    def __init__(self, reason: str, *, is_absent: bool = False) -> None:
        super().__init__(reason)
        self.is_absent = is_absent


async def examine_services(examined: Examined, key: str | None) -> list[Finding]:
    """Return how each service says that it is; `key` is sent to those that show who they are."""
    settings = examined.settings
    answers: dict[str, _Answer] = {}

    def look(face: _Face) -> Check:
        return Check(face.service, lambda: _look(face, settings, key, answers), seconds=4.5)

    # In the memory mode the producer stores by itself.
    without = {"consumer"} if settings.queue_is_memory else set()
    found = await examine_all(look(face) for face in _FACES if face.service not in without)
    if answers:
        found.append(_clock(answers))
    return found + await examine_all([Check("client", lambda: _client(examined, answers))])


async def _look(
    face: _Face, settings: Settings, key: str | None, answers: dict[str, _Answer]
) -> list[Finding]:
    address = _Address.of(face, settings)
    if face.service == "gateway" and not (project_root() / "main.py").is_file():
        return [ok(face.service, "absent: there is no main.py")]
    try:
        answer = await _get(address, {})
    except _Silent as error:
        return [_silent(face, address, error)]
    if answer.service != face.service:
        other = f"something else answers at {address.place}: HTTP {answer.status}"
        return [_taken(face, f"{other}, no health of ours")]
    answers[face.service] = answer
    found = [_health(face, address, answer)]
    files = settings.tls_files(face.settings_name)
    if files and answer.certificate != _certificate_of(files):
        shows = f"{address.place} shows another certificate than {files.certificate}"
        found.append(warning(f"{face.service}_tls", shows, "restart it: it reads the file then"))
    elif key and key.isascii() and key.isprintable() and face.service != "consumer":
        found += await _judge_key(face, address, key)
    return found


def _certificate_of(files: TlsFiles) -> bytes | None:
    try:
        return certificate_in(files.certificate)
    except (OSError, ValueError):
        return None


def _silent(face: _Face, address: _Address, error: _Silent) -> Finding:
    if not error.is_absent:
        return _taken(face, f"what listens at {address.place} does not answer as HTTP: {error}")
    found = f"nothing listens at {address.place}"
    advice = f"{face.start}, or `logging-service up` for all of it; its last line says why it ends"
    judged = warning if face.service == "gateway" else failure
    return judged(face.service, found, advice)


def _taken(face: _Face, found: str) -> Finding:
    advice = f"`ss -ltnp` says who has the port: stop that, or set {face.variable} to another"
    # A consumer works on where its port is taken.
    judged = warning if face.service == "consumer" else failure
    return judged(face.service, found, advice)


def _health(face: _Face, address: _Address, answer: _Answer) -> Finding:
    status, version = answer.told.get("status"), answer.told.get("version")
    found = f"{status} at {address.place}, {version}"
    faults = [
        f"{name}: {dependency.get('detail') or dependency.get('status')}"
        for name, dependency in _mapping(answer.told.get("dependencies")).items()
        if isinstance(dependency, dict) and dependency.get("status") != "ok"
    ]
    warnings = [str(text) for text in answer.told.get("warnings") or ()]
    told = "; ".join([found, *faults, *warnings])
    if status == "unavailable":
        return failure(face.service, told, "mend what it names, and see its log")
    if status != "ok" or warnings:
        return warning(face.service, told, "mend what it names; it goes on meanwhile")
    if release() not in {"unknown", version}:
        other = f"{told}; this is {release()}"
        return warning(face.service, other, "restart it: it is of another release")
    return ok(face.service, told)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


async def _judge_key(face: _Face, address: _Address, key: str) -> list[Finding]:
    check = f"{face.service}_api_key"
    try:
        answer = await _get(address, {"X-API-Key": key})
    except _Silent as error:
        return [failure(check, str(error), "ask again")]
    if answer.status == _UNAUTHENTICATED:
        advice = "give it the same API_KEY and restart it, or use the one that it was started with"
        return [failure(check, "API_KEY is not a key that it knows", advice)]
    if answer.status == _TOO_MANY:
        found = "not told: wrong keys came from this address too often (AUTH_FAILURE_LIMIT)"
        return [warning(check, found, "wait a minute, and ask again")]
    report = _mapping(answer.told.get("api_key"))
    if not report:
        return []
    scopes = ", ".join(map(str, report.get("scopes") or ()))
    return [ok(check, f"API_KEY is good for {scopes}")]


def _clock(answers: Mapping[str, _Answer]) -> Finding:
    found: list[Finding] = []
    for service, answer in answers.items():
        with suppress(ValueError, TypeError):
            date = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
            offset = date + _DATE_AFTER_SECONDS - answer.moment
            uncertain = _DATE_UNCERTAIN_SECONDS + answer.took / 2
            one = clock_finding("services_clock", offset, uncertain)
            found.append(msgspec.structs.replace(one, found=f"{service}: {one.found}"))
    order: tuple[Status, ...] = ("failure", "warning")
    for status in order:
        if bad := [one for one in found if one.status == status]:
            return bad[0]
    return ok("services_clock", "agree with this host's clock")


async def _client(examined: Examined, answers: Mapping[str, _Answer]) -> list[Finding]:
    check, named = "client", examined.named
    if named.get("LOGGING_ENABLED", "true").strip().lower() in {"false", "0", "no", "off"}:
        return [
            warning(check, "LOGGING_ENABLED=false: the Python client sends nothing", "unset it")
        ]
    url = named.get("LOGGING_SERVICE_URL") or _CLIENT_URL
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = _Address(reached_at(parts.hostname or ""), port, parts.scheme == "https")
    except ValueError:
        return [failure(check, "LOGGING_SERVICE_URL is no URL", f"such as {_CLIENT_URL}")]
    producer = _Address.of(_FACES[0], examined.settings)
    if address == producer:
        return [ok(check, f"the Python client sends to the producer, {address.place}")]
    with suppress(_Silent):
        if (await _get(address, {})).service == "producer":
            return [ok(check, f"the Python client sends to the producer at {address.place}")]
    found = f"the Python client sends to {address.place}, where no producer answers"
    scheme = "https" if producer.tls else "http"
    advice = f"LOGGING_SERVICE_URL={scheme}://{producer.place}/log"
    judged = warning if "producer" in answers else failure
    return [judged(check, found, advice)]


async def _get(address: _Address, headers: Mapping[str, str]) -> _Answer:
    """Ask for /health; raises _Silent where no HTTP comes back in time."""
    try:
        return await answer_within(_ASK_SECONDS, lambda: _exchange(address, headers))
    except TimeoutError as error:
        raise _Silent(str(error)) from None
    except _NOT_HTTP as error:
        is_absent = getattr(error, "errno", None) in {errno.ECONNREFUSED, errno.EADDRNOTAVAIL}
        raise _Silent(str(error) or type(error).__name__, is_absent=is_absent) from None


async def _exchange(address: _Address, headers: Mapping[str, str]) -> _Answer:
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=_any_certificate() if address.tls else None
    )
    try:
        shown = writer.get_extra_info("ssl_object")
        lines = {"Host": address.place, "Connection": "close", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        began = time.time()
        writer.write(f"GET /health HTTP/1.1\r\n{head}\r\n".encode())
        text = await reader.readuntil(b"\r\n\r\n")
        took = time.time() - began
        first, *rest = text.decode("latin-1").split("\r\n")
        told = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in rest)
        }
        status = int(first.split(" ")[1]) if first.startswith("HTTP/") else 0
        body = await reader.read(_MOST_BYTES)
        while not reader.at_eof() and len(body) < _MOST_BYTES:
            body += await reader.read(_MOST_BYTES)
        certificate = shown.getpeercert(binary_form=True) if shown else None
        return _Answer(status, told, _json(body), certificate, began + took / 2, took)
    finally:
        writer.transport.abort()


def _json(body: bytes) -> Mapping[str, Any]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _mapping(msgspec.json.decode(body))
    return {}


def _any_certificate() -> ssl.SSLContext:
    # Which one is shown is compared with the one in the file before a key is sent.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
