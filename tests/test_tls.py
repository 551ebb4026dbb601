"""TLS to Redis and PostgreSQL: the right server is spoken to, any other is refused in one line."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
import requests
from events_made import a_delivery, an_event
from servers import run_service, run_to_end
from tls_relay import Authority, tls_before_postgres, tls_before_redis

from logging_service.errors import BackendUnavailable, LoggingServiceError
from logging_service.ports import Appended, Sorted
from logging_service.postgres_store import open_postgres_store
from logging_service.redis_queue import open_redis_queue
from logging_service.schema import migrate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "another")


def one_line(said: pytest.ExceptionInfo[LoggingServiceError]) -> str:
    text = str(said.value)
    assert "\n" not in text
    return text


class TestRedis:
    @staticmethod
    async def works(url: str) -> None:
        async with open_redis_queue(url, name="q", ttl_seconds=60, timeout_ms=2000) as queue:
            event = an_event(payload={"text": "x" * 200_000})
            assert await queue.put([event] * 20) == "queued"
            delivery = await queue.take(100, 0)
            assert delivery is not None
            assert delivery.events == [event] * 20
            await queue.done(delivery)

    @staticmethod
    async def refusal(url: str) -> str:
        async with open_redis_queue(url, name="q", ttl_seconds=60, timeout_ms=2000) as queue:
            with pytest.raises(BackendUnavailable) as said:
                await queue.take(1, 0)
            with pytest.raises(BackendUnavailable):
                await queue.put([an_event()])
        return one_line(said)

    async def test_a_server_that_the_authority_vouches_for_is_used(
        self, redis_url: str, authority: Authority
    ) -> None:
        async with tls_before_redis(redis_url, authority.server("localhost")) as url:
            await self.works(f"{url}?ssl_ca_certs={authority.file}")

    async def test_a_server_of_another_authority_is_refused(
        self, redis_url: str, authority: Authority, stranger: Authority
    ) -> None:
        async with tls_before_redis(redis_url, authority.server("localhost")) as url:
            assert "localhost" in await self.refusal(f"{url}?ssl_ca_certs={stranger.file}")
            assert "certificate" in await self.refusal(url)

    async def test_a_server_of_another_name_is_refused(
        self, redis_url: str, authority: Authority
    ) -> None:
        async with tls_before_redis(redis_url, authority.server("redis.example")) as url:
            ours = f"{url}?ssl_ca_certs={authority.file}"
            assert "localhost" in await self.refusal(ours)
            await self.works(f"{ours}&ssl_check_hostname=false")

    async def test_no_proof_is_asked_for_where_the_operator_says_so(
        self, redis_url: str, authority: Authority
    ) -> None:
        async with tls_before_redis(redis_url, authority.server("redis.example")) as url:
            await self.works(f"{url}?ssl_cert_reqs=none")

    async def test_a_client_shows_its_certificate_where_the_server_asks_for_one(
        self, redis_url: str, authority: Authority, tmp_path: Path
    ) -> None:
        certificate, key = authority.client(tmp_path)
        context = authority.server("localhost", asks_clients=True)
        async with tls_before_redis(redis_url, context) as url:
            ours = f"{url}?ssl_ca_certs={authority.file}"
            await self.refusal(ours)
            await self.works(f"{ours}&ssl_certfile={certificate}&ssl_keyfile={key}")

    async def test_a_server_that_speaks_no_tls_or_nothing_else_is_refused(
        self, redis_url: str, authority: Authority
    ) -> None:
        await self.refusal(redis_url.replace("redis://", "rediss://"))
        async with tls_before_redis(redis_url, authority.server("localhost")) as url:
            await self.refusal(url.replace("rediss://", "redis://"))

    def test_a_file_that_cannot_be_used_stops_the_start_with_one_line(
        self, environment: dict[str, str]
    ) -> None:
        url = "rediss://:a-secret@localhost:6379/0?ssl_ca_certs=/no/such/file"
        code, output = run_to_end("consumer", {**environment, "REDIS_URL": url})
        assert (code, output.count("\n")) == (2, 1)
        assert "REDIS_URL" in output
        assert "ssl_ca_certs: No such file" in output
        assert "a-secret" not in output


class TestPostgres:
    async def test_a_server_that_the_authority_vouches_for_is_used(
        self, database_url: str, database: asyncpg.Connection, authority: Authority
    ) -> None:
        async with tls_before_postgres(database_url, authority.server("127.0.0.1")) as through:
            url = f"{through}?sslmode=verify-full&sslrootcert={authority.file}"
            await self.works(url)
        assert await database.fetchval("SELECT count(*) FROM log_events") == 50

    async def test_an_empty_database_is_migrated_over_tls(
        self, empty_database_url: str, authority: Authority
    ) -> None:
        context = authority.server("127.0.0.1")
        async with tls_before_postgres(empty_database_url, context) as through:
            url = f"{through}?sslmode=verify-full&sslrootcert={authority.file}"
            await migrate(url)
            await self.works(url)

    async def test_a_server_of_another_authority_or_name_is_refused(
        self, database_url: str, authority: Authority, stranger: Authority
    ) -> None:
        async with tls_before_postgres(database_url, authority.server("127.0.0.1")) as through:
            strict = f"{through}?sslmode=verify-full&sslrootcert"
            assert "certificate" in await self.refusal(f"{strict}={stranger.file}")
            named = strict.replace("127.0.0.1", "localhost")
            assert "localhost" in await self.refusal(f"{named}={authority.file}")

    async def test_a_server_without_tls_is_refused(
        self, database_url: str, authority: Authority
    ) -> None:
        url = f"{database_url}?sslmode=verify-full&sslrootcert={authority.file}"
        assert "SSL" in await self.refusal(url)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("sslmode=verify-full&sslrootcert=/no/such/file", "sslrootcert: there is no such file"),
            ("sslmode=full", "verify-full"),
        ],
    )
    def test_options_that_cannot_be_used_stop_the_start_with_one_line(
        self, environment: dict[str, str], options: str, said: str
    ) -> None:
        url = f"postgresql://nobody:a-secret@localhost/none?{options}"
        code, output = run_to_end("consumer", {**environment, "DATABASE_URL": url})
        assert (code, output.count("\n")) == (2, 1)
        assert "DATABASE_URL" in output
        assert said in output
        assert "a-secret" not in output

    @staticmethod
    async def works(url: str) -> None:
        events = [an_event(payload={"n": n}) for n in range(50)]
        async with open_postgres_store(url, connections=1) as store:
            await store.check()
            appended = await store.append(Sorted(a_delivery(*events), events))
        assert appended == Appended(50, 0, 0, 0)

    @staticmethod
    async def refusal(url: str) -> str:
        async with open_postgres_store(url, connections=1) as store:
            with pytest.raises(BackendUnavailable) as said:
                await store.check()
        return one_line(said)


def test_a_password_that_is_not_quoted_is_not_shown(environment: dict[str, str]) -> None:
    for name, scheme in (("DATABASE_URL", "postgresql"), ("REDIS_URL", "redis")):
        url = f"{scheme}://somebody:secret?word#@localhost/0"
        code, output = run_to_end("consumer", {**environment, name: url})
        assert (code, output.count("\n")) == (2, 1)
        assert name in output
        assert "secret" not in output


async def test_the_services_speak_tls_to_both(
    redis_url: str,
    database_url: str,
    environment: dict[str, str],
    database: asyncpg.Connection,
    authority: Authority,
) -> None:
    context = authority.server("localhost", "127.0.0.1")
    async with (
        tls_before_redis(redis_url, context) as queue_url,
        tls_before_postgres(database_url, context) as store_url,
    ):
        secured = {
            **environment,
            "REDIS_URL": f"{queue_url}?ssl_ca_certs={authority.file}",
            "DATABASE_URL": f"{store_url}?sslmode=verify-full&sslrootcert={authority.file}",
        }
        await asyncio.to_thread(_post_through_both, secured)
    assert await database.fetchval("SELECT count(*) FROM log_events") == 1


def _post_through_both(environment: dict[str, str]) -> None:
    with run_service("producer", environment) as producer, run_service("consumer", environment):
        answer = requests.post(
            f"{producer.url}/log?wait=stored",
            json={"event_type": "review_started"},
            headers={"X-API-Key": environment["API_KEY"]},
            timeout=10,
        )
    assert (answer.status_code, answer.json()["status"]) == (202, "stored")
