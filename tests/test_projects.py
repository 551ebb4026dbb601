"""Projects are kept apart: every route, asked with every kind of key, shows the key's own alone."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from uuid import UUID

import asyncpg
import pytest
import requests
from conftest import ADMIN_API_KEY, API_KEY, url_of
from consuming import until
from events_made import a_delivery, an_event
from kept_reviews import gateway_settings, store_one
from served import ask, served
from servers import run_service, unused_port

from code_reviewer.findings import Submission
from logging_service.api_keys import EVERY_SCOPE, READ_WRITE, terms_of
from logging_service.audit import COMMAND_LINE
from logging_service.backends import open_keys, open_store
from logging_service.embedded import Postgres, Valkey
from logging_service.ports import DeadLetter, EventStore, Sorted
from logging_service.query_service import create_app
from logging_service.schema import migrate
from logging_service.settings import Settings
from storage import open_storage

SINCE = datetime.now(UTC).replace(minute=7, second=13, microsecond=0) - timedelta(days=2)
PERIOD = {
    "start_time": SINCE.isoformat(),
    "end_time": (SINCE + timedelta(hours=30, minutes=3)).isoformat(),
}
ALPHA, BETA = "alpha", "beta"


def mark_of(project: str) -> str:
    return f"{project}mark"


def id_of(project: str, number: int) -> UUID:
    return UUID(int=int.from_bytes(mark_of(project).encode()) << 32 | 4 << 76 | number)


def events_of(project: str, *, number: int = 8, own: bool = True) -> list[bytes]:
    """Events with the project's mark in everything that a sender chooses, or with none of it."""
    mark = mark_of(project) if own else "shared"
    kinds = ("llm_query_sent", "review_completed", "error_occurred", f"{mark}_type")
    return [
        an_event(
            kinds[place % len(kinds)],
            f"{mark} session {place % 3}",
            {
                "user_id": f"{mark} user",
                "model": f"{mark}-model",
                "provider": f"{mark}-provider",
                "note": f"{mark} text",
                "input_tokens": 7 * (len(project) + place),
                "cost": 0.25,
                "duration_ms": 10 * (place + len(project)),
                "counts": {"error": 1},
            },
            event_id=id_of(project, place + (not own) * 1_000),
            timestamp=SINCE + timedelta(hours=3 * place, microseconds=len(project)),
            source=project,
        )
        for place in range(number)
    ]


async def add(store: EventStore, events: Sequence[bytes]) -> None:
    await store.append(Sorted(a_delivery(*events), list(events)))


class Caller(NamedTuple):
    """Who asks: what its key is for, and what happened to that key."""

    scopes: frozenset[str] = frozenset()
    project: str = ""
    fate: str = "good"


CALLERS = {
    "nobody": Caller(fate="no key"),
    "revoked": Caller(EVERY_SCOPE, BETA, "revoked"),
    "expired": Caller(EVERY_SCOPE, BETA, "expired"),
    "alpha": Caller(READ_WRITE, ALPHA),
    "alpha read": Caller(frozenset({"read"}), ALPHA),
    "alpha write": Caller(frozenset({"write"}), ALPHA),
    "alpha erase": Caller(frozenset({"erase"}), ALPHA),
    "beta": Caller(READ_WRITE, BETA),
    "admin alone": Caller(frozenset({"admin"}), "ops"),
    "admin": Caller(EVERY_SCOPE, "ops"),
}


class Probe(NamedTuple):
    """One request to a route, and the status that who may ask gets.

    `owner` is the project that it is about: a key of another one gets `to_others`.
    """

    query: Mapping[str, str] = {}
    good: int = 200
    body: Any = None
    headers: Mapping[str, str] = {}
    part: str = ""
    owner: str = ""
    to_others: int = 403
    scopes: tuple[str, ...] = ()


class Route(NamedTuple):
    """What a route needs: a scope, "" for none, and whether it is closed to keys of one project."""

    scope: str
    probes: tuple[Probe, ...] = (Probe(),)
    of_all_projects: bool = False


def filters(*names: str) -> tuple[Probe, ...]:
    return tuple(
        Probe({name: f"{mark_of(project)}{text}"})
        for project in (ALPHA, BETA)
        for name, text in (names_and_texts.split("=") for names_and_texts in names)
    )


