"""Every metric of the services, in one place, with what a rise of it means."""

from bisect import bisect_right
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# A series more for each of ours, which no query here asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

# A service shows what it counts itself: another's zeros would be series of their own.
COMMON = CollectorRegistry()
PRODUCER = CollectorRegistry()
CONSUMER = CollectorRegistry()
QUERY_SERVICE = CollectorRegistry()
_BY_SERVICE = {
    "producer": [COMMON, PRODUCER],
    "consumer": [COMMON, CONSUMER],
    "query_service": [COMMON, QUERY_SERVICE],
}
ProcessCollector(registry=COMMON)
PlatformCollector(registry=COMMON)

# More requests of one endpoint and status: more traffic, or more of that trouble.
API_REQUESTS = Counter(
    "api_requests_total",
    "Requests answered.",
    ["service", "endpoint", "method", "status_code"],
    registry=COMMON,
)
# A slower answer: a slow queue for the producer, a slow database for the query service.
REQUEST_DURATION = Histogram(
    "request_duration_seconds",
    "Seconds from a request's first byte to its answer's last.",
    ["service", "endpoint"],
    registry=COMMON,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
# More events taken in, by type; the types past the bound are counted as `other`.
LOG_EVENTS = Counter(
    "log_events_total", "Events that the producer acknowledged.", ["event_type"], registry=PRODUCER
)
# Events come in faster than the consumers store them.
QUEUE_SIZE = Gauge("queue_size", "Events that wait in the queue.", registry=PRODUCER)
# Redis is away or too slow: events are held on this host's disk.
EVENTS_SPOOLED = Counter(
    "events_spooled_total", "Events that the spool took in place of Redis.", registry=PRODUCER
)
SPOOL_ACTIVE = Gauge(
    "spool_active", "1 while events go to the spool because Redis is away.", registry=PRODUCER
)
SPOOL_EVENTS = Gauge(
    "spool_events", "Events in this host's spools that wait for Redis.", registry=PRODUCER
)
# A disk that alters what it keeps; docs/durability.md says what to do.
SPOOL_DAMAGED_EVENTS = Gauge(
    "spool_damaged_events", "Spooled events set aside with a wrong checksum.", registry=PRODUCER
)
SPOOL_DAMAGED_FILES = Gauge(
    "spool_damaged_files", "Spool files set aside because of damage.", registry=PRODUCER
)
# The pipeline's output; compare its rate with that of `log_events_total`.
EVENTS_STORED = Counter("events_stored_total", "Events written to the database.", registry=CONSUMER)
# Senders repeat themselves, or deliveries came twice: harmless.
EVENTS_DUPLICATE = Counter(
    "events_duplicate_total", "Events that were stored before.", registry=CONSUMER
)
# Events that can never be stored; somebody has to look at them.
EVENTS_DEAD_LETTERED = Counter(
    "events_dead_lettered_total", "Events put aside with a reason.", registry=CONSUMER
)
# So many of the last events cannot be stored that the release or the schema must be wrong.
CONSUMER_STOPPED = Gauge(
    "consumer_stopped", "1 while the consumer stores nothing and says why.", registry=CONSUMER
)
# Events that waited longer than REDIS_QUEUE_TTL: the consumers were away for too long.
EVENTS_EXPIRED = Counter(
    "events_expired_total", "Events that waited too long in the queue.", registry=CONSUMER
)
# More calls of a model, or more of them that fail; models past the bound are counted as `other`.
LLM_QUERIES = Counter(
    "llm_queries_total", "Model calls that were stored.", ["model", "status"], registry=CONSUMER
)
# A model became dearer, or is called more often. `GET /analytics/llm` has it to the nano-dollar.
LLM_COST = Counter(
    "llm_cost_dollars_total",
    "What the stored model calls cost: computed, else as reported.",
    ["model"],
    registry=CONSUMER,
)
# `removed_outside`, `reappeared` or `rolled_back` above 0: not all is accounted for.
BALANCE_EVENTS = Gauge(
    "balance_events",
    "Events by what became of them, `accepted` being all; no series where it is not known.",
    ["term"],
    registry=QUERY_SERVICE,
)
# The database has become slower, or batches larger.
CONSUMER_BATCH = Histogram(
    "consumer_batch_seconds",
    "Seconds that storing one delivery took.",
    registry=CONSUMER,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class BatchHistogram(Collector):
    """A histogram that takes many values at once, for what is counted per event."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        CONSUMER.register(self)

    def observe_many(self, values: Iterable[float]) -> None:
        """Count each of `values` in the first bucket whose bound it does not exceed."""
        ascending = sorted(values)
        self._sum += sum(ascending)
        passed = 0
        for place, bound in enumerate(self._bounds):
            below = bisect_right(ascending, bound, passed)
            self._counts[place] += below - passed
            passed = below
        self._counts[-1] += len(ascending) - passed

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric as it stands, as the registry asks for it."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


# The time until an event can be queried grows: the queue is behind.
EVENT_DELAY = BatchHistogram(
    "event_delay_seconds",
    "Seconds from an event's receipt to its being stored.",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)

MAX_EVENT_TYPES = 100
MAX_MODELS = 100
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def declare_endpoints(service: str, endpoints: Iterable[tuple[str, str]]) -> None:
    """Start the `status_code="500"` series of each (method, endpoint) at 0, so `rate` sees it."""
    for method, endpoint in endpoints:
        API_REQUESTS.labels(service, endpoint, method, "500")


@lru_cache(maxsize=1024)
def _request_observer(
    service: str, endpoint: str, method: str, status: int
) -> Callable[[float], None]:
    known = method if method in _METHODS else "other"
    count = API_REQUESTS.labels(service, endpoint, known, str(status)).inc
    observe = REQUEST_DURATION.labels(service, endpoint).observe

    def observe_one(seconds: float) -> None:
        count()
        observe(seconds)

    return observe_one


def observe_request(service: str, endpoint: str, method: str, status: int, seconds: float) -> None:
    """Count one answered request; `endpoint` is the route's template or `other`."""
    _request_observer(service, endpoint, method, status)(seconds)


_event_types: dict[str, Callable[[float], None]] = {}


def count_events(event_types: Sequence[str]) -> None:
    """Count acknowledged events by type; past a hundred types the rest is `other`."""
    each = {event_types[0]: 1} if len(event_types) == 1 else Counts(event_types)
    for event_type, number in each.items():
        count = _event_types.get(event_type)
        if count is None:
            label = event_type if len(_event_types) < MAX_EVENT_TYPES else "other"
            count = LOG_EVENTS.labels(label).inc
            if label != "other":
                _event_types[event_type] = count
        count(number)


_models: set[str] = set()


def count_queries(model: str, ok: int, failed: int, nanos: int) -> None:
    """Count stored calls of a model ('' is `unknown`) and their cost in nano-dollars.

    Past a hundred models the rest is `other`.
    """
    label = model or "unknown"
    if label not in _models:
        if len(_models) < MAX_MODELS:
            _models.add(label)
        else:
            label = "other"
    LLM_QUERIES.labels(label, "ok").inc(ok)
    LLM_QUERIES.labels(label, "error").inc(failed)
    LLM_COST.labels(label).inc(nanos / 1e9)


def exposition(service: str) -> tuple[bytes, str]:
    """Return a service's metrics in Prometheus's text format, and its content type."""
    registries = _BY_SERVICE.get(service, [COMMON])
    return b"".join(map(generate_latest, registries)), CONTENT_TYPE_LATEST


def show_beside(service: str, registry: CollectorRegistry) -> None:
    """Make a service show what is counted in `registry` too: its process does that work as well."""
    if registry not in _BY_SERVICE[service]:
        _BY_SERVICE[service].append(registry)
