"""`/metrics`, in Prometheus's text format: how a node's requests end, and the deployment's queue as the store has it.

What is of the deployment is the same on every node: take the maximum, not the sum. No label tells of a person.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.messages import Lane
from app.operator.status import rates, state
from app.ports import Backlog, Overview, Unavailable

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # to the longest deadline
STATES = ("alive", "silent", "gone")


class Metrics:
    """Of one node. `look`: at the deployment, at each `scrape`; `most`: requests that a lane takes."""

    def __init__(self, look: Callable[[], Awaitable[Overview]], most: int) -> None:
        self._look, self._most = look, most
        self._node = CollectorRegistry()
        ProcessCollector(registry=self._node)
        self._requests = Counter(
            "finthenticate_requests",
            "Requests that have ended, by the event of their answer and its code: ok where it refuses nothing.",
            ["request", "answer", "code"],
            registry=self._node,
        )
        self._seconds = Histogram(
            "finthenticate_request_seconds",
            "From a request's arrival to its answer, of those that went into a lane.",
            ["lane"],
            buckets=SECONDS,
            registry=self._node,
        )

    def gauge(self, name: str, meaning: str, now: Callable[[], float]) -> None:
        """One more figure of this node: `now` is asked at each scrape."""
        Gauge(f"finthenticate_{name}", meaning, registry=self._node).set_function(now)

    def refused(self, request: str, code: str) -> None:
        """At the door: it went into no lane."""
        self._requests.labels(request, "error", code).inc()

    def ended(self, request: str, answer: str, code: str, lane: Lane, seconds: float) -> None:
        self._requests.labels(request, answer, code).inc()
        self._seconds.labels(lane).observe(seconds)

    async def scrape(self) -> bytes:
        """Of the deployment nothing but `finthenticate_store_up 0` while the store does not answer."""
        seen: Overview | None = None
        with suppress(Unavailable):
            seen = await self._look()
        everybody = CollectorRegistry()
        everybody.register(_Deployment(seen, self._most))
        return generate_latest(self._node) + generate_latest(everybody)


class _Deployment(Collector):
    def __init__(self, seen: Overview | None, most: int) -> None:
        self._seen, self._most = seen, most

    def collect(self) -> Iterator[GaugeMetricFamily]:
        seen = self._seen
        yield _gauge("store_up", "Whether the store has answered.", float(seen is not None))
        if seen is None:
            return
        states = [state(worker) for worker in seen.workers]
        yield _gauges(
            "workers", "Workers, by whether they are heard of.", ["state"], [((s,), states.count(s)) for s in STATES]
        )
        yield _gauge("gateways", "Gateways that live.", len(seen.nodes))
        yield _gauge("dead_letters", "Requests and mails that were given up and are kept.", seen.dead)
        yield _gauge("clock_ahead_seconds", "What the store's clock is ahead of its server's own.", seen.ahead / 1000)
        yield _gauge("lane_requests_limit", "Past so many a request is refused as overloaded.", self._most)
        lanes: Queues = {(lane,): backlog for lane, backlog in seen.lanes.items()}
        yield _held("lane_requests", "Requests in a lane.", ["lane"], lanes)
        yield _oldest("lane_oldest_seconds", "Age of the oldest request in a lane, 0: there is none.", ["lane"], lanes)
        paces = {lane: rates(seen, lane) for lane in seen.lanes}
        for name, meaning, n in (
            ("lane_drained_per_second", "Requests that all workers end.", 0),
            ("lane_capacity_per_second", "Requests that all workers could end.", 1),
        ):
            yield _gauges(name, meaning, ["lane"], [((lane,), pace[n]) for lane, pace in paces.items()])
        yield _held("mails", "Mails to be sent.", [], {(): seen.mail})
        yield _oldest(
            "mails_oldest_seconds", "Age of the oldest mail to be sent, 0: there is none.", [], {(): seen.mail}
        )


Sample = tuple[tuple[str, ...], float]  # the values of its labels, and the number
Queues = dict[tuple[str, ...], Backlog]


def _gauges(name: str, meaning: str, labels: list[str], samples: Iterable[Sample]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"finthenticate_{name}", meaning, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _gauge(name: str, meaning: str, number: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"finthenticate_{name}", meaning, value=number)


def _held(name: str, meaning: str, labels: list[str], queues: Queues) -> GaugeMetricFamily:
    samples = [
        ((*queue, state), number)
        for queue, held in queues.items()
        for state, number in (("waiting", held.waiting), ("in_hand", held.in_hand))
    ]
    return _gauges(name, meaning, [*labels, "state"], samples)


def _oldest(name: str, meaning: str, labels: list[str], queues: Queues) -> GaugeMetricFamily:
    samples = [
        (queue, max(held.oldest_waiting_ms or 0, held.oldest_in_hand_ms or 0) / 1000) for queue, held in queues.items()
    ]
    return _gauges(name, meaning, labels, samples)