EVENTS = Route(
    "read",
    (
        Probe(),
        Probe({"limit": "3", "order": "asc", "page": "2"}),
        Probe({**PERIOD, "limit": "2"}),
        *filters("session_id= session 1", "event_type=_type", "q= text", "payload.model=-model"),
        Probe({"payload.model!": "none"}),
        *(Probe({"source": project}, owner=project) for project in (ALPHA, BETA)),
        Probe({"source": ""}, owner="nobody"),
        Probe({"source": "audit"}, owner="audit"),
    ),
)
ONE_EVENT = Route(
    "read",
    tuple(
        Probe({"timestamp": time}, part=str(id_of(project, 1)), owner=project, to_others=404)
        for project in (ALPHA, BETA)
        for time in [(SINCE + timedelta(hours=3, microseconds=len(project))).isoformat()]
    ),
)


def analytics(*dimensions: str) -> Route:
    grouped = [{**PERIOD, "group_by": names} for names in dimensions]
    in_series = [{**question, "series": "groups", "interval": "day"} for question in grouped]
    probes = [Probe(question) for question in ({}, PERIOD, *in_series)]
    probes += [Probe({**question, "limit": "1"}) for question in grouped]
    probes += [Probe(question, headers={"Accept": "text/csv"}) for question in (PERIOD, *grouped)]
    return Route("read", tuple(probes))


ANALYTICS = {
    "usage": analytics("event_type", "user_id", "session_id", "event_type,user_id"),
    "llm": analytics("model", "source", "user_id", "session_id", "provider,model,source"),
    "performance": analytics("operation"),
    "reviews": analytics("user_id", "source"),
}
EVENT = {"event_type": "review_started", "payload": {"n": 1}}


def review_of(project: str) -> str:
    return str(id_of(project, 2_000))


def one_review(*queries: Mapping[str, str]) -> Route:
    return Route(
        "read",
        tuple(
            Probe(query, part=review_of(project), owner=project, to_others=404)
            for project in (ALPHA, BETA)
            for query in queries
        ),
    )


OPEN, ADMIN = Route(""), "admin"
NEW_KEY = {"name": "made here", "project": "ops", "scopes": ["admin"]}

# Every route of the services: one that is added needs an entry here.
ROUTES: dict[tuple[str, str, str], Route] = {
    ("producer", "GET", "/problems/{slug}"): Route("", (Probe(part="body"),)),
    ("producer", "GET", "/metrics"): OPEN,
    ("producer", "GET", "/health"): OPEN,
    ("producer", "GET", "/queue/status"): OPEN,
    ("producer", "GET", "/log"): Route("write"),
    ("producer", "POST", "/log"): Route(
        "write",
        (
            Probe(good=202, body=EVENT),
            Probe(good=422, body={"event_type": "audit.key_revoked"}),
        ),
    ),
    ("producer", "POST", "/logs"): Route(
        "write",
        (
            Probe(good=202, body=[EVENT]),
            Probe({"backfill": "true"}, 202, [EVENT], scopes=("admin",)),
        ),
    ),
    ("query", "GET", "/problems/{slug}"): Route("", (Probe(part="body"),)),
    ("query", "GET", "/metrics"): OPEN,
    ("query", "GET", "/health"): OPEN,
    ("query", "GET", "/events"): EVENTS,
    ("query", "GET", "/events/types"): Route("read"),
    ("query", "GET", "/events/{event_id}"): ONE_EVENT,
    ("query", "GET", "/balance"): Route("read", of_all_projects=True),
    **{("query", "GET", f"/analytics/{subject}"): ANALYTICS[subject] for subject in ANALYTICS},
    ("query", "GET", "/dead-letters"): Route(ADMIN),
    ("query", "GET", "/dead-letters/{letter_id}"): Route(ADMIN, (Probe(part="1"),)),
    ("query", "POST", "/dead-letters/replay"): Route(ADMIN, (Probe(body={"ids": [10**9]}),)),
    ("query", "GET", "/keys"): Route(ADMIN),
    ("query", "POST", "/keys"): Route(ADMIN, (Probe(good=201, body=NEW_KEY),)),
    ("query", "GET", "/keys/{key_id}"): Route(ADMIN, (Probe(part="read"),)),
    ("query", "POST", "/keys/{key_id}/rotate"): Route(ADMIN, (Probe(good=201, part="rotate"),)),
    ("query", "DELETE", "/keys/{key_id}"): Route(ADMIN, (Probe(part="revoke"),)),
    # What is accepted here is never stored, and an erasure waits for it: who may ask is told 422.
    ("query", "POST", "/erasures"): Route("erase", (Probe(good=422, body={}),)),
    ("gateway", "GET", "/problems/{slug}"): Route("", (Probe(part="body"),)),
    ("gateway", "GET", "/metrics"): OPEN,
    ("gateway", "GET", "/health"): OPEN,
    ("gateway", "POST", "/reviews"): Route(
        "write", (Probe(body={"code": "x = 1\n"}), Probe(good=422, body={}))
    ),
    ("gateway", "GET", "/reviews"): Route(
        "read",
        (
            Probe(),
            Probe({"status": "completed", "limit": "1"}),
            *filters("session_id= session", "user_id= user"),
        ),
    ),
    ("gateway", "GET", "/reviews/{review_id}"): one_review(
        {}, {"format": "sarif"}, {"format": "markdown"}
    ),
    ("gateway", "GET", "/reviews/{review_id}/events"): one_review({}),
}
SERVICES = ("producer", "query", "gateway")
# What the OpenAPI documents leave out.
UNLISTED: dict[tuple[str, str, str], Route] = {
    **{(service, "GET", "/docs"): OPEN for service in SERVICES},
    **{(service, "GET", "/openapi.json"): OPEN for service in SERVICES},
    **{("gateway", "GET", path): OPEN for path in ("/", "/form.js", "/form.css")},
    **{("query", "HEAD", f"/analytics/{subject}"): Route("read") for subject in ANALYTICS},
}


