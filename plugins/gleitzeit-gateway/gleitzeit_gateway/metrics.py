"""The numbers of a manager in Prometheus' text format, made when they are scraped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from gleitzeit_core.pool import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.metrics import Histogram

_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_STATES: Final = (*(state.value for state in State), "ejected")


def exposition(manager: ResourceManager) -> tuple[bytes, str]:
    """The text and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(manager))
    encode, content_type = choose_encoder("")
    return encode(registry), content_type


class _Collector:
    def __init__(self, manager: ResourceManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._instances()
        waiting = GaugeMetricFamily("gleitzeit_queue_waiting", "Requests that wait for a slot.", labels=["route"])
        totals: dict[str, int] = {}
        for balancer in self._manager.dispatcher.shell.admission.balancers:
            totals[balancer.route.name] = totals.get(balancer.route.name, 0) + len(balancer.waiting)
        for route, count in totals.items():
            waiting.add_metric([route], count)
        yield waiting

    def _requests(self) -> Iterator[Metric]:
        labels = ["method", "instance"]
        results = CounterMetricFamily(
            "gleitzeit_tries", "Tries of requests on instances, by how they ended.", labels=[*labels, "result"]
        )
        seconds = {
            "wait_s": HistogramMetricFamily("gleitzeit_wait_seconds", "In the queue, before a try.", labels=labels),
            "first_output_s": HistogramMetricFamily(
                "gleitzeit_first_output_seconds", "From the slot to the first output.", labels=labels
            ),
            "total_s": HistogramMetricFamily("gleitzeit_total_seconds", "From the slot to the end.", labels=labels),
        }
        for method, instance, series in self._manager.dispatcher.metrics:
            for result, count in series.results.items():
                results.add_metric([method, instance, result], count)
            for name, family in seconds.items():
                histogram: Histogram = getattr(series, name)
                family.add_metric([method, instance], _buckets(histogram), histogram.total)
        yield results
        yield from seconds.values()

    def _instances(self) -> Iterator[Metric]:
        labels = ["instance", "hub", "endpoint"]
        state = GaugeMetricFamily("gleitzeit_instance_state", "1 for the state it is in.", labels=[*labels, "state"])
        busy = GaugeMetricFamily("gleitzeit_instance_in_flight", "Requests it works on.", labels=labels)
        limit = GaugeMetricFamily("gleitzeit_instance_max_concurrent", "Requests it may work on.", labels=labels)
        for report in self._manager.instances():
            values = [report.instance.id, report.instance.hub, report.instance.endpoint]
            for name in _STATES:
                state.add_metric([*values, name], 1.0 if name == str(report.state) else 0.0)
            busy.add_metric(values, report.in_flight)
            limit.add_metric(values, report.instance.max_concurrent)
        yield from (state, busy, limit)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds: list[tuple[str, float]] = [(str(bound), histogram.at_most(bound)) for bound in _BOUNDS_S]
    return [*bounds, ("+Inf", histogram.count)]
