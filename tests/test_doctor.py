"""What `logging-service doctor` finds, on servers that are well, ill, slow and gone."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import asyncpg
import pytest
import trustme
from consuming import log_queue
from events_made import an_event
from redis.asyncio import Redis
from relay import Relay
from servers import ROOT, a_redis, run_service, unused_port
from spools import a_spool, put

from logging_service import doctor_files, wire
from logging_service.api_keys import KeyTerms
from logging_service.audit import COMMAND_LINE
from logging_service.backends import open_books, open_keys, telling_pii_key
from logging_service.data_folder import create, write_secret
from logging_service.doctor import diagnose
from logging_service.doctor_findings import Check, Finding, Mask, Threads, clock_finding, examine
from logging_service.doctor_postgres_settings import NAMES, Setting, judged_settings
from logging_service.embedded import Valkey
from logging_service.errors import SettingsError
from logging_service.pepper import kept_pii_key
from logging_service.settings import Settings

# The suite's own server does without the disk's promises.
OF_THE_SUITE = {"postgresql_fsync": "failure", "postgresql_full_page_writes": "warning"}


def settings_of(environment: dict[str, str]) -> Settings:
    return Settings.model_validate({name.lower(): value for name, value in environment.items()})


async def findings_of(
    environment: dict[str, str], variables: dict[str, str] | None = None, env_file: str = ""
) -> dict[str, Finding]:
    """Return what is found, by check."""
    file = Path(environment["DATA_DIR"]).parent / ".env"
    if env_file:
        file.write_text(env_file, encoding="utf-8")
        file.chmod(0o600)
    named = {"LOGGING_SERVICE_URL": f"http://127.0.0.1:{environment['PRODUCER_PORT']}/log"}
    found = await diagnose(settings_of(environment), {**named, **(variables or {})}, file)
    by_check = {finding.check: finding for finding in found}
    assert len(by_check) == len(found), "a check is there twice"
    return by_check


@pytest.fixture(scope="module")
async def own_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Valkey]:
    """A server whose configuration tests may spoil."""
    folder = tmp_path_factory.mktemp("doctor")
    create(folder)
    server = a_redis(folder, password="the doctor's own")
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def configured(server: Valkey, **settings: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        before = {name: str((await client.config_get(name))[name]) for name in settings}
        for name, value in settings.items():
            await client.config_set(name, value)
        try:
            yield client
        finally:
            for name, value in before.items():
                await client.config_set(name, value)


async def test_where_all_is_well_each_line_is_ok(environment: dict[str, str]) -> None:
    with (
        run_service("producer", environment),
        run_service("consumer", environment),
        run_service("query_service", environment),
    ):
        found = await findings_of(environment)
    bad: dict[str, str] = {check: one.status for check, one in found.items() if one.status != "ok"}
    bad.pop("gateway", "")
    assert bad == OF_THE_SUITE, [found[check] for check in bad]
    assert "API_KEY is good for read, write" in found["producer_api_key"].found
    assert "write" in found["query_service_api_key"].found
    assert "balanced" in found["balance"].found
    assert found["pii_hash_key"].found == "the same on all 1 hosts that told of it"


async def test_what_is_down_is_named_with_what_starts_it(tmp_path: Path) -> None:
    ports = {
        f"{name}_PORT": str(unused_port())
        for name in ("PRODUCER", "QUERY_SERVICE", "METRICS", "GATEWAY", "DATABASE", "REDIS")
    }
    began = time.monotonic()
    found = await findings_of({"DATA_DIR": str(tmp_path / "data"), **ports})
    assert time.monotonic() - began < 10
    failures = {check for check, one in found.items() if one.status == "failure"}
    assert failures == {"postgresql", "redis", "producer", "consumer", "query_service"}
    assert "logging-service up" in str(found["postgresql"].advice)
    assert "logging-service up" in str(found["redis"].advice)
    assert "logging-service consumer" in str(found["consumer"].advice)
    assert not (tmp_path / "data").exists(), "it changes nothing"


async def test_redis_that_is_down_hides_nothing_of_the_rest(environment: dict[str, str]) -> None:
    environment |= {"REDIS_URL": f"redis://127.0.0.1:{unused_port()}/0"}
    found = await findings_of(environment)
    assert found["redis"].status == "failure"
    assert found["schema"].status == "ok"
    assert "the queue was not asked" in found["balance"].found


async def test_postgresql_that_is_down_hides_nothing_of_the_rest(
    environment: dict[str, str],
) -> None:
    environment |= {"DATABASE_URL": f"postgresql://a:b@127.0.0.1:{unused_port()}/c"}
    found = await findings_of(environment)
    assert found["postgresql"].status == "failure"
    assert {found[check].status for check in ("redis", "redis_persistence", "queue")} == {"ok"}
    assert "schema" not in found


async def test_what_takes_connections_and_says_nothing_is_not_waited_for(
    environment: dict[str, str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        environment |= {
            "DATABASE_URL": f"postgresql://a:b@127.0.0.1:{port}/c",
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "PRODUCER_PORT": str(port),
        }
        began = time.monotonic()
        found = await findings_of(environment)
        assert time.monotonic() - began < 10
    assert {found[check].status for check in ("postgresql", "redis", "producer")} == {"failure"}
    assert "set PRODUCER_PORT" in str(found["producer"].advice)


@pytest.mark.parametrize(
    ("settings", "check", "status"),
    [
        ({"appendonly": "no"}, "redis_persistence", "failure"),
        ({"appendfsync": "everysec"}, "redis_persistence", "warning"),
        ({"maxmemory-policy": "allkeys-lru"}, "redis_eviction", "failure"),
        ({"maxmemory": "1mb"}, "redis_memory", "failure"),
        ({"maxmemory": "100gb"}, "redis_memory", "ok"),
    ],
)
async def test_redis_that_can_lose_events_is_told(
    own_redis: Valkey,
    environment: dict[str, str],
    settings: dict[str, str],
    check: str,
    status: str,
) -> None:
    async with configured(own_redis, **settings):
        found = await findings_of({**environment, "REDIS_URL": own_redis.url})
    assert found[check].status == status
    others = {"redis_persistence", "redis_eviction", "redis_memory", "redis_commands"} - {check}
    assert {found[other].status for other in others} == {"ok"}


async def test_commands_that_are_not_permitted_are_named(
    own_redis: Valkey, environment: dict[str, str]
) -> None:
    async with Redis.from_url(own_redis.url) as client:
        await client.acl_setuser(
            "writer",
            enabled=True,
            passwords=["+secret-word"],
            keys=["*"],
            categories=["+@all"],
            commands=["-rename", "-zrem"],
        )
        place = own_redis.url.rpartition("@")[2]
        try:
            url = f"redis://writer:secret-word@{place}"
            found = await findings_of({**environment, "REDIS_URL": url})
        finally:
            await client.acl_deluser("writer")
    assert found["redis_commands"].status == "failure"
    assert "RENAME, ZREM" in found["redis_commands"].found


async def test_a_key_that_is_no_list_is_told(environment: dict[str, str], redis: Redis) -> None:
    await redis.set("log_queue", "a word")
    found = await findings_of(environment)
    assert found["redis_commands"].status == "failure"
    assert "log_queue" in found["redis_commands"].found


async def test_no_password_is_shown_whoever_repeats_it(
    own_redis: Valkey, environment: dict[str, str], services_url: str
) -> None:
    secret = "hunter2-canary"
    login = services_url.rpartition("@")[2]
    environment |= {
        "REDIS_URL": own_redis.url.replace("doctor", secret),
        "DATABASE_URL": f"postgresql://{secret}:{secret}@{login}",
        "API_KEY": secret,
    }
    named = {**environment, "PII_HASH_KEY": f"{secret} {secret}"}
    found = await findings_of(named, named, f"API_KEY={secret}\nLLM_API_KEY={secret}\n")
    assert found["postgresql"].status == found["redis"].status == "failure"
    assert secret not in str(found)
    assert "API_KEY=(not shown) (environment)" in found["settings"].found


async def test_a_server_that_refuses_is_told_from_one_that_is_away(
    own_redis: Valkey, environment: dict[str, str], services_url: str
) -> None:
    place = services_url.rpartition("@")[2]
    wrong = {
        "DATABASE_URL": f"postgresql://logging_service_user:wrong-password@{place}",
        "REDIS_URL": f"redis://:wrong-password@{own_redis.url.rpartition('@')[2]}",
    }
    found = await findings_of({**environment, **wrong})
    assert "DATABASE_PASSWORD" in str(found["postgresql"].advice)
    assert "REDIS_PASSWORD" in str(found["redis"].advice)
    assert "wrong-password" not in str(found)
    missing = {"DATABASE_URL": services_url.rpartition("/")[0] + "/not_there"}
    found = await findings_of({**environment, **missing})
    assert "make the database" in str(found["postgresql"].advice)


def test_a_disk_or_a_resolver_that_hangs_holds_nothing_up() -> None:
    release = threading.Event()

    async def main() -> list[Finding]:
        asyncio.get_running_loop().set_default_executor(Threads())

        async def hang() -> list[Finding]:
            await asyncio.to_thread(release.wait, 30)
            return []

        return await examine(Check("disk", hang, "see whether it answers", seconds=0.05))

    began = time.monotonic()
    with ThreadPoolExecutor() as elsewhere:
        found = elsewhere.submit(asyncio.run, main()).result()
    release.set()
    assert time.monotonic() - began < 10
    assert [(one.check, one.status) for one in found] == [("disk", "failure")]


async def test_a_check_that_fails_by_itself_tells_nothing_of_what_it_read() -> None:
    async def fail() -> list[Finding]:
        raise RuntimeError("a canary")

    found = await examine(Check("disk", fail))
    assert found[0].status == "failure"
    assert "canary" not in str(found)


def test_a_secret_is_taken_out_of_what_others_say() -> None:
    mask = Mask(["secret-word", "word", "secret-word-2"])
    hidden = mask.hide(Finding("a", "failure", "no secret-word-2, secret-word", "a secret-word"))
    assert hidden.found == "no (not shown), (not shown)"
    assert hidden.advice == "a (not shown)"


@pytest.mark.parametrize(
    ("revision", "advice"), [("0003", "logging-service migrate"), ("9999", "release")]
)
async def test_a_schema_that_does_not_fit_is_told(
    environment: dict[str, str], database: asyncpg.Connection, revision: str, advice: str
) -> None:
    await database.execute("UPDATE alembic_version SET version_num = $1", revision)
    found = await findings_of(environment)
    assert found["schema"].status == "failure"
    assert advice in str(found["schema"].advice)
    assert "dead_letters" not in found


async def test_a_database_without_a_schema_is_told(
    environment: dict[str, str], empty_database_url: str
) -> None:
    found = await findings_of({**environment, "DATABASE_URL": empty_database_url})
    assert found["schema"].status == "failure"
    assert "logging-service migrate" in str(found["schema"].advice)


async def test_a_wrong_key_is_told(environment: dict[str, str]) -> None:
    with run_service("producer", environment):
        found = await findings_of({**environment, "API_KEY": "another_key_1"})
    assert found["producer"].status != "failure"
    assert found["producer_api_key"].status == "failure"
    assert "AUTH" not in found["producer_api_key"].found


async def test_dead_letters_are_counted_with_the_newest_reason(
    environment: dict[str, str], database: asyncpg.Connection
) -> None:
    for reason in ("conflict", "rejected"):
        await database.execute(
            "INSERT INTO dead_letters (digest, event, reason, detail, attempts, sqlstate)"
            " VALUES (sha256($1::text::bytea), 'x', $1, 'canary-detail', 1, '22P02')",
            reason,
        )
    found = (await findings_of(environment))["dead_letters"]
    assert found.status == "warning"
    assert found.found.startswith("2 could not be stored")
    assert "rejected (SQLSTATE 22P02)" in found.found
    assert "canary-detail" not in found.found


async def test_one_role_for_both_is_told(environment: dict[str, str], database_url: str) -> None:
    found = await findings_of({**environment, "DATABASE_URL": database_url})
    assert found["database_roles"].status == "warning"
    assert "DATABASE_OWNER_URL" in str(found["database_roles"].advice)


async def test_days_ahead_that_are_missing_are_told(environment: dict[str, str]) -> None:
    # No consumer has run here.
    found = await findings_of(environment)
    assert found["partitions"].status == "warning"
    assert "of the next 7 0" in found["partitions"].found


async def test_retention_that_is_behind_is_told(
    environment: dict[str, str], database: asyncpg.Connection
) -> None:
    today = datetime.now(UTC).date()
    await database.execute("UPDATE retention_clock SET day = $1", today)
    await database.execute("SELECT make_partitions($1::date[])", [today - timedelta(days=20)])
    assert (await findings_of(environment))["retention"].status == "warning"
    kept = await findings_of({**environment, "LOG_TTL_DAYS": "0"})
    assert "keeps events for good" in kept["retention"].found
    assert (await findings_of({**environment, "LOG_TTL_DAYS": "30"}))["retention"].status == "ok"


async def test_keys_of_another_pepper_are_told(environment: dict[str, str]) -> None:
    made_with = settings_of({**environment, "API_KEY_PEPPER": "a pepper of 16 or more"})
    terms = KeyTerms("one", "one", frozenset({"read"}), {}, (), None)
    async with open_keys(made_with) as store:
        await store.create(terms, COMMAND_LINE)
    same = await findings_of({**environment, "API_KEY_PEPPER": "a pepper of 16 or more"})
    other = await findings_of({**environment, "API_KEY_PEPPER": "another pepper of 16"})
    assert same["api_key_pepper"].status == "ok"
    assert other["api_key_pepper"].status == "warning"
    assert "1 of 1" in other["api_key_pepper"].found


async def test_a_host_with_another_pii_hash_key_is_named(
    environment: dict[str, str], redis: Redis
) -> None:
    here = settings_of({**environment, "PII_HASH_KEY": "what this host hashes with"})
    async with telling_pii_key(here):
        while not await redis.zcard("{log_queue}:pii_keys"):
            await asyncio.sleep(0.01)
    same = await findings_of({**environment, "PII_HASH_KEY": "what this host hashes with"})
    other = await findings_of({**environment, "PII_HASH_KEY": "what another one hashes with"})
    none = await findings_of(environment)
    assert same["pii_hash_key"].status == "ok"
    assert other["pii_hash_key"].status == "warning"
    assert socket.gethostname() in other["pii_hash_key"].found
    assert none["pii_hash_key"].status == "warning"
    member = (await redis.zrange("{log_queue}:pii_keys", 0, -1))[0]
    assert b"hashes with" not in member


async def test_the_key_that_a_host_noted_last_counts(
    environment: dict[str, str], redis: Redis
) -> None:
    host, now = socket.gethostname(), int(time.time())
    settings = settings_of({**environment, "PII_HASH_KEY": "what this host hashes with"})
    kept_pii_key(settings)
    await redis.zadd("{log_queue}:pii_keys", {f"00112233 {host}": now - 60})
    async with telling_pii_key(settings):
        while await redis.zcard("{log_queue}:pii_keys") < 2:
            await asyncio.sleep(0.01)
    found = await findings_of({**environment, "PII_HASH_KEY": "what this host hashes with"})
    assert found["pii_hash_key"].status == "ok"


async def test_a_queue_that_nobody_empties_is_told(
    environment: dict[str, str], redis_url: str
) -> None:
    async with log_queue(redis_url) as queue:
        await queue.put([an_event(received_at=wire.now_micros() - 300_000_000)])
    assert (await findings_of(environment))["queue"].status == "failure"
    late = (await findings_of({**environment, "REDIS_QUEUE_TTL": "400"}))["queue"]
    assert "REDIS_QUEUE_TTL=400" in late.found


async def test_what_was_taken_out_of_the_queue_shows_in_the_balance(
    environment: dict[str, str], redis: Redis, redis_url: str
) -> None:
    async with log_queue(redis_url) as queue, open_books(settings_of(environment)) as books:
        await queue.put([an_event(), an_event()])
        await books.note(queue.tallies)
    await redis.delete("log_queue")
    found = (await findings_of(environment))["balance"]
    assert found.status == "warning"
    assert "removed_outside 2" in found.found


@contextmanager
def stand_in(**more: str) -> Iterator[int]:
    """A process that answers every request as a producer would, but for these headers."""
    body = json.dumps({"status": "ok", "service": "producer", "version": "0", "dependencies": {}})
    lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
    answer = f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}"
    program = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    taken, _ = server.accept()\n"
        "    taken.recv(65536)\n"
        "    taken.sendall(sys.argv[1].encode())\n"
        "    taken.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, answer], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize(
    "more",
    [{"X-Long": "a" * 100_000}, {"Content-Type": "text/html\r\nContent-Length: 0"}],
    ids=["a long header", "two lengths"],
)
async def test_what_answers_in_strange_ways_is_survived(
    environment: dict[str, str], more: dict[str, str]
) -> None:
    with stand_in(**more) as port:
        found = await findings_of({**environment, "METRICS_PORT": str(port)})
    # It says that it is a producer.
    assert found["consumer"].status == "warning"
    assert "METRICS_PORT" in str(found["consumer"].advice)


@pytest.mark.parametrize(
    ("ahead", "status"), [(0, "ok"), (20, "warning"), (-20, "warning"), (7200, "failure")]
)
async def test_a_clock_that_is_wrong_shows_in_the_date_of_answers(
    environment: dict[str, str], ahead: int, status: str
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    with stand_in(Date=date) as port:
        found = await findings_of({**environment, "PRODUCER_PORT": str(port)})
    assert found["services_clock"].status == status
    assert "of another release" in str(found["producer"].advice)


def test_a_clock_is_judged_by_what_is_certain() -> None:
    assert clock_finding("a", 2.5, 1.0).status == "ok"
    assert clock_finding("a", -3.5, 1.0).status == "warning"
    assert "2.5 s behind" in clock_finding("a", -3.5, 1.0).found
    assert clock_finding("a", 90, 1.0).status == "failure"


async def test_a_port_that_something_else_has_is_told(
    environment: dict[str, str], redis_url: str
) -> None:
    port = redis_url.rpartition(":")[2].partition("/")[0]
    found = await findings_of({**environment, "QUERY_SERVICE_PORT": port})
    assert found["query_service"].status == "failure"
    assert "QUERY_SERVICE_PORT" in str(found["query_service"].advice)


async def test_what_means_nothing_is_named_with_what_was_meant(
    environment: dict[str, str],
) -> None:
    kept = "REDIS_QUEU_NAME=other\nFOO=1\nRATE_LIMIT_LOG=5/minute\nLLM_MODEL=\nAPI_KEY=12345678\n"
    set_here = {"PRODUCER_PROT": "1", "HOME": "/", "DATABASE": "x", "REDIS_URLS": ""}
    found = (await findings_of(environment, set_here, kept))["unknown_variables"]
    assert found.status == "warning"
    assert "REDIS_QUEU_NAME (did you mean REDIS_QUEUE_NAME?)" in found.found
    assert "PRODUCER_PROT (did you mean PRODUCER_PORT?)" in found.found
    assert "FOO" in found.found
    for known in ("RATE_LIMIT_LOG", "HOME", "REDIS_URLS", "12345678"):
        assert known not in found.found


async def test_settings_tell_where_they_came_from(environment: dict[str, str]) -> None:
    found = await findings_of(
        environment, {"LOG_LEVEL": "debug"}, "LOG_LEVEL=info\nRATE_LIMIT=5/day\n"
    )
    assert "LOG_LEVEL=debug (environment)" in found["settings"].found
    assert "RATE_LIMIT=5/day (.env)" in found["settings"].found


async def test_a_value_that_cannot_be_used_is_the_line_of_the_services(tmp_path: Path) -> None:
    fault = SettingsError("REDIS_PORT='x' cannot be used: has to be a valid integer")
    found = await diagnose(fault, {"REDIS_PORT": "x", "PRODUCER_PROT": "1"}, tmp_path / ".env")
    by_check = {one.check: one for one in found}
    assert by_check["settings"].status == "failure"
    assert by_check["settings"].found == str(fault)
    assert by_check["unknown_variables"].status == "warning"
    assert by_check["version"].status == "ok"


async def test_the_client_that_sends_elsewhere_is_told(environment: dict[str, str]) -> None:
    elsewhere = {"LOGGING_SERVICE_URL": f"http://127.0.0.1:{unused_port()}/log"}
    with stand_in() as port:
        found = await findings_of({**environment, "PRODUCER_PORT": str(port)}, elsewhere)
    assert found["client"].status == "warning"
    assert found["client"].advice == f"LOGGING_SERVICE_URL=http://127.0.0.1:{port}/log"
    off = await findings_of(environment, {"LOGGING_ENABLED": "false"})
    assert off["client"].status == "warning"


async def test_spooled_events_that_wait_are_counted(environment: dict[str, str]) -> None:
    file = Path(environment["DATA_DIR"]) / "spool" / "queue-fallback-0.sqlite"
    file.parent.mkdir(parents=True)
    with a_spool(file) as spool:
        put(spool, [an_event(), an_event()])
    found = await findings_of(environment)
    assert found["spool"].status == "warning"
    assert found["spool"].found.startswith("2 events wait")
    file.rename(file.with_name(f"{file.name}.damaged-20261123T101500Z"))
    aside = await findings_of(environment)
    assert aside["spool_damage"].status == "failure"
    assert "spool salvage" in str(aside["spool_damage"].advice)


async def test_events_in_memory_are_warned_of(environment: dict[str, str]) -> None:
    environment |= {"USE_REDIS_QUEUE": "false", "SPOOL_PATH": ":memory:"}
    found = await findings_of(environment)
    assert found["spool"].status == "warning"
    assert "not used" in found["redis"].found
    assert "consumer" not in found


async def test_secrets_that_others_may_read_are_named(environment: dict[str, str]) -> None:
    folder = Path(environment["DATA_DIR"])
    create(folder)
    write_secret(folder / "pii_key", "0123456789abcdef")
    assert (await findings_of(environment))["secrets"].status == "ok"
    (folder / "pii_key").chmod(0o644)
    found = (await findings_of(environment))["secrets"]
    assert found.status == "warning"
    assert found.advice == f"`chmod 600 {folder / 'pii_key'}`"


@pytest.mark.parametrize(
    ("days", "status"), [(-1, "failure"), (10, "warning"), (200, "ok")], ids=str
)
async def test_certificates_that_end_soon_are_told(
    environment: dict[str, str], tmp_path: Path, days: int, status: str
) -> None:
    ends = datetime.now(UTC) + timedelta(days=days, hours=1)
    issued = trustme.CA().issue_cert("localhost", not_after=ends, not_before=ends - timedelta(300))
    certificate, key = tmp_path / "a.pem", tmp_path / "a.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    environment |= {"PRODUCER_TLS_CERT": str(certificate), "PRODUCER_TLS_KEY": str(key)}
    found = (await findings_of(environment))["certificates"]
    assert found.status == status
    assert f"{ends:%Y-%m-%d}" in found.found


async def test_a_service_that_shows_another_certificate_gets_no_key(
    environment: dict[str, str], tmp_path: Path
) -> None:
    authority = trustme.CA()
    for name in ("before", "after"):
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")

    def of(name: str) -> dict[str, str]:
        files = {"CERT": f"{name}.pem", "KEY": f"{name}.key"}
        return {f"PRODUCER_TLS_{part}": str(tmp_path / file) for part, file in files.items()}

    with run_service("producer", {**environment, **of("before")}):
        same = await findings_of({**environment, **of("before")})
        other = await findings_of({**environment, **of("after")})
    assert same["producer_api_key"].status == "ok"
    assert other["producer_tls"].status == "warning"
    assert "producer_api_key" not in other


async def test_a_disk_that_is_nearly_full_is_told(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_files, "_NONE_BYTES", 1 << 60)
    found = await findings_of(environment)
    assert found["disk"].status == "failure"
    assert "DATA_DIR" in found["disk"].found


def judged(**values: str) -> dict[str, Finding]:
    settings = {
        "fsync": Setting("on"),
        "full_page_writes": Setting("on"),
        "synchronous_commit": Setting("on"),
        "max_wal_size": Setting("8192", 8 << 30),
        "shared_buffers": Setting("131072", 1 << 30),
        "wal_compression": Setting("off"),
        "default_toast_compression": Setting("pglz", None, ("pglz", "lz4")),
        "max_locks_per_transaction": Setting("64"),
        "TimeZone": Setting("UTC"),
    }
    assert set(settings) == set(NAMES)
    changed = {
        name: Setting(value, int(value) if value.isdecimal() else None)
        for name, value in values.items()
    }
    kept = int(values.get("kept", "7"))
    found = judged_settings({**settings, **changed}, values.get("payload", "l"), kept)
    return {one.check.removeprefix("postgresql_"): one for one in found}


@pytest.mark.parametrize(
    ("values", "check", "status"),
    [
        ({"fsync": "off"}, "fsync", "failure"),
        ({"full_page_writes": "off"}, "full_page_writes", "warning"),
        ({"synchronous_commit": "off"}, "synchronous_commit", "ok"),
        ({"max_wal_size": str(1 << 30)}, "max_wal_size", "warning"),
        (
            {"max_wal_size": str(1 << 30), "shared_buffers": str(1 << 28)},
            "shared_buffers",
            "warning",
        ),
        ({"shared_buffers": str(1 << 28)}, "shared_buffers", "ok"),
        ({"payload": "p"}, "payload_compression", "warning"),
        ({"kept": "0"}, "max_locks_per_transaction", "warning"),
        ({"kept": "7"}, "max_locks_per_transaction", "ok"),
    ],
    ids=str,
)
def test_a_setting_that_costs_is_told_with_what_it_costs(
    values: dict[str, str], check: str, status: str
) -> None:
    found = judged(**values)
    assert found[check].status == status
    assert (found[check].advice is not None) == (status != "ok")
    if status == "ok":
        assert {one.status for one in found.values()} == {"ok"}


async def test_a_server_that_hangs_after_its_greeting_is_not_waited_for(
    environment: dict[str, str], services_url: str
) -> None:
    relay = Relay(int(services_url.rpartition(":")[2].partition("/")[0]))
    await relay.mend()
    try:
        relay.is_half_open = True
        login, _, rest = services_url.rpartition("@")
        url = f"{login}@127.0.0.1:{relay.port}/{rest.partition('/')[2]}"
        began = time.monotonic()
        found = await findings_of({**environment, "DATABASE_URL": url})
        assert time.monotonic() - began < 10
    finally:
        await relay.cut()
    assert found["postgresql"].status == "failure"
    assert found["redis"].status == "ok"


def doctor(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "logging_service.cli", "doctor", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
        text=True,
    )


def test_programs_get_json_with_stable_names_and_an_exit_code(
    environment: dict[str, str],
) -> None:
    done = doctor(environment, "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "failure"
    assert set(told) == {"status", "checks"}
    assert all(set(one) == {"check", "status", "found", "advice"} for one in told["checks"])
    assert {one["status"] for one in told["checks"]} == {"ok", "warning", "failure"}
    assert len({one["check"] for one in told["checks"]}) == len(told["checks"])


def test_what_is_skipped_is_not_looked_at(tmp_path: Path) -> None:
    away = ("postgresql", "redis", "services")
    skipped = [word for name in away for word in ("--skip", name)]
    environment = {"DATA_DIR": str(tmp_path), "API_KEY": "test_key_123"}
    done = doctor(environment, "--json", *skipped)
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert told["status"] == "ok", [one for one in told["checks"] if one["status"] != "ok"]
    assert not {one["check"] for one in told["checks"]} & {*away, "producer", "client"}


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    done = doctor({"REDIS_PORT": "x", "DATA_DIR": str(tmp_path), "REDIS_QUEU_NAME": "a"})
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("failure  settings") and "REDIS_PORT='x'" in line for line in lines)
    assert any("did you mean REDIS_QUEUE_NAME?" in line for line in lines)
    assert done.stdout.isascii() or "\x1b" not in done.stdout
    assert lines[-1].startswith("1 failure, 1 warning")
