"""What a manager is doing, as plain data, for people and for programs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gleitzeit_core.config_show import shown_value
from gleitzeit_core.errors import UnknownName
from gleitzeit_core.metrics import Series
from gleitzeit_core.records import DEGRADED, State

if TYPE_CHECKING:
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.runs import InstanceReport

# Looked up once: it reads files, which must not stop a running loop.
_VERSION = version("gleitzeit-core")


def status_of(manager: ResourceManager) -> dict[str, Any]:
    """Everything but histories."""
    dispatcher, config = manager.dispatcher, manager.config
    by_instance, none = dispatcher.metrics.by("instance"), Series()
    results: Counter[str] = Counter()
    for series in by_instance.values():
        results.update(series.results)
    return {
        "version": _VERSION,
        "configuration": str(config.source) if config.source else None,
        "uptime_s": round(time.time() - manager.started_at, 3),
        "requests": {
            "active": dispatcher.active,
            "waiting": dispatcher.shell.admission.waiting,
            **results,
        },
        "hedges": {name: getattr(dispatcher.hedges, name) for name in ("started", "won")},
        "queues": queues_of(manager),
        "hubs": [_hub(hub) for hub in dispatcher.shell.hubs.values()],
        "instances": [
            _instance(manager, report, by_instance.get(report.instance.id, none)) for report in manager.instances()
        ],
        "routes": [
            {"methods": list(route.methods), "strategy": route.chain, "max_queue": route.max_queue}
            for route in config.routes
        ],
        "methods": [
            {"name": m.name, "summary": m.summary, "streams": m.streams, "replayable": m.replayable}
            for provider in manager.providers.values()
            for m in provider.methods
        ],
    }


def _hub(hub: ResourceHub[Any]) -> dict[str, Any]:
    state, count = DEGRADED if hub.problem else State.READY, len(hub.instances)
    return {"name": hub.name, "kind": hub.kind, "state": state, "instances": count, "problem": hub.problem}


def queues_of(manager: ResourceManager) -> list[dict[str, Any]]:
    """The queues in which somebody waits."""
    return [asdict(queue) for queue in manager.dispatcher.shell.admission.queues()]


def instance_status(manager: ResourceManager, instance_id: str) -> dict[str, Any]:
    """One instance, with the history of its checks.

    Raises:
        UnknownName: There is no such instance.
    """
    reports = {report.instance.id: report for report in manager.instances()}
    if instance_id not in reports:
        raise UnknownName("instance", instance_id, reports, are="there is")
    report, dispatcher = reports[instance_id], manager.dispatcher
    return {
        **_instance(manager, report, dispatcher.metrics.sum(instance_id=instance_id)),
        "health": [asdict(check) for check in dispatcher.shell.health.history(instance_id)],
        "details": shown_value(dict(report.instance.details)),
    }


def _instance(manager: ResourceManager, report: InstanceReport, series: Series) -> dict[str, Any]:
    # There may be thousands of them, so it is written out.
    instance, results, shares = report.instance, series.results, series.total_s.percentiles(50, 95, 99, digits=6)
    return {
        "id": instance.id,
        "hub": instance.hub,
        "kind": instance.kind,
        "endpoint": instance.endpoint,
        "generation": instance.generation,
        "state": str(report.state),
        "reason": report.reason,
        "degraded": list(manager.dispatcher.shell.admission.pool.records[instance.id].degraded.values()),
        "breaker": report.breaker,
        "ownership": instance.ownership.value,
        "in_flight": report.in_flight,
        "limit": report.limit,
        "max_concurrent": instance.max_concurrent,
        "weight": instance.weight,
        "tags": sorted(instance.tags),
        "capabilities": sorted(instance.capabilities),
        "warm": sorted(instance.warm),
        "served": sum(results.values()),
        "success_rate": round(series.success_rate, 4),
        "input_tokens": series.input_tokens,
        "output_tokens": series.output_tokens,
        "p50_s": shares[0],
        "p95_s": shares[1],
        "p99_s": shares[2],
    }
