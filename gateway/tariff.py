"""What a model call cost, priced as the logging service prices the event about it."""

import re
from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from genai_prices.data_snapshot import get_snapshot

from code_reviewer.models import Bill
from logging_service.pricing import Prices
from logging_service.usage import provider_name, usage_of

LOCAL = "local"
REPORTED = "reported"
_OWN_NAMES = (".local", ".internal", ".lan", ".home.arpa")


class ListTariff:
    """The prices of the operator and of the lists; what they do not know costs as it is told."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    def bill(
        self, provider: str, model: str, usage: Mapping[str, object] | None, at: datetime
    ) -> Bill:
        """Return what a call at the time `at` used and cost; `usage` is the provider's own object.

        It is what `/analytics/llm` makes of an event with this provider, model and usage. Never
        raises.
        """
        used = usage_of({"provider": provider, "model": model, "usage": dict(usage or {})})
        cost = self._prices.cost_of(used, at)
        nanos, source = cost.nanos, cost.source
        if nanos is None and used.reported_nanos is not None:
            nanos, source = used.reported_nanos, REPORTED
        if not used.is_told or used.unsplit or used.fault:
            return Bill(nanos=nanos, source=source)
        counts = used.counts
        return Bill(
            input=used.input_tokens,
            cached_input=counts.cache_read,
            cache_write=counts.cache_write + counts.cache_write_1h,
            output=used.output_tokens,
            reasoning=counts.reasoning,
            nanos=nanos,
            source=source,
        )


def provider_of(base_url: str, told: str | None) -> str:
    """Return whose prices hold for the server at `base_url`: the one that was `told`, if any.

    A server of the own host or network is `local`, which has no list price; one that the price
    data do not know goes by its name.
    """
    if told is not None:
        return provider_name(told)
    host = urlsplit(base_url).hostname or ""
    if _is_own(host):
        return LOCAL
    sellers = get_snapshot().providers
    known = (seller.id for seller in sellers if re.match(seller.api_pattern, base_url))
    return next(known, host)


def _is_own(host: str) -> bool:
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_OWN_NAMES)
