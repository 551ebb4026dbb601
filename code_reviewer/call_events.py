"""What is told of one HTTP request to a model: who was asked, what it used and cost."""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from code_reviewer.findings import Usage
from code_reviewer.models import Bill, Model, ModelError, Reply

_NANOS: Final = 10**9
_MOST_NUMBER: Final = 2**53
_MOST_FIELDS, _DEEPEST, _LONGEST = 40, 3, 40
_TERMS: Final = {"service_tier", "speed"}


class Spent(msgspec.Struct):
    """What the attempts of one review came to; `nanos` is None where an answer has no price."""

    attempts: int = 0
    usage: Usage = Usage()
    nanos: int | None = None
    _is_priced: bool = True

    def add(self, bill: Bill) -> None:
        """Add an answered attempt."""
        before = self.usage
        self.usage = Usage(
            before.input + (bill.input or 0),
            before.cached_input + (bill.cached_input or 0),
            before.output + (bill.output or 0),
            before.reasoning + (bill.reasoning or 0),
        )
        self._is_priced = self._is_priced and bill.nanos is not None
        self.nanos = (self.nanos or 0) + (bill.nanos or 0) if self._is_priced else None


class Estimate(msgspec.Struct, frozen=True):
    """Tokens that nobody counted: a third of the bytes of the text, rounded up."""

    input: int
    output: int

    def usage(self) -> dict[str, object]:
        """Return it in the form that a tariff reads."""
        return {"input_tokens": self.input, "output_tokens": self.output}


def tokens_of_bytes(count: int) -> int:
    """Return how many tokens so many bytes of text may be."""
    return -(-count // 3)


def dollars(nanos: int | None) -> str | None:
    """Return nano-dollars as dollars, with every digit that is not 0."""
    if nanos is None:
        return None
    whole, part = divmod(nanos, _NANOS)
    return f"{whole}.{part:09d}".rstrip("0").rstrip(".")


def answered(model: Model, reply: Reply, bill: Bill, estimate: Estimate) -> dict[str, object]:
    """Return the payload about a request that was answered, but its number and duration.

    Where the provider told no usage, its fields are null and our estimate stands beside them.
    """
    used = bounded_usage(reply.usage)
    payload = _call(model, outcome="ok", success=True, http_status=reply.http_status)
    payload |= {
        "tokens_used": _sum(bill.input, bill.output),
        "input_tokens": bill.input,
        "output_tokens": bill.output,
        "cached_tokens": bill.cached_input,
        "cache_write_tokens": bill.cache_write,
        "reasoning_tokens": bill.reasoning,
        # A float has every nano-dollar of what fits a bill: fifteen digits.
        "cost": None if bill.nanos is None else bill.nanos / _NANOS,
        "cost_source": bill.source or "unknown",
        "usage_source": "provider" if used else "estimated",
        "finish_reason": reply.finish_reason,
    }
    if used:
        payload["usage"] = used
    else:
        payload["estimated_input_tokens"] = estimate.input
        payload["estimated_output_tokens"] = estimate.output
    if reply.model not in {None, model.name}:
        payload["response_model"] = reply.model
    return payload


def failed(model: Model, error: ModelError | None) -> dict[str, object]:
    """Return the payload about a request without an answer; None: it was given up."""
    kind = "cancelled" if error is None else str(error.kind)
    http_status = None if error is None else error.http_status
    payload = _call(model, outcome=kind, success=False, http_status=http_status)
    unknown = dict.fromkeys(
        ("tokens_used", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")
    )
    return (
        payload
        | unknown
        | {
            "reasoning_tokens": None,
            "cost": None,
            "cost_source": "unknown",
            "usage_source": "unknown",
            "finish_reason": None,
            "error": kind,
        }
    )


def _call(
    model: Model, *, outcome: str, success: bool, http_status: int | None
) -> dict[str, object]:
    return {
        "model": model.name,
        "provider": model.provider,
        "outcome": outcome,
        "success": success,
        "http_status": http_status,
    }


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def bounded_usage(usage: Mapping[str, object] | None) -> dict[str, object] | None:
    """Return the numbers of a provider's usage object and the terms of service, None for none.

    The bill is made from what this returns, and so is the event: they agree.
    """
    return _bounded(usage or {}, _DEEPEST) or None


def _bounded(usage: Mapping[str, object], depth: int) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, value in list(usage.items())[:_MOST_FIELDS]:
        if len(name) > _LONGEST:
            continue
        if isinstance(value, dict) and depth > 1:
            if inner := _bounded(value, depth - 1):
                kept[name] = inner
        elif _is_kept(name, value):
            kept[name] = value
    return kept


def _is_kept(name: str, value: object) -> bool:
    if isinstance(value, str):
        return name in _TERMS and len(value) <= _LONGEST
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= _MOST_NUMBER
