"""The HTTP faces of the services: what they reveal, to whom, under which name, and over TLS."""

import os
import re
import socket
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import asyncpg
import pytest
import requests
from conftest import ADMIN_API_KEY, API_KEY, url_of
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from servers import ROOT, RunningService, run_service, run_to_end, unused_port
from tls_relay import Authority

from logging_service.embedded import Postgres, Valkey
from logging_service.errors import SettingsError
from logging_service.schema import migrate
from logging_service.server import FaceConfig
from logging_service.settings import Settings
from logging_service.web import PROBLEMS

FACES = ("producer", "query_service", "consumer", "gateway")
KEY = {"X-API-Key": API_KEY}
MARKS = ("mark-of-a-payload", "mark-of-a-session", "mark-of-a-trace")
EVENT = {
    "event_type": "review_started",
    "session_id": MARKS[1],
    "trace_id": MARKS[2],
    "payload": {"text": MARKS[0]},
}
APP = "https://app.example"

Faces = dict[str, RunningService]


@pytest.fixture(scope="module")
async def variables(
    postgres: Postgres, redis_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """The variables of services that the tests of this file share."""
    admin = await asyncpg.connect(postgres.admin_url, ssl=False)
    await admin.execute("CREATE DATABASE faces OWNER logging_service_user")
    await migrate(url_of(postgres, "faces"))
    yield {
        "DATABASE_URL": url_of(postgres, "faces"),
        "REDIS_URL": redis_server.url,
        "REDIS_QUEUE_NAME": "faces",
        "API_KEY": API_KEY,
        "ADMIN_API_KEY": ADMIN_API_KEY,
        "DATA_DIR": str(tmp_path_factory.mktemp("faces")),
    }
    await admin.execute("DROP DATABASE faces WITH (FORCE)")
    await admin.close()


def ports() -> dict[str, str]:
    names = ("PRODUCER_PORT", "QUERY_SERVICE_PORT", "METRICS_PORT", "GATEWAY_PORT")
    return {name: str(unused_port()) for name in names}


@pytest.fixture(scope="module")
def faces(variables: dict[str, str]) -> Iterator[Faces]:
    """All with nothing set, and an event that is stored."""
    with ExitStack() as stack:
        environment = {**variables, **ports()}
        running = {name: stack.enter_context(run_service(name, environment)) for name in FACES}
        url = f"{running['producer'].url}/log?wait=stored"
        stored = requests.post(url, json=EVENT, headers=KEY, timeout=30)
        assert stored.json()["status"] == "stored"
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def certificate(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    return authority.files(tmp_path_factory.mktemp("certificate"), "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def public(variables: dict[str, str], certificate: tuple[Path, Path]) -> Iterator[Faces]:
    """All over TLS and behind a proxy, for the name logs.example and the pages of APP."""
    tls = {
        f"{face}_TLS_{kind}": str(file)
        for face in ("PRODUCER", "QUERY_SERVICE", "METRICS", "GATEWAY")
        for kind, file in zip(("CERT", "KEY"), certificate, strict=True)
    }
    more = {
        "ROOT_PATH": "/logs",
        "CORS_ORIGINS": f"{APP}, http://localhost:3000",
        "ALLOWED_HOSTS": "logs.example",
        "TRUSTED_PROXIES": "127.0.0.1",
    }
    with ExitStack() as stack:
        environment = {**variables, **ports(), **tls, **more}
        yield {name: stack.enter_context(run_service(name, environment)) for name in FACES}


@pytest.fixture
def client(authority: Authority) -> Iterator[requests.Session]:
    """What asks services over TLS, and looks at their certificates."""
    with requests.Session() as session:
        session.trust_env = False  # REQUESTS_CA_BUNDLE would win over what is set here
        session.verify = str(authority.file)
        yield session


def raw_answer(service: RunningService, sent: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the status line that answers `sent`, and the headers by their names in lower case."""
    place = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with socket.create_connection(place, timeout=5) as connection:
        connection.sendall(sent)
        answer = b""
        while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
            answer += part
    status, *lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return status.encode(), {name.lower(): value for name, value in pairs}


def assert_for_browsers(headers: dict[str, str]) -> None:
    told = {name.lower(): value for name, value in headers.items()}
    assert told["x-content-type-options"] == "nosniff"
    assert told["x-frame-options"] == "DENY"
    assert told["referrer-policy"] == "no-referrer"
    assert told["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in told["content-security-policy"]
    assert "frame-ancestors 'none'" in told["content-security-policy"]


class TestAnswers:
    @pytest.mark.parametrize("face", FACES)
    def test_every_answer_tells_browsers_how_to_treat_it(self, faces: Faces, face: str) -> None:
        for path in ("/health", "/metrics", "/docs", "/openapi.json", "/problems/body", "/none"):
            answer = requests.get(f"{faces[face].url}{path}", timeout=30)
            assert_for_browsers(dict(answer.headers))
            assert answer.headers["Cache-Control"] == "no-store"
            assert "Strict-Transport-Security" not in answer.headers

    @pytest.mark.parametrize("face", FACES)
    def test_so_do_the_refusals_below_the_framework(self, faces: Faces, face: str) -> None:
        for status, sent in (
            (b"400", b"GET / HTTP/9.9\r\n\r\n"),
            (b"421", b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
            (b"431", b"GET / HTTP/1.1\r\nX-Filler: " + b"x" * 17_000 + b"\r\n\r\n"),
        ):
            line, headers = raw_answer(faces[face], sent)
            assert line.split()[1] == status
            assert_for_browsers(headers)

    @pytest.mark.parametrize(
        ("headers", "body", "status"),
        [(KEY, EVENT, 202), ({}, EVENT, 401), (KEY, {}, 422)],
    )
    def test_so_do_the_answers_to_writes(
        self, faces: Faces, headers: dict[str, str], body: object, status: int
    ) -> None:
        url = f"{faces['producer'].url}/log"
        answer = requests.post(url, json=body, headers=headers, timeout=30)
        assert answer.status_code == status
        assert_for_browsers(dict(answer.headers))

    def test_what_may_be_kept_says_so_itself(self, faces: Faces) -> None:
        url = faces["query_service"].url
        answer = requests.get(f"{url}/analytics/usage", timeout=30)
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert requests.get(f"{url}/events", timeout=30).headers["Cache-Control"] == "no-store"

    @pytest.mark.parametrize("face", FACES)
    def test_what_needs_no_key_reveals_nothing_stored(self, faces: Faces, face: str) -> None:
        problems = [f"/problems/{slug}" for slug in PROBLEMS]
        for path in ("/health", "/metrics", "/docs", "/openapi.json", *problems):
            answer = requests.get(f"{faces[face].url}{path}", timeout=30)
            assert answer.status_code == 200
            assert not [mark for mark in MARKS if mark in answer.text]
            assert API_KEY not in answer.text

    @pytest.mark.parametrize("face", FACES)
    def test_the_documentation_runs_its_own_script_and_no_other(
        self, faces: Faces, face: str
    ) -> None:
        page = requests.get(f"{faces[face].url}/docs", timeout=30)
        [script] = re.findall("<script>(.*?)</script>", page.text, re.DOTALL)
        digest = b64encode(sha256(script.encode()).digest()).decode()
        policy = dict(
            part.strip().split(" ", 1)
            for part in page.headers["Content-Security-Policy"].split(";")
        )
        assert policy["script-src"] == f"https://cdn.jsdelivr.net 'sha256-{digest}'"
        assert policy["connect-src"] == "'self'"
        sources = re.findall('(?:src|href)="(https://[^/"]+)', page.text)
        assert set(sources) <= {"https://cdn.jsdelivr.net", "https://fastapi.tiangolo.com"}


class TestHosts:
    @pytest.mark.parametrize("face", FACES)
    def test_another_name_is_misdirected(self, faces: Faces, face: str) -> None:
        for path in ("/health", "/metrics", "/docs"):
            headers = {"Host": "evil.example", **KEY}
            answer = requests.get(f"{faces[face].url}{path}", headers=headers, timeout=30)
            assert answer.status_code == 421
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["type"] == "/problems/misdirected"
            assert "ALLOWED_HOSTS" in answer.json()["detail"]

    @pytest.mark.parametrize("path", ["/log", "/logs", "/log?wait=stored"])
    def test_a_write_under_another_name_is_not_taken(self, faces: Faces, path: str) -> None:
        url = faces["producer"].url
        before = requests.get(f"{url}/log", headers=KEY, timeout=30).json()["remaining"]
        for host in ("evil.example", "evil.example:8001", "localhost.evil.example"):
            headers = {"Host": host, **KEY}
            answer = requests.post(f"{url}{path}", json=EVENT, headers=headers, timeout=30)
            assert answer.status_code == 421
        after = requests.get(f"{url}/log", headers=KEY, timeout=30).json()["remaining"]
        assert after >= before

    def test_two_names_are_misdirected_also_when_one_is_ours(self, faces: Faces) -> None:
        for names in (("evil.example", "localhost"), ("localhost", "evil.example")):
            lines = "".join(f"Host: {name}\r\n" for name in names)
            sent = f"POST /log HTTP/1.1\r\n{lines}Content-Length: 2\r\n\r\n{{}}"
            assert b" 421 " in raw_answer(faces["producer"], sent.encode())[0]

    @pytest.mark.parametrize("face", FACES)
    def test_names_that_are_allowed_are_answered(
        self, public: Faces, client: requests.Session, face: str
    ) -> None:
        for host, status in (("logs.example", 200), ("localhost", 200), ("evil.example", 421)):
            url = f"{public[face].url}/health"
            assert client.get(url, headers={"Host": host}, timeout=30).status_code == status


class TestOtherOrigins:
    def test_are_told_nothing_by_default(self, faces: Faces) -> None:
        url = f"{faces['producer'].url}/log"
        for answer in (
            requests.post(url, json=EVENT, headers={**KEY, "Origin": APP}, timeout=30),
            preflight(requests.Session(), url, APP),
        ):
            assert not [name for name in answer.headers if name.startswith("Access-Control")]

    @pytest.mark.parametrize(
        ("face", "method", "path"),
        [
            ("producer", "POST", "/log"),
            ("producer", "POST", "/logs"),
            ("producer", "GET", "/log"),
            ("query_service", "GET", "/events"),
            ("query_service", "GET", "/nothing-there"),
            ("gateway", "POST", "/reviews"),
        ],
    )
    def test_that_are_named_may_ask_and_read_the_answer(
        self, public: Faces, client: requests.Session, face: str, method: str, path: str
    ) -> None:
        url = f"{public[face].url}{path}"
        asked = preflight(client, url, APP, method)
        assert asked.status_code == 200
        assert asked.headers["Access-Control-Allow-Origin"] == APP
        assert {"x-api-key", "authorization", "content-type", "content-encoding"} <= words(
            asked, "Access-Control-Allow-Headers"
        )
        for headers in ({**KEY, "Origin": APP}, {"Origin": APP}):
            answer = client.request(method, url, json=EVENT, headers=headers, timeout=30)
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert "origin" in words(answer, "Vary")
            assert "Access-Control-Allow-Credentials" not in answer.headers
            shown = {"x-request-id", "ratelimit", "ratelimit-policy", "retry-after", "etag", "link"}
            shown |= {"location", "preference-applied", "x-session-id"}
            assert shown == words(answer, "Access-Control-Expose-Headers")
            assert_for_browsers(dict(answer.headers))

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "https://app.example.evil", "http://app.example", "null"]
    )
    def test_that_are_not_named_are_told_nothing(
        self, public: Faces, client: requests.Session, origin: str
    ) -> None:
        url = f"{public['producer'].url}/log"
        asked = preflight(client, url, origin)
        assert asked.status_code == 400
        answer = client.post(url, json=EVENT, headers={**KEY, "Origin": origin}, timeout=30)
        for one in (asked, answer):
            assert "Access-Control-Allow-Origin" not in one.headers

    @pytest.mark.parametrize("origins", ["*", "https://a.example/", "app.example", f"{APP},null"])
    def test_that_are_not_exact_are_refused_by_name(self, origins: str) -> None:
        with pytest.raises(ValueError, match="is no origin"):
            Settings.model_validate({"cors_origins": origins})


def preflight(
    client: requests.Session, url: str, origin: str, method: str = "POST"
) -> requests.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    return client.options(url, headers=headers, timeout=30)


def words(answer: requests.Response, header: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers[header].split(",")}


class TestBehindAProxy:
    def test_the_documents_know_the_path_before_ours(
        self, public: Faces, client: requests.Session
    ) -> None:
        for face in ("producer", "query_service", "gateway"):
            url = public[face].url
            document = client.get(f"{url}/openapi.json", timeout=30).json()
            assert document["servers"] == [{"url": "/logs"}]
            assert "/health" in document["paths"]
            assert "url: '/logs/openapi.json'" in client.get(f"{url}/docs", timeout=30).text

    @pytest.mark.parametrize(
        ("method", "path", "body", "slug"),
        [
            ("POST", "/log", EVENT, "unauthenticated"),
            ("POST", "/log", {}, "validation"),
            ("POST", "/logs", [], "validation"),
            ("POST", "/logs", [{}], "validation"),
            ("GET", "/nothing-there", None, "not-found"),
            ("PUT", "/logs", None, "method-not-allowed"),
        ],
    )
    def test_problems_name_their_type_where_it_is_found(
        self,
        public: Faces,
        client: requests.Session,
        method: str,
        path: str,
        body: object,
        slug: str,
    ) -> None:
        url = public["producer"].url
        headers = {} if slug == "unauthenticated" else KEY
        answer = client.request(method, f"{url}{path}", json=body, headers=headers, timeout=30)
        assert answer.json()["type"] == f"/logs/problems/{slug}"
        found = answer.json()["type"].removeprefix("/logs")
        assert client.get(f"{url}{found}", timeout=30).status_code == 200

    def test_links_lead_back_through_the_proxy(
        self, public: Faces, client: requests.Session
    ) -> None:
        for kind in ("one", "another"):
            event = {**EVENT, "event_type": kind}
            url = f"{public['producer'].url}/log?wait=stored"
            assert client.post(url, json=event, headers=KEY, timeout=30).status_code == 202
        asked = {"group_by": "event_type", "limit": "1", "days": "7"}
        url = f"{public['query_service'].url}/analytics/usage"
        answer = client.get(url, params=asked, headers={"X-API-Key": ADMIN_API_KEY}, timeout=30)
        assert answer.headers["Link"].startswith("<?")

    def test_a_path_like_the_one_before_ours_is_still_ours(
        self, public: Faces, client: requests.Session
    ) -> None:
        url = public["producer"].url
        # Only the framework's way gives these headers, and only the short way an id like this.
        for headers, form in ((KEY, r"[0-9a-f]{16}-[0-9a-f]+"), (KEY | {"Origin": APP}, r"\w{32}")):
            answer = client.post(f"{url}/logs", json=[EVENT], headers=headers, timeout=30)
            assert answer.status_code == 202
            assert re.fullmatch(form, answer.headers["X-Request-ID"])
        shown = client.get(f"{url}/metrics", timeout=30).text
        line = 'endpoint="/logs",method="POST",service="producer",status_code="202"'
        assert float(shown.partition(line)[2].split()[1]) == 2

    def test_who_comes_through_it_needs_a_key(
        self, public: Faces, client: requests.Session
    ) -> None:
        url = f"{public['query_service'].url}/events"
        for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Via"):
            assert client.get(url, headers={name: "127.0.0.1"}, timeout=30).status_code == 401
            headers = {name: "127.0.0.1", **KEY}
            assert client.get(url, headers=headers, timeout=30).status_code == 200
        assert client.get(url, timeout=30).status_code == 200

    def test_strict_transport_is_asked_for_over_tls_only_and_never_for_this_host(
        self, public: Faces, faces: Faces, client: requests.Session
    ) -> None:
        url = f"{public['query_service'].url}/health"
        named = client.get(url, headers={"Host": "logs.example"}, timeout=30)
        assert named.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert "Strict-Transport-Security" not in client.get(url, timeout=30).headers
        # Not a trusted proxy.
        told = {"X-Forwarded-Proto": "https"}
        answer = requests.get(f"{faces['producer'].url}/health", headers=told, timeout=30)
        assert "Strict-Transport-Security" not in answer.headers


class TestTls:
    @pytest.mark.parametrize("face", FACES)
    def test_a_face_proves_who_it_is(
        self, public: Faces, client: requests.Session, face: str, tmp_path: Path
    ) -> None:
        url = f"{public[face].url}/health"
        assert client.get(url, timeout=30).status_code == 200
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(url, verify=str(Authority(tmp_path, "another").file), timeout=30)

    @pytest.mark.parametrize("face", FACES)
    def test_old_tls_and_none_are_refused(self, public: Faces, face: str) -> None:
        place = ("127.0.0.1", int(public[face].url.rpartition(":")[2]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(place, 5) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)
        with socket.create_connection(place, 5) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP/1.1" not in plain.recv(4096)

    def test_a_sender_who_ends_its_half_early_is_let_go(self, public: Faces) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        place = ("127.0.0.1", int(public["producer"].url.rpartition(":")[2]))
        with socket.create_connection(place, 5) as plain:
            connection = context.wrap_socket(plain)
            connection.sendall(b"POST /log HTTP/1.1\r\nHost: localhost\r\n")
            connection.unwrap().close()
        assert "Traceback" not in public["producer"].log

    def test_workers_share_it_and_the_client_library_speaks_it(
        self,
        variables: dict[str, str],
        certificate: tuple[Path, Path],
        authority: Authority,
    ) -> None:
        file, key = map(str, certificate)
        tls = {"PRODUCER_TLS_CERT": file, "PRODUCER_TLS_KEY": key}
        environment = {**variables, **ports(), **tls, "REDIS_QUEUE_NAME": "over-tls"}
        with run_service("producer", environment, "--workers", "2") as producer:
            script = "import logging_helper as h; h.log_event('t'); print(h.flush(10))"
            sent = subprocess.run(
                [sys.executable, "-c", script],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "LOGGING_SERVICE_URL": f"{producer.url}/log",
                    "API_KEY": API_KEY,
                    "SSL_CERT_FILE": str(authority.file),
                },
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert (sent.stdout, sent.stderr) == ("True\n", "")
            url = f"{producer.url}/queue/status"
            status = requests.get(url, verify=str(authority.file), timeout=30).json()
            assert status["size"] == 1

    @pytest.mark.parametrize(
        ("service", "face"),
        [("producer", "PRODUCER"), ("query_service", "QUERY_SERVICE"), ("consumer", "METRICS")],
    )
    def test_a_certificate_that_cannot_be_used_ends_the_start_with_one_line(
        self, variables: dict[str, str], service: str, face: str
    ) -> None:
        missing = {f"{face}_TLS_CERT": "/no/such.pem", f"{face}_TLS_KEY": "/no/such.key"}
        code, output = run_to_end(service, {**variables, **ports(), **missing})
        names = f"{face}_TLS_CERT and {face}_TLS_KEY"
        fault = f"{names} cannot be used: /no/such.pem: No such file or directory"
        assert (code, output.splitlines()[-1]) == (2, fault)

    def test_certificate_and_key_have_to_fit(
        self, authority: Authority, certificate: tuple[Path, Path], tmp_path: Path
    ) -> None:
        file, key = certificate
        _, another = authority.files(tmp_path, "localhost")
        nothing = tmp_path / "nothing.pem"
        nothing.write_text("not a certificate")
        encrypted = tmp_path / "encrypted.key"
        encrypted.write_bytes(
            load_pem_private_key(key.read_bytes(), None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"unknown")
            )
        )
        for pair, fault in (
            ((file, another), f"{another} is not the key of {file}"),
            ((nothing, key), "are not a certificate and its key in PEM"),
            ((file, encrypted), f"{encrypted}: the key is encrypted"),
            ((file, tmp_path), "Is a directory"),
        ):
            given = dict(zip(("producer_tls_cert", "producer_tls_key"), pair, strict=True))
            with pytest.raises(SettingsError, match=re.escape(fault)) as said:
                FaceConfig("no:app", "producer", Settings.model_validate(given))
            assert "\n" not in str(said.value)

    @pytest.mark.parametrize("kind", ["cert", "key"])
    def test_one_without_the_other_is_refused(self, kind: str) -> None:
        with pytest.raises(ValueError, match="set both or none"):
            Settings.model_validate({f"gateway_tls_{kind}": "/some/file"})
