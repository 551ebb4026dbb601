"""Dashboards ask for what is there: metrics that services show, tables that the schema has."""

import json
import re
from typing import Any

import asyncpg
import pytest
import yaml
from servers import ROOT

from logging_service import metrics

GRAFANA = ROOT / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
_NAME = re.compile(r"\b[a-z][a-z0-9_]*_[a-z0-9_]+\b(?=[{\[\s)]|$)")
_OF_PROMQL = re.compile(r"\b(?:by|on|without) \([^)]*\)|histogram_quantile|\{[^}]*\}|\[[^]]*\]")
REGISTRIES = (
    metrics.COMMON, metrics.PRODUCER, metrics.CONSUMER, metrics.QUERY_SERVICE, metrics.GATEWAY
)  # fmt: skip


def read(file: Any) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return dashboard


PANELS = [panel for file in DASHBOARDS for panel in read(file)["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]


def names_shown() -> set[str]:
    names = set()
    for registry in REGISTRIES:
        for family in registry.collect():
            endings = {
                "counter": ["_total"],
                "histogram": ["_bucket", "_sum", "_count"],
            }.get(family.type, [""])
            names |= {family.name + ending for ending in endings}
    return names


def test_every_metric_of_a_dashboard_is_one_that_a_service_shows() -> None:
    shown = names_shown()
    asked = {
        name
        for target in TARGETS
        if "expr" in target
        for name in _NAME.findall(_OF_PROMQL.sub(" ", target["expr"]))
    }
    assert len(asked) > 20
    assert asked <= shown


async def test_every_statement_of_a_dashboard_runs_for_who_only_reads(
    database: asyncpg.Connection,
) -> None:
    statements = [target["rawSql"] for target in TARGETS if "rawSql" in target]
    dashboards = map(read, DASHBOARDS)
    statements += [
        variable["query"] for one in dashboards for variable in one["templating"]["list"]
    ]
    assert len(statements) > 10
    async with database.transaction(readonly=True):
        for statement in statements:
            between = r"\1 BETWEEN now() - interval '7 days' AND now()"
            plain = re.sub(r"\$__timeFilter\((\w+)\)", between, statement)
            await database.fetch(plain.replace("$source", "'default', 'another'"))


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file: Any) -> None:
    dashboard = read(file)
    sources = yaml.safe_load(
        (GRAFANA / "provisioning/datasources/logging-service.yaml").read_text()
    )
    known = {(one["type"], one["uid"]) for one in sources["datasources"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        if panel["type"] != "row":
            assert (panel["datasource"]["type"], panel["datasource"]["uid"]) in known
