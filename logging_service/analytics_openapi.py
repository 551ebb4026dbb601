"""What the OpenAPI document says of the answers of `GET /analytics/*`."""

from typing import Any

from logging_service.analytics import (
    LlmMetrics,
    PerformanceMetrics,
    ReviewMetrics,
    UsageMetrics,
)
from logging_service.analytics_documents import Period
from logging_service.watermark import Watermark

Json = dict[str, Any]

TYPES = (
    UsageMetrics,
    LlmMetrics,
    PerformanceMetrics,
    ReviewMetrics,
    Period,
    Watermark,
)
_USAGE = {
    "total_events": 4812,
    "unique_sessions": 401,
    "unique_users": 37,
    "events_per_day": 687.43,
    "error_rate": 0.0031,
}
_LLM = {
    "total_queries": 812,
    "total_tokens": 1_204_511,
    "input_tokens": 1_010_202,
    "output_tokens": 194_309,
    "cached_tokens": 404_480,
    "reasoning_tokens": 51_200,
    "total_cost": 3.965245,
    "unpriced_queries": 2,
    "avg_latency_ms": 2210.4,
    "p50_latency_ms": 1803.2,
    "p95_latency_ms": 5120.7,
    "p99_latency_ms": 8900.1,
}
_PERFORMANCE = {
    "count": 401,
    "success_rate": 0.9925,
    "avg_duration_ms": 2544.1,
    "p50_duration_ms": 2102.9,
    "p90_duration_ms": 4300.0,
    "p95_duration_ms": 5611.4,
    "p99_duration_ms": 9120.8,
    "max_duration_ms": 12_004.2,
}
_REVIEWS = {
    "total_reviews": 401,
    "reviews_per_day": 57.29,
    "success_rate": 0.9925,
    "total_cost": 3.965245,
    "avg_cost": 0.009888391521,
    "p50_cost": 0.0066950,
    "p95_cost": 0.028125,
    "total_tokens": 1_204_511,
    "avg_tokens": 3003.77,
    "unpriced_queries": 2,
    "avg_duration_ms": 2544.1,
    "p50_duration_ms": 2102.9,
    "p95_duration_ms": 5611.4,
    "findings": {"error": 120, "warning": 644, "info": 1093},
}


def _reference(kind: type) -> Json:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _described(metrics: type, example: Json, dimensions: Json) -> dict[int | str, Json]:
    """Return the entry in `responses`; `dimensions` have a value each, the first is shown."""
    text = {"type": ["string", "null"]}
    moment = {"type": "string", "format": "date-time"}
    names = {"type": "object", "properties": dict.fromkeys(dimensions, text)}
    times = {"type": "object", "properties": {"start": moment, "end": moment}}
    groups = {"type": "array", "items": {"allOf": [names, _reference(metrics)]}}
    series = {"type": "array", "items": {"allOf": [times, names, _reference(metrics)]}}
    properties = {
        "period": _reference(Period),
        "metrics": _reference(metrics),
        "groups": groups,
        "series": series,
        "groups_next_cursor": text,
        "watermark": _reference(Watermark),
        "percentiles": {"type": "object", "properties": {"relative_error": {"type": "number"}}},
    }
    first = dict([next(iter(dimensions.items()))])
    shown = {
        "period": {**_START, "end": "2026-11-23T10:00:00Z", "timezone": "UTC"},
        "metrics": example,
        "groups": [{**first, **example}],
        "series": [{**_START, "end": "2026-11-17T00:00:00Z", **example}],
        "groups_next_cursor": "Wzg0ODc3MjM5NTk1NDg1MSxbWzY0MF0sWyJncHQtNG8iXV1dOLfwCoYy",
        "watermark": {"complete_to": "2026-11-23T09:59:59.2Z", "queued": 0},
        "percentiles": {"relative_error": 0.01},
    }
    if metrics is UsageMetrics:
        del properties["percentiles"], shown["percentiles"]
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        200: {
            "description": "The answer; as CSV its groups, or its series where it has none.",
            "content": {
                "application/json": {"schema": schema, "example": shown},
                "text/csv": {"schema": {"type": "string"}},
            },
        },
        304: {"description": "The caller has the answer already, as `If-None-Match` says."},
    }


_START = {"start": "2026-11-16T10:00:00Z"}
USAGE = _described(
    UsageMetrics,
    _USAGE,
    {"event_type": "llm_query_sent", "user_id": "user123", "session_id": "123"},
)
LLM = _described(
    LlmMetrics,
    _LLM,
    dict.fromkeys(("model", "provider", "user_id", "session_id", "source"), "gpt-4o"),
)
PERFORMANCE = _described(PerformanceMetrics, _PERFORMANCE, {"operation": "review"})
REVIEWS = _described(ReviewMetrics, _REVIEWS, {"user_id": "user123", "source": "default"})
