"""SARIF logs of the gateway, one for each file, made into one."""

from collections.abc import Sequence
from typing import Any

import msgspec

from logging_service.gateway_calls import ReviewRefused
from logging_service.review_answers import MODEL, is_about_all, verdict_of
from logging_service.review_sources import Source

Json = dict[str, Any]


class SarifAnswer(msgspec.Struct, frozen=True):
    """A log with the results that are shown, the verdict on them, and whether the review failed."""

    log: Json
    verdict: str
    failed: bool


def read_log(source: Source, content: bytes) -> SarifAnswer:
    """Return what the gateway said of `source`; raises ReviewRefused where that is no log."""
    try:
        log = msgspec.json.decode(content, type=Json)
        (run,) = log["runs"]
        failed = not run["invocations"][0]["executionSuccessful"]
        if source.changed is None:
            return SarifAnswer(log, run["properties"]["verdict"], failed)
        run["results"] = [result for result in run["results"] if _is_shown(source, result)]
        run["properties"]["verdict"] = verdict = verdict_of(_counted_levels(run["results"]))
    except (msgspec.DecodeError, RecursionError, LookupError, TypeError, ValueError):
        raise ReviewRefused("the gateway's answer is no SARIF of one run") from None
    return SarifAnswer(log, verdict, failed)


def _is_shown(source: Source, result: Json) -> bool:
    region = result["locations"][0]["physicalLocation"]["region"]
    first, last = region["startLine"], region.get("endLine", region["startLine"])
    last -= region.get("endColumn", 2) <= 1
    about = result["properties"]
    return is_about_all(about["source"], about["category"]) or source.is_shown(
        first, max(first, last)
    )


def _counted_levels(results: list[Json]) -> set[str]:
    return {
        result["level"]
        for result in results
        if result["properties"]["source"] != MODEL and not result.get("suppressions")
    }


def merged(answers: Sequence[SarifAnswer]) -> Json:
    """Return one log of one run with all results; each rule is in it once.

    Raises ReviewRefused where a log is not what the standard says.
    """
    try:
        return _merged([answer.log for answer in answers])
    except (LookupError, TypeError):
        raise ReviewRefused("the gateway's answers are no SARIF that can be made one") from None


def _merged(logs: list[Json]) -> Json:
    if not logs:
        return {"version": "2.1.0", "runs": []}
    whole = logs[0]
    run = whole["runs"][0]
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    for log in logs[1:]:
        other = log["runs"][0]
        for rule in other["tool"]["driver"]["rules"]:
            rules.setdefault(rule["id"], rule)
        _move_artifacts(other, len(run["artifacts"]))
        for part in ("artifacts", "invocations", "results"):
            run[part] += other[part]
    run["tool"]["driver"]["rules"] = list(rules.values())
    number = {name: index for index, name in enumerate(rules)}
    for result in run["results"]:
        result["ruleIndex"] = number[result["ruleId"]]
    if len(logs) > 1:
        run.pop("properties", None)
        _agree_on_suppressions(run["results"])
    return whole


def _move_artifacts(run: Json, by: int) -> None:
    for result in run["results"]:
        places = [one["physicalLocation"] for one in result["locations"]]
        places += [one for fix in result.get("fixes", ()) for one in fix["artifactChanges"]]
        for place in places:
            place["artifactLocation"]["index"] += by


def _agree_on_suppressions(results: list[Json]) -> None:
    """Where one result of a run says whether it is suppressed, each has to."""
    if any("suppressions" in result for result in results):
        for result in results:
            result.setdefault("suppressions", [])
