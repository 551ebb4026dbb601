"""Every metric of the services, in one place, with what a rise of it means."""

import os
from bisect import bisect_right
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import accumulate
from math import nan
from pathlib import Path

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
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from logging_service.shared_metrics import (
    SharedCounter,
    SharedGauge,
    SharedHistogram,
    SharedMemory,
    Tallies,
)

MAX_EVENT_TYPES = 100
MAX_MODELS = 100

# A series more for each of ours, which no query here asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

# A service shows what it counts itself: another's zeros would be series of their own.
COMMON = CollectorRegistry()
PRODUCER = CollectorRegistry()
CONSUMER = CollectorRegistry()
QUERY_SERVICE = CollectorRegistry()
GATEWAY = CollectorRegistry()
_BY_SERVICE = {
    "producer": [COMMON, PRODUCER],
    "consumer": [COMMON, CONSUMER],
    "query_service": [COMMON, QUERY_SERVICE],
    "gateway": [COMMON, GATEWAY],
}
# What several workers count together.
TALLIES = Tallies()


class _EachProcess(Collector):
    """CPU, memory and files of every worker that runs, by its place: they do not add up."""

    def collect(self) -> Iterator[Metric]:
        """Yield them, as the registry asks for them."""
        families: dict[str, Metric] = {}
        for place, pid in TALLIES.processes().items():
            for one in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                new = Metric(one.name, one.documentation, one.type)
                family = families.setdefault(one.name, new)
                for sample in one.samples:
                    family.add_sample(sample.name, {"worker": str(place + 1)}, sample.value)
        yield from families.values()


_PROCESS = ProcessCollector(registry=COMMON)
PlatformCollector(registry=COMMON)

# Less: the spool, the gateway's buffer or a bundled server fill the disk.
DISK_FREE = Gauge(
    "data_folder_free_bytes", "What can still be written where DATA_DIR is.", registry=COMMON
)
DISK_SIZE = Gauge("data_folder_size_bytes", "How large the disk of DATA_DIR is.", registry=COMMON)

