"""The numbers of language models under the names that OpenTelemetry gives them, as Prometheus writes such names.

After OpenTelemetry's semantic conventions for generative AI metrics: ``gen_ai.server.request.duration``,
``gen_ai.server.time_to_first_token``, ``gen_ai.server.time_per_output_token`` and ``gen_ai.client.token.usage``, with
the buckets that they advise. The server is the instance: what is measured is one try.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from prometheus_client.core import HistogramMetricFamily

from gleitzeit_core.metrics import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from gleitzeit_core.metrics import Histogram, Labels
    from gleitzeit_core.resources import ResourceInstance

_OPERATIONS: Final = {"llm/chat": "chat", "llm/generate": "text_completion", "llm/embed": "embeddings"}
_LABELS: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "server_address",
    "server_port",
    "client_api",
    "error_type",
)
_DURATIONS_S: Final = tuple(0.01 * 2**power for power in range(14))
_FIRST_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS: Final = tuple(float(4**power) for power in range(14))
_TIMES: Final = {
    "total_s": ("gen_ai_server_request_duration_seconds", "From the slot to the end.", _DURATIONS_S),
    "first_output_s": ("gen_ai_server_time_to_first_token_seconds", "From the slot to the first output.", _FIRST_S),
    "per_token_s": ("gen_ai_server_time_per_output_token_seconds", "For each token after the first.", _EACH_S),
}


def families(series: Iterable[tuple[Labels, Series]], instances: Mapping[str, ResourceInstance]) -> Iterator[Metric]:
    """The histograms of all tries of chat, completion and embedding.

    Args:
        series: Of all tries, of which the others do not matter here.
        instances: By id. What is no longer there has no provider and no address.
    """
    found = _by_labels(series, instances)
    for name, (title, about, bounds) in _TIMES.items():
        family = HistogramMetricFamily(title, about, labels=_LABELS)
        for labels, summed in found.items():
            _add(family, labels, getattr(summed, name), bounds)
        yield family
    tokens = HistogramMetricFamily(
        "gen_ai_client_token_usage", "Tokens of one answer.", labels=(*_LABELS, "gen_ai_token_type")
    )
    for labels, summed in found.items():
        _add(tokens, (*labels, "input"), summed.tokens_in, _TOKENS)
        _add(tokens, (*labels, "output"), summed.tokens_out, _TOKENS)
    yield tokens


def _by_labels(
    series: Iterable[tuple[Labels, Series]], instances: Mapping[str, ResourceInstance]
) -> dict[tuple[str, ...], Series]:
    """The sums over what has no label here: routes, and methods that are the same operation."""
    found: defaultdict[tuple[str, ...], Series] = defaultdict(Series)
    for labels, counted in series:
        operation = _OPERATIONS.get(labels.method)
        # What its caller gave up is no answer, and no error of the server's.
        if operation is None or labels.result == "cancelled":
            continue
        error = "" if labels.result == "ok" else labels.result
        server = _server(instances.get(labels.instance))
        found[operation, server[0], labels.model, *server[1:], labels.api, error].merge(counted)
    return found


def _server(instance: ResourceInstance | None) -> tuple[str, str, str]:
    """The provider, address and port of an instance; empty where there is none."""
    if instance is None:
        return "", "", ""
    try:
        parts = urlsplit(instance.endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    default = {"https": "443", "http": "80"}.get(instance.endpoint.partition(":")[0], "")
    return instance.kind, host or instance.endpoint, str(port or default)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], counted: Histogram, bounds: tuple[float, ...]) -> None:
    count = counted.count
    if count:
        buckets = zip(map(str, bounds), counted.at_most(*bounds), strict=True)
        family.add_metric(labels, [*buckets, ("+Inf", count)], counted.total)