class Place:
    """The services, with keys of every kind, and events and reviews of two projects."""

    def __init__(self, urls: dict[str, str], keys: dict[str, str], victims: dict[str, str]) -> None:
        self.urls = urls
        self._keys = keys
        self._victims = victims
        self._session = requests.Session()

    def headers_of(self, caller: str) -> dict[str, str]:
        return {"X-API-Key": self._keys[caller]} if caller in self._keys else {}

    def ask(self, route: tuple[str, str, str], probe: Probe, caller: str) -> requests.Response:
        service, method, template = route
        part = self._victims.get(f"{probe.part} {caller}", probe.part)
        head, _, tail = template.partition("{")
        path = head + part + tail.partition("}")[2] if tail else head
        return self._session.request(
            method,
            f"{self.urls[service]}{path}",
            params=probe.query,
            json=probe.body,
            headers={**self.headers_of(caller), **probe.headers},
            timeout=30,
        )


@pytest.fixture(scope="module")
async def place(
    postgres: Postgres, redis_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    connection = await asyncpg.connect(postgres.admin_url, ssl=False)
    await connection.execute("CREATE DATABASE kept_apart OWNER logging_service_user")
    await connection.close()
    environment = {
        "DATABASE_URL": url_of(postgres, "kept_apart"),
        "REDIS_URL": redis_server.url,
        "REDIS_QUEUE_NAME": "kept_apart",
        "DATA_DIR": str(tmp_path_factory.mktemp("kept apart")),
        "PRODUCER_PORT": str(unused_port()),
        "QUERY_SERVICE_PORT": str(unused_port()),
        "GATEWAY_PORT": str(unused_port()),
        # The gateway's own key: its events are of one project, whoever has code reviewed.
        "API_KEY": "key_of_the_gateway",
        "QUERY_REQUIRE_API_KEY": "true",
        "AUTH_FAILURE_LIMIT": "100000/minute",
        "RATE_LIMIT": "100000/minute",
    }
    environment["QUERY_SERVICE_URL"] = f"http://127.0.0.1:{environment['QUERY_SERVICE_PORT']}"
    environment["LOGGING_SERVICE_URL"] = f"http://127.0.0.1:{environment['PRODUCER_PORT']}/log"
    settings = Settings.model_validate({name.lower(): value for name, value in environment.items()})
    await migrate(settings.store_url)
    await store_reviews(settings.store_url, tmp_path_factory.mktemp("another gateway"))
    async with open_store(settings) as store:
        await add(store, events_of(ALPHA) + events_of(BETA)[::2])
        await store.fold()
        await add(store, events_of(BETA)[1::2])
        letters = [DeadLetter(event, "rejected", "is bad", 1) for event in events_of(BETA)[:1]]
        await store.append(Sorted(a_delivery(letters[0].event), [], dead=letters))
    keys, victims = await make_keys(settings)
    with (
        run_service("producer", environment) as producer,
        run_service("query_service", environment) as query,
        run_service("gateway", environment) as gateway,
    ):
        urls = {"producer": producer.url, "query": query.url, "gateway": gateway.url}
        place = Place(urls, keys, victims)
        for url in place.urls.values():
            admin = place.headers_of("admin")
            await until(lambda: requests.get(f"{url}/health", headers=admin, timeout=9).ok)  # noqa: B023
        yield place


async def store_reviews(url: str, folder: Path) -> None:
    """Keep a review of each project, with its mark in all that a sender chooses."""
    async with open_storage(gateway_settings(url, folder)) as storage:
        for project in (ALPHA, BETA):
            mark = mark_of(project)
            code = Submission(code="x", filename=f"{mark}.py", user_id=f"{mark} user")
            await store_one(
                storage,
                review_id=review_of(project),
                session_id=f"{mark} session",
                project=project,
                submission=code,
            )


async def make_keys(settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """Return the text of each caller's key, and the ids of keys for routes that end them."""
    texts: dict[str, str] = {}
    victims: dict[str, str] = {}
    async with open_keys(settings) as store:
        for name, caller in CALLERS.items():
            if caller.fate == "no key":
                continue
            terms = terms_of(name, project=caller.project, scopes=caller.scopes)
            made = await store.create(terms, COMMAND_LINE)
            texts[name] = made.text
            if caller.fate == "revoked":
                await store.revoke(made.key.id, COMMAND_LINE)
            if caller.fate == "expired":
                await _let_expire(settings.store_url, made.key.id)
        for name in CALLERS:
            for use in ("read", "rotate", "revoke"):
                terms = terms_of(f"{use} {name}", project="ops", scopes={"admin"})
                victims[f"{use} {name}"] = (await store.create(terms, COMMAND_LINE)).key.id
    return texts, victims


async def _let_expire(url: str, key_id: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        expired = "UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1"
        await connection.execute(expired, key_id)
    finally:
        await connection.close()


@pytest.mark.parametrize("service", SERVICES)
def test_every_route_has_an_entry_in_the_table(place: Place, service: str) -> None:
    document = requests.get(f"{place.urls[service]}/openapi.json", timeout=30).json()
    served_here = {
        (service, method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert served_here == {route for route in ROUTES if route[0] == service}


def expected(route: tuple[str, str, str], needs: Route, probe: Probe, caller: Caller) -> int:
    """Return the status that the contract gives."""
    if not needs.scope:
        # Where no key is needed, /health alone looks at one.
        is_refused = caller.fate in {"revoked", "expired"} and route[2] == "/health"
        return 401 if is_refused else probe.good
    if caller.fate != "good":
        return 401
    if not {needs.scope, *probe.scopes} <= caller.scopes:
        return 403
    if "admin" in caller.scopes:
        return probe.good
    if needs.of_all_projects:
        return 403
    return probe.to_others if probe.owner not in {"", caller.project} else probe.good


def requests_of_all() -> Iterator[tuple[tuple[str, str, str], Route, Probe]]:
    for route, needs in (ROUTES | UNLISTED).items():
        for probe in needs.probes:
            yield route, needs, probe


@pytest.mark.parametrize("name", CALLERS)
def test_every_route_answers_whom_it_may_and_shows_nothing_of_another_project(
    place: Place, name: str
) -> None:
    caller = CALLERS[name]
    for route, needs, probe in requests_of_all():
        answer = place.ask(route, probe, name)
        asked = (route, probe.query, probe.part)
        assert answer.status_code == expected(route, needs, probe, caller), asked
        if "admin" in caller.scopes and caller.fate == "good":
            continue
        told = f"{answer.headers}{answer.text}"
        sent = unquote(answer.request.url or "")
        for project in {ALPHA, BETA} - {caller.project if caller.fate == "good" else ""}:
            marks = {mark_of(project), str(id_of(project, 1)), id_of(project, 0).hex[:20]}
            marks.add(review_of(project))
            for mark in marks:
                if mark not in sent:
                    assert mark not in told, asked
        if answer.status_code == 403 and answer.text:
            assert answer.json()["type"] == "/problems/forbidden"


def test_a_key_of_a_project_sees_its_own(place: Place) -> None:
    for project in (ALPHA, BETA):
        answer = place.ask(("query", "GET", "/events"), Probe(), project)
        assert {event["source"] for event in answer.json()["events"]} == {project}
        assert answer.json()["pagination"]["total"] == 8
        types = place.ask(("query", "GET", "/events/types"), Probe(), project).json()["types"]
        assert {one["event_type"]: one["count"] for one in types}[f"{project}mark_type"] == 2
        usage = place.ask(("query", "GET", "/analytics/usage"), Probe(PERIOD), project)
        assert usage.json()["metrics"]["total_events"] == 8
    admin = place.ask(("query", "GET", "/events"), Probe({"limit": "1000"}), "admin")
    assert {ALPHA, BETA} <= {event["source"] for event in admin.json()["events"]}


def test_a_cursor_of_one_project_is_none_of_another(place: Place) -> None:
    for route, probe, following in (
        (("query", "GET", "/events"), {"limit": "2"}, ("pagination", "next_cursor")),
        (
            ("query", "GET", "/analytics/usage"),
            {**PERIOD, "group_by": "session_id", "limit": "1"},
            ("groups_next_cursor",),
        ),
    ):
        cursor = place.ask(route, Probe(probe), ALPHA).json()
        for name in following:
            cursor = cursor[name]
        again = Probe({**probe, "cursor": cursor})
        assert place.ask(route, again, "alpha read").status_code == 200
        for other in ("beta", "admin"):
            refused = place.ask(route, again, other)
            assert [fault["loc"] for fault in refused.json()["errors"]] == ["cursor"]


def test_an_answer_that_one_project_knows_is_not_known_to_another(place: Place) -> None:
    route = ("query", "GET", "/analytics/usage")
    for _ in range(3):
        tags = {
            caller: place.ask(route, Probe(PERIOD), caller).headers["ETag"]
            for caller in ("alpha", "alpha read", "beta", "admin")
        }
        if tags["alpha"] == tags["alpha read"]:
            break  # else a minute ended in between
    assert tags["alpha"] == tags["alpha read"]
    assert len(set(tags.values())) == 3


READ = [(route, probe) for route, needs, probe in requests_of_all() if needs.scope == "read"]


async def answers(url: str, key: str) -> dict[str, Any]:
    """Return what every route that reads says about the past, without what tells of the present."""
    found = {}
    for (_, method, template), probe in READ:
        if method == "HEAD" or not {"start_time", "timestamp", "limit"} & set(probe.query):
            continue
        path = template.replace("{event_id}", probe.part)
        asked = {"params": probe.query, "headers": {"X-API-Key": key, **probe.headers}}
        answer = await ask(f"{url}{path}", method, **asked)
        headers = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in {"etag", "link", "x-request-id", "date", "ratelimit"}
        }
        body: Any = answer.text
        if answer.headers["Content-Type"] == "application/json":
            body = answer.json()
            # Neither the present state nor when the question was asked first.
            body.pop("watermark", None)
            body.pop("groups_next_cursor", None)
            headers.pop("content-length")
        found[json.dumps([path, dict(probe.query), dict(probe.headers)])] = [
            answer.status_code,
            headers,
            body,
        ]
    return found


async def test_what_another_project_writes_changes_no_answer(settings: Settings) -> None:
    # The same sessions, users, models and types in both, at the same times.
    ours, theirs = ("default", "admin")
    async with open_store(settings) as store, served(create_app(settings)) as url:
        await add(store, events_of(ours, own=False))
        before = [await answers(url, key) for key in (API_KEY, ADMIN_API_KEY)]
        await add(store, events_of(theirs, own=False, number=11))
        await store.fold()
        after = [await answers(url, key) for key in (API_KEY, ADMIN_API_KEY)]
    for asked, answer in before[0].items():
        assert after[0][asked] == answer, asked
    changed = [asked for asked, answer in before[1].items() if after[1][asked] != answer]
    assert len(changed) > 20
