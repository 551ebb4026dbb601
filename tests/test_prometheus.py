"""A real Prometheus scrapes running services, and takes the rules of the alerts."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from projects import soon
from prometheus_client import CollectorRegistry
from servers import ROOT, run_service, unused_port
from typer.testing import CliRunner

from logging_service import metrics
from logging_service.alerts import ALERTS, rules
from logging_service.cli import app
from logging_service.errors import SettingsError

KEY = {"X-API-Key": "test_key_123"}
PORTS = {
    "GATEWAY_PORT": "8000",
    "PRODUCER_PORT": "8001",
    "QUERY_SERVICE_PORT": "8002",
    "METRICS_PORT": "9091",
}
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not on the PATH",
)


def promtool(*arguments: str) -> str:
    """Return what promtool says, once it has found nothing wrong."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """A running Prometheus; `ask` is a query, at this moment."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, query: str) -> list[dict[str, Any]]:
        asked = {"query": query}
        answer = requests.get(f"{self._url}/api/v1/query", params=asked, timeout=10).json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def values(self, query: str) -> list[float]:
        return [float(series["value"][1]) for series in self.ask(query)]

    def is_ready(self) -> bool:
        try:
            return requests.get(f"{self._url}/-/ready", timeout=1).ok
        except requests.RequestException:
            return False

    def fires(self, alert: str) -> bool:
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))


@pytest.fixture
def prometheus(environment: dict[str, str], tmp_path: Path) -> Iterator[Prometheus]:
    """One with our own configuration, moved to the ports of this test and in a hurry."""
    config = (ROOT / "prometheus.yml").read_text(encoding="utf-8")
    for variable, usual in PORTS.items():
        assert config.count(f"localhost:{usual}") == 1
        config = config.replace(f"localhost:{usual}", f"127.0.0.1:{environment[variable]}")
    (tmp_path / "prometheus.yml").write_text(config.replace(": 15s", ": 500ms"))
    (tmp_path / "alerts.yml").write_text(rules({"lasting": ["all=0s"]}))
    port = unused_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        assert soon(prometheus.is_ready), (tmp_path / "prometheus.log").read_text()
        yield prometheus
    finally:
        process.kill()
        process.wait()


def send(url: str, path: str, times: int) -> None:
    event = {"event_type": "review_started"}
    body = event if path == "/log" else [event]
    for _ in range(times):
        requests.post(f"{url}{path}", json=body, headers=KEY, timeout=10).raise_for_status()


def is_about(expected: float, rate: float) -> bool:
    """Whether it may be so, as far as a rate goes, which guesses at both ends."""
    return expected / 2 <= rate <= expected * 2


@needs_prometheus
def test_what_was_sent_is_what_prometheus_tells(
    environment: dict[str, str], prometheus: Prometheus
) -> None:
    with (
        run_service("producer", environment, "--workers", "2") as producer,
        run_service("query_service", environment),
    ):
        for path in ("/log", "/logs"):
            send(producer.url, path, 1)
        taken = 'api_requests_total{status_code="202"}'
        assert soon(lambda: prometheus.values(taken) == [1, 1])
        send(producer.url, "/log", 30)
        send(producer.url, "/logs", 10)
        assert soon(lambda: prometheus.values("queue_size") == [42])
        assert soon(lambda: sorted(prometheus.values(taken)) == [11, 31])

        rates = {
            (one["metric"]["endpoint"], one["metric"]["status_code"]): float(one["value"][1])
            for one in prometheus.ask("rate(api_requests_total[5m])")
        }
        assert is_about(30, rates["/log", "202"] * 300)
        assert is_about(10, rates["/logs", "202"] * 300)

        parts = ["request_duration_seconds_sum", "request_duration_seconds_count"]
        (first_sum, last_sum), (first, last) = [
            [float(values[at][1]) for at in (0, -1)]
            for part in parts
            for values in [prometheus.ask(f'{part}{{endpoint="/log"}}[5m]')[0]["values"]]
        ]
        [mean] = [
            float(one["value"][1])
            for one in prometheus.ask(f"rate({parts[0]}[5m]) / rate({parts[1]}[5m])")
            if one["metric"]["endpoint"] == "/log"
        ]
        assert last - first == 30
        assert is_about((last_sum - first_sum) / 30, mean)

        failures = 'rate(api_requests_total{status_code="500"}[5m])'
        for endpoint in ("/log", "/logs", "/events"):
            of_one = failures.replace("{", f'{{endpoint="{endpoint}",')
            assert soon(lambda query=of_one: set(prometheus.values(query)) == {0})  # type: ignore[misc]
        assert set(prometheus.values(failures)) == {0}

        assert soon(lambda: prometheus.fires("ConsumerStalled"))
        with run_service("consumer", environment):
            assert soon(lambda: prometheus.values("events_stored_total") == [42])
            assert soon(lambda: not prometheus.fires("ConsumerStalled"))
            since = "time() - consumer_last_stored_timestamp_seconds"
            assert 0 <= prometheus.values(since)[0] < 60
            assert soon(lambda: prometheus.values("sum(up)") == [3])
            assert prometheus.fires("ServiceDown")  # the gateway's
            with run_service("gateway", environment):
                assert soon(lambda: prometheus.values("sum(up)") == [4])
                assert soon(lambda: not prometheus.fires("ServiceDown"))
                assert prometheus.values("reviews_running") == [0]


