"""What a gateway says of itself, for tests."""

from __future__ import annotations

from typing import Any

INSTANCE: dict[str, Any] = {
    "id": "ollama-gpu1-1a2b3c4d",
    "hub": "lan",
    "kind": "ollama",
    "endpoint": "http://gpu1:11434",
    "state": "ready",
    "reason": "",
    "ownership": "external",
    "in_flight": 1,
    "max_concurrent": 4,
    "weight": 1.0,
    "tags": ["gpu"],
    "capabilities": ["model:big", "model:tiny"],
    "warm": ["model:tiny"],
    "served": 200,
    "success_rate": 0.995,
    "p50_s": 0.25,
    "p95_s": 1.5,
    "p99_s": 2.0,
}
DOWN = {**INSTANCE, "id": "ollama-gpu2-2b3c4d5e", "state": "down", "reason": "refused", "served": 0, "warm": []}
STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "configuration": None,
    "uptime_s": 7300.0,
    "requests": {"active": 1, "waiting": 2, "ok": 199, "failed": 1},
    "hubs": [{"name": "lan", "kind": "ollama", "instances": 2}],
    "instances": [INSTANCE, DOWN],
    "routes": [{"methods": ["llm/*"], "strategy": "least_loaded", "max_queue": 256}],
    "methods": [{"name": "llm/chat", "summary": "", "streams": True, "replayable": True}],
}
