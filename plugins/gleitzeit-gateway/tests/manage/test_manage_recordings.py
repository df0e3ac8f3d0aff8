"""The calls that manage models are held to the recordings of a real Ollama, over one server and over several."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.testing import Model, OllamaServer, recording, recording_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

PATHS = tuple(f"/api/{name}" for name in ("pull", "push", "create", "copy", "delete", "blobs"))
RECORDED = {name: found for name in recording_names() if (found := recording(name)).path.startswith(PATHS)}
HOST = "registry.ollama.ai"


def _unplaced(value: object) -> Any:  # noqa: ANN401 - any JSON
    """With the stand-in's registry under the name of the real one, and digests and places left out."""
    if isinstance(value, dict):
        return {key: _unplaced(item) for key, item in value.items()}
    text = str(value).replace("registry.example", HOST)
    return text.partition(" sha256:")[0].partition(" /usr")[0]


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("name", RECORDED)
async def test_manages_as_recorded(serve: Serve, name: str, servers: int) -> None:
    """The same request gets the same status, type, keys and words, and an answer in steps the same steps."""
    recorded = RECORDED[name]
    models = [Model("smollm2")]
    if name == "delete":
        models.append(Model("copied"))
    if name == "delete_pirate":
        models.append(Model("pirate"))
    async with OllamaServer(models=models) as one, OllamaServer(models=models) as two:
        gateway = await serve(*[one, two][:servers])
        headers = {"Content-Type": "application/octet-stream"}
        answered = await gateway.ask(
            recorded.path, recorded.request_bytes or None, verb=recorded.method, headers=headers
        )
    assert answered.status == recorded.status
    assert answered.complete
    for header in ("Content-Type", "Transfer-Encoding"):
        assert answered.headers.get(header) == recorded.headers.get(header), header
    if "registry" not in json.dumps(recorded.json) and recorded.lines is None:
        assert answered.headers.get("Content-Length") == recorded.headers.get("Content-Length")
    if recorded.lines is not None:
        assert [_unplaced(line) for line in answered.lines] == [_unplaced(json.loads(t)) for t in recorded.lines if t]
    elif recorded.json is not None:
        assert _unplaced(answered.json) == _unplaced(recorded.json)
    else:
        assert answered.body == b""


def test_all_recordings_of_these_calls_are_used() -> None:
    """None of the eleven is passed over."""
    assert len(RECORDED) == 11
