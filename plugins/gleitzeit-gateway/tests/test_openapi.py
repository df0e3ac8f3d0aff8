"""``/openapi.json``: it says what there is, and what there is behaves as it says, whatever it is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
KEY = "k" * 16
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# What is answered when an instance fails or nobody can do it. An instance's own 500 is one of them: one of ours is
# found by its trace in the log.
SETTINGS = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 500, 501, 502, 503, 504, 508, 529]
"""


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:  # noqa: ANN401 - JSON
    """Path, verb and operation."""
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


async def test_it_names_every_path(serve: Serve, ollama: OllamaServer) -> None:
    """Paths of all client APIs, of plugins and of the gateway itself are in it, each with a summary and a name."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/openapi.json")
    assert answered.headers["Content-Type"] == "application/json"
    document = answered.json
    assert document["openapi"] == "3.1.0"
    every = list(operations(document))
    names = [operation["operationId"] for _, _, operation in every]
    assert len(set(names)) == len(names)
    assert [operation for _, _, operation in every if not operation["summary"].endswith(".")] == []
    paths = {path for path, _, _ in every}
    assert paths >= {
        "/",
        "/api/chat",
        "/api/pull",
        "/v1/messages",
        "/v1/models/{rest}",
        "/rpc",
        "/metrics",
        "/openapi.json",
    }
    # And nothing is in it that is not there. The events have no end to wait for.
    for path, verb, _ in (one for one in every if one[0] != "/admin/events"):
        assert (await gateway.ask(path.replace("{rest}", "x"), verb=verb.upper())).status != 405


async def test_it_has_no_loose_ends(serve: Serve, ollama: OllamaServer) -> None:
    """Every schema that it refers to is in it."""
    gateway = await serve(ollama)
    document = (await gateway.ask("/openapi.json")).json
    found = set()

    def look(part: Any) -> None:  # noqa: ANN401 - JSON
        if isinstance(part, dict):
            found.update([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
            for inner in part.values():
                look(inner)
        elif isinstance(part, list):
            for inner in part:
                look(inner)

    look(document)
    assert found
    assert found <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert "params_llm_chat" in document["components"]["schemas"]


async def test_it_is_public_and_tells_nothing_of_the_configuration(serve: Serve, ollama: OllamaServer) -> None:
    """It needs no key, and names none; nor an instance or a model."""
    gateway = await serve(ollama, keys=[{"name": "alice", "key": KEY}])
    answered = await gateway.ask("/openapi.json")
    assert answered.status == 200
    for secret in (KEY, "alice", ollama.url, "smollm2", "lan"):
        assert f'"{secret}"' not in answered.text
    public = {path for path, _, operation in operations(answered.json) if operation.get("security") == []}
    for path, verb, _ in operations(answered.json):
        status = (await gateway.ask(path.replace("{rest}", "x"), verb=verb.upper())).status
        assert (status == 401) == (path not in public), path


def with_models(part: Any) -> Any:  # noqa: ANN401 - JSON
    """The document as one would fill it in who knows which models and roles there are."""
    if isinstance(part, list):
        return [with_models(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {name: with_models(inner) for name, inner in part.items()}
    properties = found.get("properties")
    if isinstance(properties, dict) and "model" in properties:
        properties["model"] = {"enum": ["smollm2", "smollm2:latest", "nope"]}
    if isinstance(properties, dict) and "role" in properties:
        properties["role"] = {"enum": ["user", "assistant", "system", "tool"]}
    return found


def is_trace(record: logging.LogRecord) -> bool:
    """Whether it tells of a mistake, and not of the stand-in's caller who has left."""
    ours = record.name.startswith(("gleitzeit", "aiohttp", "asyncio"))
    error = record.exc_info[1] if record.exc_info else None
    return ours and record.levelno >= logging.ERROR and not isinstance(error, ConnectionError)


async def test_it_is_believed(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, full_size: bool
) -> None:
    """Schemathesis finds nothing: no error of ours, no status and no type that is not said, and no trace in the log."""
    caplog.set_level(logging.WARNING)
    async with OllamaServer(registry={"tiny": 9}) as ollama:
        gateway = await serve(ollama, keys=[{"name": "operator", "key": KEY, "admin": True}], body_timeout_s=2)
        settings, document = tmp_path / "schemathesis.toml", tmp_path / "openapi.json"
        await asyncio.to_thread(settings.write_text, SETTINGS)
        shown = with_models((await gateway.ask("/openapi.json")).json)
        await asyncio.to_thread(document.write_text, json.dumps(shown))
        arguments = [
            *("--config-file", str(settings), "run", str(document), "--url", gateway.url),
            *("--header", f"Authorization: Bearer {KEY}", "--checks", CHECKS, "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing" if full_size else "fuzzing"),
            *("--max-examples", "200" if full_size else "4", "--request-timeout", "20", "--continue-on-failure"),
            # An event stream has no end; and what is added as an instance is asked for its models, wherever it is.
            *("--exclude-path", "/admin/events", "--exclude-operation-id", "post_admin_instances"),
        ]
        found = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        output, _ = await found.communicate()
        assert found.returncode == 0, output.decode()
        await gateway.until(lambda: (gateway.in_flight, gateway.waiting) == (0, 0))
    assert [logging.Formatter().format(record) for record in caplog.records if is_trace(record)] == []
    # It has come to where work is done.
    work = {"/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
    assert len(work & {record.path for record in ollama.requests}) >= len(work) / 2
