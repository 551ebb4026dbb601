"""The alerts: what each asks Prometheus, when it fires, and its rule as text.

Prometheus knows no variables, so what a site sets is put into the rules: `logging-service alerts`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from logging_service.errors import SettingsError

RUNBOOK: Final = "docs/operations.md"
EVERY: Final = "all"


class Alert(NamedTuple):
    """One alert: fires when `expression` has held for `lasting`, with `{limit}` and `{over}`."""

    name: str
    expression: str
    limit: str
    lasting: str
    severity: str
    summary: str
    # Over how long it looks back; empty where it looks at what is.
    over: str = ""

    def rule(self, runbook: str) -> str:
        """Return it as Prometheus reads it; `runbook` is the page that says what to do."""
        expression = self.expression.replace("{limit}", self.limit).replace("{over}", self.over)
        return "\n".join(
            (
                f"      - alert: {self.name}",
                f"        expr: {json.dumps(expression)}",
                f"        for: {self.lasting}",
                f"        labels: {{severity: {self.severity}}}",
                "        annotations:",
                f"          summary: {json.dumps(self.summary)}",
                f"          runbook_url: {json.dumps(f'{runbook}#{self.name.lower()}')}",
            )
        )


# What supervisors ask is no work.
_WORK = "endpoint!~'/health|/metrics'"
ALERTS: Final = (
    Alert(
        "ServiceDown",
        "up{job='logging-service'} == 0",
        "",
        "2m",
        "critical",
        "{{ $labels.instance }} does not answer",
    ),
    Alert(
        "QueueGrowing",
        "max(queue_size) > {limit} and max(deriv(queue_size[{over}])) > 0",
        "10000",
        "10m",
        "warning",
        "{{ $value }} events wait, and they become more",
        "10m",
    ),
    Alert(
        "OldestEventTooOld",
        "max(oldest_event_age_seconds) > {limit}",
        "300",
        "5m",
        "critical",
        "the oldest event has waited for {{ $value | humanizeDuration }}",
    ),
    Alert(
        "SpoolInUse",
        "max(spool_active) > 0 or max(spool_events) > {limit}",
        "0",
        "5m",
        "warning",
        "events are held on a producer's disk, since Redis does not take them",
    ),
    Alert(
        "DeadLetters",
        "max(dead_letters) > {limit}",
        "0",
        "5m",
        "warning",
        "{{ $value }} events could not be stored and were put aside",
    ),
    Alert(
        "ErrorRatio",
        f"sum by (service) (rate(api_requests_total{{status_code=~'5..',{_WORK}}}[{{over}}])) / "
        f"sum by (service) (rate(api_requests_total{{{_WORK}}}[{{over}}])) > {{limit}}",
        "0.05",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the answers of {{ $labels.service }} are errors",
        "5m",
    ),
    Alert(
        "ConsumerStalled",
        "max(consumer_stopped) == 1 or (max(queue_size) + max(queue_in_flight) > 0"
        " unless time() - max(consumer_last_stored_timestamp_seconds) < {limit})",
        "120",
        "2m",
        "critical",
        "events wait, and no consumer stores any",
    ),
    Alert(
        "ModelCostPerHour",
        "sum(rate(llm_cost_dollars_total[{over}])) * 3600 > {limit}",
        "10",
        "5m",
        "warning",
        "model calls cost {{ $value | printf `%.2f` }} dollars an hour",
        "1h",
    ),
    Alert(
        "DiskAlmostFull",
        "1 - min by (instance) (data_folder_free_bytes / data_folder_size_bytes) > {limit}",
        "0.9",
        "5m",
        "critical",
        "the disk of DATA_DIR is {{ $value | humanizePercentage }} full at {{ $labels.instance }}",
    ),
)

# As Prometheus has it: larger units first, each once.
_PARTS = "".join(rf"(?:[1-9][0-9]{{0,5}}{unit})?" for unit in ("w", "d", "h", "m", "s", "ms"))
_DURATION = re.compile(rf"(?=.){_PARTS}")
_OR_NONE = re.compile(rf"0s|(?=.){_PARTS}")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_ALLOWED: Final = {
    "limit": (_NUMBER, "a number such as 0.05"),
    "lasting": (_OR_NONE, "a duration such as 0s, 90s or 1h30m"),
    "over": (_DURATION, "a duration such as 90s or 1h30m"),
}
_HEAD = """\
# Made by `logging-service alerts`, which also makes it with other limits and times.
groups:
  - name: logging-service
    rules:
"""


def rules(changes: Mapping[str, Iterable[str]], runbook: str = RUNBOOK) -> str:
    """Return the file of rules; `changes` has, by field, texts `NAME=VALUE`, where `all` is a name.

    Raises SettingsError for an alert that there is not, and for what Prometheus would not take.
    """
    if "{{" in runbook:
        raise SettingsError(f"{runbook!r}: Prometheus would take it for a template")
    alerts = list(ALERTS)
    for field, texts in changes.items():
        for text in texts:
            alerts = [*_changed(alerts, field, text)]
    return _HEAD + "".join(alert.rule(runbook) + "\n" for alert in alerts)


def _changed(alerts: Iterable[Alert], field: str, text: str) -> Iterator[Alert]:
    name, _, value = text.partition("=")
    names = [alert.name for alert in ALERTS if getattr(alert, field)]
    if name not in {*names, EVERY}:
        raise SettingsError(f"{text!r}: the alerts are {', '.join(names)} and {EVERY}")
    pattern, allowed = _ALLOWED[field]
    if not pattern.fullmatch(value):
        raise SettingsError(f"{text!r}: behind {name}= has to be {allowed}")
    for alert in alerts:
        is_meant = name in {alert.name, EVERY} and alert.name in names
        yield alert._replace(**{field: value}) if is_meant else alert
