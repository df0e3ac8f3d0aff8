"""The numbers of a manager in Prometheus' text format, made when they are scraped.

Their names and labels are part of the interface, and documented in ``docs/operations.md``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from gleitzeit_core.breaker import BreakerState
from gleitzeit_core.metrics import Labels
from gleitzeit_core.pool import State
from gleitzeit_core.records import DEGRADED, DRAINED, EJECTED
from gleitzeit_gateway import genai_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.metrics import Histogram

_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BOUNDS: Final = tuple(map(str, _BOUNDS_S))
_STATES: Final = (*(state.value for state in State), EJECTED, DEGRADED, DRAINED)
_BREAKER_STATES: Final = tuple(state.value for state in BreakerState)
_HISTOGRAMS: Final = {
    "wait_s": ("gleitzeit_wait_seconds", "In the queue, before a try."),
    "first_output_s": ("gleitzeit_first_output_seconds", "From the slot to the first output."),
    "per_token_s": ("gleitzeit_per_token_seconds", "For each output token after the first."),
    "total_s": ("gleitzeit_total_seconds", "From the slot to the end."),
}
_COUNTERS: Final = {
    "input_tokens": ("gleitzeit_input_tokens", "Tokens read, as the answers say."),
    "output_tokens": ("gleitzeit_output_tokens", "Tokens written, as the answers say."),
    "bytes_in": ("gleitzeit_request_bytes", "Sent to instances, where that is bytes."),
    "bytes_out": ("gleitzeit_response_bytes", "Received from instances, where that is bytes."),
}


async def exposition(manager: ResourceManager) -> tuple[bytes, str]:
    """The text and its content type. It is written in a thread, because with many instances that takes a while."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(manager))
    encode, content_type = choose_encoder("")
    return await asyncio.to_thread(encode, registry), content_type


class _Collector:
    """Everything as it is when this is made, so that it can be collected in another thread."""

    def __init__(self, manager: ResourceManager) -> None:
        dispatcher = manager.dispatcher
        admission = dispatcher.shell.admission
        self._series = tuple(dispatcher.metrics)
        self._reports = manager.instances()
        self._hubs = tuple((hub.name, hub.kind, bool(hub.problem)) for hub in dispatcher.shell.hubs.values())
        self._queues = admission.queues()
        self._routes = tuple(balancer.route.name for balancer in admission.balancers)
        self._started, self._won = dispatcher.hedges.started, dispatcher.hedges.won

    def collect(self) -> Iterator[Metric]:
        yield from self._of_tries()
        yield from genai_metrics.families(self._series, {one.instance.id: one.instance for one in self._reports})
        yield from self._of_instances()
        yield self._of_hubs()
        yield from self._of_queues()
        yield CounterMetricFamily("gleitzeit_hedges_started", "Second tries beside a slow first.", value=self._started)
        yield CounterMetricFamily("gleitzeit_hedges_won", "Those that answered first.", value=self._won)

    def _of_tries(self) -> Iterator[Metric]:
        names = Labels._fields
        results = CounterMetricFamily("gleitzeit_tries", "Tries of requests on instances.", labels=names)
        histograms = {key: HistogramMetricFamily(*said, labels=names) for key, said in _HISTOGRAMS.items()}
        counters = {key: CounterMetricFamily(*said, labels=names) for key, said in _COUNTERS.items()}
        for labels, series in self._series:
            results.add_metric(labels, series.total_s.count)
            for key, histogram in histograms.items():
                counted: Histogram = getattr(series, key)
                if counted.count:
                    histogram.add_metric(labels, _buckets(counted), counted.total)
            for key, counter in counters.items():
                counter.add_metric(labels, getattr(series, key))
        yield from (results, *histograms.values(), *counters.values())

    def _of_instances(self) -> Iterator[Metric]:
        labels = ["instance", "hub", "endpoint"]
        state = GaugeMetricFamily("gleitzeit_instance_state", "1 for the state it is in.", labels=[*labels, "state"])
        breaker = GaugeMetricFamily("gleitzeit_instance_breaker", "1 for its state.", labels=[*labels, "state"])
        busy = GaugeMetricFamily("gleitzeit_instance_in_flight", "Requests it works on.", labels=labels)
        most = GaugeMetricFamily("gleitzeit_instance_max_concurrent", "Requests it may work on.", labels=labels)
        limit = GaugeMetricFamily("gleitzeit_instance_limit", "Requests it gets, as its answers teach.", labels=labels)
        for report in self._reports:
            values = [report.instance.id, report.instance.hub, report.instance.endpoint]
            for name in _STATES:
                state.add_metric([*values, name], float(name == str(report.state)))
            for name in _BREAKER_STATES:
                breaker.add_metric([*values, name], float(name == str(report.breaker)))
            busy.add_metric(values, report.in_flight)
            most.add_metric(values, report.instance.max_concurrent)
            limit.add_metric(values, report.limit)
        yield from (state, breaker, busy, most, limit)

    def _of_hubs(self) -> Metric:
        text = "1 while it cannot do all that it should, such as create instances."
        family = GaugeMetricFamily("gleitzeit_hub_degraded", text, labels=["hub", "kind"])
        for name, kind, degraded in self._hubs:
            family.add_metric([name, kind], float(degraded))
        return family

    def _of_queues(self) -> Iterator[Metric]:
        labels = ["route", "model"]
        waiting = GaugeMetricFamily("gleitzeit_queue_waiting", "Requests that wait for a slot.", labels=labels)
        oldest = GaugeMetricFamily("gleitzeit_queue_oldest_seconds", "How long one has waited.", labels=labels)
        expected = GaugeMetricFamily("gleitzeit_queue_expected_wait_seconds", "Of one that came now.", labels=labels)
        # A route in which nobody waits is there as well, for graphs that go back to 0.
        found = {(route, ""): (0, 0.0, 0.0) for route in self._routes}
        for queue in self._queues:
            count, oldest_s, expected_s = found.get((queue.route, queue.model), (0, 0.0, 0.0))
            found[queue.route, queue.model] = (
                count + queue.waiting,
                max(oldest_s, queue.oldest_s),
                max(expected_s, queue.expected_wait_s),
            )
        for key, values in found.items():
            for family, value in zip((waiting, oldest, expected), values, strict=True):
                family.add_metric(key, value)
        yield from (waiting, oldest, expected)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return [*zip(_BOUNDS, histogram.at_most(*_BOUNDS_S), strict=True), ("+Inf", histogram.count)]
