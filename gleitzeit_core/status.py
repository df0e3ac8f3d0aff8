"""What a manager is doing, as plain data, for people and for programs."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gleitzeit_core.config_show import shown_value
from gleitzeit_core.errors import UnknownName
from gleitzeit_core.metrics import Series

if TYPE_CHECKING:
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.runs import InstanceReport

# Looked up once: it reads files, which must not stop a running loop.
_VERSION = version("gleitzeit-core")


def status_of(manager: ResourceManager) -> dict[str, Any]:
    """Everything but histories."""
    dispatcher, config = manager.dispatcher, manager.config
    by_instance = dispatcher.metrics.by("instance")
    return {
        "version": _VERSION,
        "configuration": str(config.source) if config.source else None,
        "uptime_s": round(time.time() - manager.started_at, 3),
        "requests": {
            "active": dispatcher.active,
            "waiting": dispatcher.shell.admission.waiting,
            **dispatcher.metrics.sum().results,
        },
        "hedges": {name: getattr(dispatcher.hedges, name) for name in ("started", "won")},
        "queues": queues_of(manager),
        "hubs": [
            {"name": hub.name, "kind": hub.kind, "instances": len(hub.instances), "problem": hub.problem}
            for hub in dispatcher.shell.hubs.values()
        ],
        "instances": [
            _instance(manager, report, by_instance.get(report.instance.id, Series())) for report in manager.instances()
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
        raise UnknownName("instance", instance_id, reports)
    report, dispatcher = reports[instance_id], manager.dispatcher
    return {
        **_instance(manager, report, dispatcher.metrics.sum(instance_id=instance_id)),
        "health": [asdict(check) for check in dispatcher.shell.health.history(instance_id)],
        "details": shown_value(dict(report.instance.details)),
    }


def _instance(manager: ResourceManager, report: InstanceReport, series: Series) -> dict[str, Any]:
    instance = report.instance
    record = manager.dispatcher.shell.admission.pool.records[instance.id]
    return {
        **{name: getattr(instance, name) for name in ("id", "hub", "kind", "endpoint", "generation")},
        "state": str(report.state),
        "reason": report.reason,
        "degraded": list(record.degraded.values()),
        "breaker": report.breaker,
        "ownership": instance.ownership.value,
        "in_flight": report.in_flight,
        "limit": report.limit,
        **{name: getattr(instance, name) for name in ("max_concurrent", "weight")},
        **{name: sorted(getattr(instance, name)) for name in ("tags", "capabilities", "warm")},
        "served": sum(series.results.values()),
        "success_rate": round(series.success_rate, 4),
        **{name: getattr(series, name) for name in ("input_tokens", "output_tokens")},
        **{f"p{share}_s": round(series.total_s.percentile(share), 6) for share in (50, 95, 99)},
    }