@needs_prometheus
def test_promtool_takes_both_files() -> None:
    assert "9 rules found" in promtool("check", "config", "prometheus.yml")


@needs_prometheus
def test_each_alert_fires_by_its_cause_and_ends_with_it() -> None:
    promtool("test", "rules", "tests/alerts.test.yml")
    tried = set(re.findall(r"alertname: (\w+)", (ROOT / "tests/alerts.test.yml").read_text()))
    assert tried == {alert.name for alert in ALERTS}


@needs_prometheus
def test_promtool_takes_rules_with_a_site_s_own_values(tmp_path: Path) -> None:
    arguments = ["--for", "all=1h30m", "--for", "DeadLetters=0s", "--over", "all=1m30s"]
    arguments += ["--limit", "ModelCostPerHour=50", "--limit", "DiskAlmostFull=0.955"]
    arguments += ["--runbook", 'https://wiki.example/a "page": { x']
    done = CliRunner().invoke(app, ["alerts", *arguments])
    assert done.exit_code == 0, done.output
    (tmp_path / "rules.yml").write_text(done.output)
    promtool("check", "rules", str(tmp_path / "rules.yml"))
    for part in ("for: 1h30m", "for: 0s", "[1m30s]", "> 50", "> 0.955", "wiki.example"):
        assert part in done.output
    assert "for: 5m" not in done.output


def test_the_rules_in_the_tree_are_what_the_command_prints() -> None:
    assert CliRunner().invoke(app, ["alerts"]).output == (ROOT / "alerts.yml").read_text()


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("limit", "QueueGrowing"),
        ("limit", "QueueGrowing="),
        ("limit", "QueueGrowing=-1"),
        ("limit", "QueueGrowing=1 or vector(1)"),
        ("limit", "QueueGrowing=1\n"),
        ("limit", "ServiceDown=1"),
        ("limit", "NoSuchAlert=1"),
        ("lasting", "all="),
        ("lasting", "all=5"),
        ("lasting", "all=5m5m"),
        ("over", "all=0s"),
        ("over", "DeadLetters=5m"),
    ],
)
def test_what_prometheus_would_not_take_is_refused(field: str, text: str) -> None:
    with pytest.raises(SettingsError):
        rules({field: [text]})


def test_a_page_that_prometheus_would_work_out_is_refused() -> None:
    with pytest.raises(SettingsError):
        rules({}, "https://wiki.example/{{ $labels.instance }}")


def test_alerts_ask_for_metrics_that_there_are() -> None:
    there = {"up", *names_of(metrics.COMMON, metrics.PRODUCER, metrics.CONSUMER)}
    for alert in ALERTS:
        asked = re.findall(r"\b[a-z]+(?:_[a-z]+)+\b(?![=!(])", alert.expression)
        assert set(asked) <= there | {"status_code"}, alert.name


def names_of(*registries: CollectorRegistry) -> set[str]:
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for registry in registries
        for family in registry.collect()
    }


def test_every_alert_has_its_page_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    alerts = manual.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", alerts, re.MULTILINE) == [alert.name for alert in ALERTS]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in alerts.splitlines()]
    told = [(cells[0], *cells[2:]) for cells in rows if cells and cells[0].startswith("`")]
    assert told == [(f"`{one.name}`", one.limit, one.over, one.lasting) for one in ALERTS]