# More requests of one endpoint and status: more traffic, or more of that trouble.
API_REQUESTS = SharedCounter(
    "api_requests_total",
    "Requests answered.",
    ["service", "endpoint", "method", "status_code"],
    tallies=TALLIES,
    registry=COMMON,
)
# A slower answer: a slow queue for the producer, a slow database for the query service.
REQUEST_DURATION = SharedHistogram(
    "request_duration_seconds",
    "Seconds from a request's first byte to its answer's last.",
    ["service", "endpoint"],
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    tallies=TALLIES,
    registry=COMMON,
)
# More events taken in, by type; the types past the bound are counted as `other`.
LOG_EVENTS = SharedCounter(
    "log_events_total",
    "Events that the producer acknowledged.",
    ["event_type"],
    tallies=TALLIES,
    registry=PRODUCER,
    most=MAX_EVENT_TYPES,
)
# Events come in faster than the consumers store them.
QUEUE_SIZE = Gauge("queue_size", "Events that wait in the queue.", registry=PRODUCER)
# Consumers have taken them and not stored them yet: they are slow, or one has died.
QUEUE_IN_FLIGHT = Gauge(
    "queue_in_flight", "Events that a consumer has taken and not yet stored.", registry=PRODUCER
)
# Events are stored later than they come, or not at all.
OLDEST_EVENT_AGE = Gauge(
    "oldest_event_age_seconds",
    "How long the event has waited that waits longest.",
    registry=PRODUCER,
)
# Somebody has to look at them: `logging-service dead-letters`.
DEAD_LETTERS = Gauge("dead_letters", "Events put aside that are still there.", registry=PRODUCER)
# Redis is away or too slow: events are held on this host's disk.
EVENTS_SPOOLED = SharedCounter(
    "events_spooled_total",
    "Events that the spool took in place of Redis.",
    tallies=TALLIES,
    registry=PRODUCER,
)
SPOOL_ACTIVE = SharedGauge(
    "spool_active",
    "1 while events of a worker go to the spool because Redis is away.",
    tallies=TALLIES,
    registry=PRODUCER,
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
# The consumer does nothing, though events wait: compare it with the time.
LAST_STORED = Gauge(
    "consumer_last_stored_timestamp_seconds",
    "When a delivery was last stored or put aside, in Unix time; 0: never yet.",
    registry=CONSUMER,
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
# More code is reviewed; `degraded`: the model was lost, `failed`: the static analysis was.
REVIEWS = Counter(
    "reviews_total", "Reviews that ended, `cached` ones among them.", ["status"], registry=GATEWAY
)
# A stage takes longer: larger submissions, a busy machine, a slow model.
REVIEW_STAGE = Histogram(
    "review_stage_seconds",
    "Seconds that a stage of a review took.",
    ["stage"],
    registry=GATEWAY,
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
# More calls of a model than there are reviews: attempts fail and are repeated.
REVIEW_MODEL_CALLS = Counter(
    "review_model_calls_total",
    "Calls of a model for reviews, failed ones included.",
    ["model"],
    registry=GATEWAY,
)
# Longer submissions, or longer answers.
REVIEW_TOKENS = Counter(
    "review_tokens_total",
    "Tokens of these calls, as far as they were told.",
    ["model", "direction"],
    registry=GATEWAY,
)
# Reviews cost more; calls without a price add nothing.
REVIEW_COST = Counter(
    "review_cost_dollars_total", "What these calls cost.", ["model"], registry=GATEWAY
)
# At REVIEWS_AT_ONCE and REVIEWS_WAITING further ones are refused with 429.
REVIEWS_RUNNING = Gauge("reviews_running", "Reviews under work.", registry=GATEWAY)
REVIEWS_WAITING = Gauge("reviews_waiting", "Reviews that wait for others.", registry=GATEWAY)
# The database is away: results wait on this host's disk.
REVIEWS_BUFFERED = Gauge(
    "reviews_buffered", "Reviews that wait for the database.", registry=GATEWAY
)
# The logging service is away or too slow.
JOURNAL_EVENTS = Gauge(
    "journal_events_waiting", "Events that wait for the logging service.", registry=GATEWAY
)
# More events than may wait, or ones that the logging service refuses: reviews without a trace.
JOURNAL_LOST = Gauge(
    "journal_events_lost", "Events that never reach the logging service.", registry=GATEWAY
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

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


_is_on = True


def switch(*, on: bool) -> None:
    """Count requests and events from now on, or do not: nobody can ask for them."""
    global _is_on  # noqa: PLW0603 - asked on every request
    _is_on = on


def share(memory: SharedMemory) -> None:
    """Count together with the other workers that were given `memory`; before anything is."""
    TALLIES.join(memory)
    COMMON.unregister(_PROCESS)
    COMMON.register(_EachProcess())
    _observer.cache_clear()
    _slot_of.cache_clear()
    SPOOL_ACTIVE.set(0)


def declare_endpoints(service: str, endpoints: Iterable[tuple[str, str]]) -> None:
    """Start the `status_code="500"` series of each (method, endpoint) at 0, so `rate` sees it."""
    for method, endpoint in endpoints:
        API_REQUESTS.slot(service, endpoint, method, "500")


@lru_cache(maxsize=1024)
def _observer(service: str, endpoint: str, method: str, status: int) -> Callable[[float], None]:
    known = method if method in _METHODS else "other"
    slot = API_REQUESTS.slot(service, endpoint, known, str(status))
    values, observe = TALLIES.values, REQUEST_DURATION.observer(service, endpoint)

    def observe_one(seconds: float) -> None:
        values[slot] += 1
        observe(seconds)

    return observe_one


def observe_request(service: str, endpoint: str, method: str, status: int, seconds: float) -> None:
    """Count one answered request; `endpoint` is the route's template or `other`."""
    if _is_on:
        _observer(service, endpoint, method, status)(seconds)


@lru_cache(maxsize=1024)
def _slot_of(event_type: str) -> int:
    return LOG_EVENTS.slot(event_type)


def count_events(event_types: Sequence[str]) -> None:
    """Count acknowledged events by type; past a hundred types the rest is `other`."""
    if not _is_on:
        return
    each = {event_types[0]: 1} if len(event_types) == 1 else Counts(event_types)
    for event_type, number in each.items():
        TALLIES.values[_slot_of(event_type)] += number


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


def forget_queue() -> None:
    """Say that nothing is known of the queue; what was last known would look like the truth."""
    for gauge in (QUEUE_SIZE, QUEUE_IN_FLIGHT, OLDEST_EVENT_AGE, DEAD_LETTERS):
        gauge.set(nan)


def measure_disk(folder: Path) -> None:
    """Bring the gauges of the disk up to date that `folder` is on, or will be made on."""
    free = size = nan
    with suppress(OSError):
        disk = os.statvfs(next(one for one in (folder, *folder.parents) if one.exists()))
        free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    DISK_FREE.set(free)
    DISK_SIZE.set(size)


def exposition(service: str) -> tuple[bytes, str]:
    """Return a service's metrics in Prometheus's text format, and its content type."""
    registries = _BY_SERVICE.get(service, [COMMON])
    return b"".join(map(generate_latest, registries)), CONTENT_TYPE_LATEST


def show_beside(service: str, registry: CollectorRegistry) -> None:
    """Make a service show what is counted in `registry` too: its process does that work as well."""
    if registry not in _BY_SERVICE[service]:
        _BY_SERVICE[service].append(registry)
