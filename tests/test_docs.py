"""Nothing that a user can set, see or call is undocumented, and nothing documented is gone."""

import re

import pytest
import requests
from prometheus_client import CollectorRegistry
from servers import ROOT, run_service

from gateway.settings import GatewaySettings
from logging_service import metrics

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "env.template").read_text(encoding="utf-8")
CLIENT = {"LOGGING_ENABLED", "LOGGING_SERVICE_URL"}
SETTINGS = {name.upper() for name in GatewaySettings.model_fields} - {
    "RATE_LIMITS",
    "LOG_TTLS_DAYS",
}
TEMPLATE_VARIABLES = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", TEMPLATE, re.MULTILINE))


@pytest.mark.parametrize("variable", sorted(SETTINGS | CLIENT))
def test_every_setting_is_documented(variable: str) -> None:
    assert f"`{variable}`" in OPERATIONS
    assert variable in TEMPLATE_VARIABLES


def test_the_template_names_no_setting_that_is_not_there() -> None:
    known = SETTINGS | CLIENT
    families = ("RATE_LIMIT_", "LOG_TTL_DAYS_")
    assert {name for name in TEMPLATE_VARIABLES if not name.startswith(families)} <= known


def test_the_template_sets_nothing_by_itself() -> None:
    assert not re.findall(r"^[A-Z_]+=", TEMPLATE, re.MULTILINE)


@pytest.mark.parametrize("variable", sorted(SETTINGS - {"API_KEY", "ADMIN_API_KEY", "DATA_DIR"}))
def test_the_template_shows_the_default(variable: str) -> None:
    default = GatewaySettings.model_fields[variable.lower()].default
    if default is not None:
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert TEMPLATE_VARIABLES[variable].rstrip("0").rstrip(".") == shown.rstrip("0").rstrip(".")


def names_of(registry: CollectorRegistry) -> set[str]:
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
        if not family.name.startswith(("process_", "python_"))
    }


def test_every_metric_is_documented_and_every_documented_metric_is_there() -> None:
    registries = (
        metrics.COMMON,
        metrics.PRODUCER,
        metrics.CONSUMER,
        metrics.QUERY_SERVICE,
        metrics.GATEWAY,
    )
    there = set().union(*map(names_of, registries))
    table = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)`", table, re.MULTILINE)) == there


@pytest.mark.parametrize("service", ["producer", "consumer", "query_service", "gateway"])
def test_every_route_is_documented(service: str, environment: dict[str, str]) -> None:
    with run_service(service, environment) as running:
        paths = requests.get(f"{running.url}/openapi.json", timeout=5).json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in API


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
