"""What each service's own document allows, and what it forbids, meets no mistake of ours."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import schemathesis
from conftest import ADMIN_API_KEY
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.core.result import Ok
from servers import RunningService, run_service

_EXAMPLES = 10


@pytest.fixture
def services(environment: dict[str, str]) -> Iterator[list[RunningService]]:
    """All: what waits until the queue is empty needs a consumer."""
    often = {**environment, "RATE_LIMIT": "100000/minute"}
    with ExitStack() as stack:
        stack.enter_context(run_service("consumer", often))
        names = ("producer", "query_service", "gateway")
        yield [stack.enter_context(run_service(name, often)) for name in names]


def test_no_request_is_answered_with_our_mistake(services: list[RunningService]) -> None:
    for service in services:
        asked = 0
        schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            for mode in GenerationMode:
                asked += _answers_of(found.ok(), mode)
        assert asked > 50
        assert "unhandled_error" not in service.log


def _answers_of(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> int:
    asked = 0

    @seed(6)
    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        nonlocal asked
        asked += 1
        answer = case.call(headers={"X-API-Key": ADMIN_API_KEY}, timeout=30)
        assert answer.status_code < 500, f"{case.as_curl_command()}\n{answer.text}"

    try:
        ask()
    except Unsatisfiable:
        # Where nothing may be sent there is nothing to send wrong.
        assert mode is GenerationMode.NEGATIVE
    return asked
