"""Ollama's own API: version, models, pulls and the other calls that manage models."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.answers import (
    BARE_JSON,
    NDJSON,
    TEXT,
    Answer,
    ApiError,
    Part,
    Plain,
    Stream,
    json_answer,
    line,
)
from gleitzeit_ollama.testing.fields import table, text
from gleitzeit_ollama.testing.golang import JsonObject, dumps, quote, timestamp
from gleitzeit_ollama.testing.models import (
    Model,
    digest_of,
    full_name,
    is_valid_name,
    qualified_name,
)
from gleitzeit_ollama.testing.native import known_model
from gleitzeit_ollama.testing.recorded import recording

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gleitzeit_ollama.testing.exchange import Exchange

_OK, _CREATED, _BAD_REQUEST, _NOT_FOUND, _SERVER_ERROR = 200, 201, 400, 404, 500
_STORE = "/usr/share/ollama/.ollama/models"
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_FROM = re.compile(r"^# FROM .*$", re.MULTILINE)
_PULL_STEPS = 4
_INVALID_NAME = "invalid model name"
# Read at import, so that no request waits for a file.
_SHOWN = {name: recording(name).json for name in ("show", "show_thinking", "show_tools")}


async def root(_exchange: Exchange) -> Answer:
    """GET or HEAD /."""
    return Plain(_OK, b"Ollama is running", TEXT)


async def version(exchange: Exchange) -> Answer:
    """GET or HEAD /api/version."""
    return json_answer({"version": exchange.server.version})


async def tags(exchange: Exchange) -> Answer:
    """GET or HEAD /api/tags."""
    return json_answer({"models": [model.listed() for model in exchange.server.catalogue]})


async def ps(exchange: Exchange) -> Answer:
    """GET /api/ps."""
    runners = exchange.server.runners
    return json_answer({"models": [runner.row(runners.clock()) for runner in runners.loaded()]})


async def show(exchange: Exchange) -> Answer:
    """POST /api/show."""
    name = text(exchange.read("ShowRequest"), "model", "name")
    if not name:
        raise ApiError(_BAD_REQUEST, "model is required")
    return json_answer(shown(known_model(exchange, name)))


def shown(model: Model) -> JsonObject:
    """Return what `/api/show` says about a model: the recording, under the model's name."""
    like = next((name for name in ("tools", "thinking") if model.can(name)), None)
    recorded = _SHOWN[f"show_{like}" if like else "show"]
    value: JsonObject = dict(recorded) if isinstance(recorded, dict) else {}
    value |= {
        "modelfile": _FROM.sub(f"# FROM {model.name}", str(value["modelfile"]), count=1),
        "details": model.details(model.parent or f"{_STORE}/blobs/sha256-{model.digest}"),
        "model_info": _model_info(value, model),
        "capabilities": sorted({"completion", *model.capabilities}),
        "modified_at": timestamp(model.modified_at_s),
    }
    return _with_system(value, model.system) if model.system else value


def _with_system(value: JsonObject, system: str) -> JsonObject:
    modelfile = str(value["modelfile"]).replace("\nPARAMETER", f"\nSYSTEM {system}\nPARAMETER", 1)
    first = {key: value[key] for key in ("modelfile", "parameters", "template")}
    return {**first, "system": system, **value, "modelfile": modelfile}


def _model_info(value: JsonObject, model: Model) -> JsonObject:
    info = value["model_info"]
    known = dict(info) if isinstance(info, dict) else {}
    return {**known, "llama.embedding_length": model.embedding_length}


async def copy(exchange: Exchange) -> Answer:
    """POST /api/copy."""
    body = exchange.read("CopyRequest")
    source, destination = text(body, "source"), text(body, "destination")
    for what, name in (("source", source), ("destination", destination)):
        if not is_valid_name(name):
            raise ApiError(_BAD_REQUEST, f"{what} {quote(name)} is invalid")
    if not exchange.server.catalogue.copy(source, destination):
        raise ApiError(_NOT_FOUND, f"model {quote(source)} not found")
    return Plain()


async def delete(exchange: Exchange) -> Answer:
    """DELETE /api/delete."""
    name = text(exchange.read("DeleteRequest"), "model", "name")
    if not is_valid_name(name):
        raise ApiError(_BAD_REQUEST, f"name {quote(name)} is invalid")
    model = exchange.server.catalogue.remove(name)
    if model is None:
        raise ApiError(_NOT_FOUND, f"model '{name}' not found")
    exchange.server.runners.unload(model.name)
    return Plain()


async def pull(exchange: Exchange) -> Answer:
    """POST /api/pull: succeeds for what `server.registry` holds, fails as recorded for the rest."""
    body = exchange.read("PullRequest")
    name = text(body, "model", "name")
    if not is_valid_name(name):
        raise ApiError(_BAD_REQUEST, _INVALID_NAME)
    return _progress(body, _pull(exchange, name))


def _pull(exchange: Exchange, name: str) -> Iterator[JsonObject]:
    yield {"status": "pulling manifest"}
    registry = exchange.server.registry
    if registry is None:
        yield {"error": _unreachable(name)}
        return
    size_bytes = {full_name(known): size for known, size in registry.items()}.get(full_name(name))
    if size_bytes is None:
        yield {"error": "pull model manifest: file does not exist"}
        return
    yield from _download(f"layer {full_name(name)}", size_bytes)
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    exchange.server.catalogue.add(replace(Model.parse(name), size_bytes=size_bytes))
    yield {"status": "success"}


def _download(layer: str, size_bytes: int) -> Iterator[JsonObject]:
    digest = digest_of(layer)
    status = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size_bytes}
    yield status
    for step in range(1, _PULL_STEPS + 1):
        yield {**status, "completed": size_bytes * step // _PULL_STEPS}


def _unreachable(name: str) -> str:
    host, _, place = qualified_name(name).partition("/")
    path, _, tag = place.rpartition(":")
    looked_up = f"dial tcp: lookup {host} on 127.0.0.53:53: no such host"
    return f'pull model manifest: Get "https://{host}/v2/{path}/manifests/{tag}": {looked_up}'


async def push(exchange: Exchange) -> Answer:
    """POST /api/push: there is nowhere to push to."""
    body = exchange.read("PushRequest")
    name = text(body, "model", "name")
    if not name:
        raise ApiError(_BAD_REQUEST, "model is required")
    return _progress(body, _push(exchange, name))


def _push(exchange: Exchange, name: str) -> Iterator[JsonObject]:
    if exchange.server.catalogue.find(name) is None:
        path, _, tag = qualified_name(name).rpartition(":")
        file = f"{_STORE}/manifests/{path}/{tag}"
        yield {"error": f"open {file}: no such file or directory"}
        return
    yield {"status": "retrieving manifest"}
    yield {"error": _unreachable(name).replace("pull model manifest", "push model manifest")}


async def create(exchange: Exchange) -> Answer:
    """POST /api/create, from another model or from files that were uploaded as blobs."""
    body = exchange.read("CreateRequest")
    name = text(body, "model", "name")
    if not is_valid_name(name):
        raise ApiError(_BAD_REQUEST, _INVALID_NAME)
    source, files = text(body, "from"), table(body, "files")
    if files:
        return _progress(body, _create_from_files(exchange, name, [str(digest) for digest in files.values()]))
    if not source:
        raise ApiError(_BAD_REQUEST, "neither 'from' or 'files' was specified")
    return _progress(body, _create(exchange, name, source, text(body, "system")))


def _create(exchange: Exchange, name: str, source: str, system: str) -> Iterator[JsonObject]:
    catalogue = exchange.server.catalogue
    parent = catalogue.find(source)
    if parent is None:
        yield {"error": _unreachable(source)}
        return
    for layer in ("weights", "template"):
        yield {"status": f"using existing layer sha256:{digest_of(f'{parent.name} {layer}')}"}
    if system:
        yield {"status": f"creating new layer sha256:{digest_of(system)}"}
    yield {"status": f"using existing layer sha256:{digest_of(f'{parent.name} parameters')}"}
    yield {"status": "writing manifest"}
    made = replace(parent, name=name, parent=parent.name, modified_at_s=time.time())
    catalogue.add(replace(made, system=system or parent.system))
    yield {"status": "success"}


def _create_from_files(exchange: Exchange, name: str, digests: Sequence[str]) -> Iterator[JsonObject]:
    for digest in digests:
        if digest not in exchange.server.blobs:
            yield {"error": f"open {_STORE}/blobs/{digest.replace(':', '-')}: no such file or directory"}
            return
    yield {"status": "parsing GGUF"}
    for digest in digests:
        yield {"status": f"using existing layer {digest}"}
    yield {"status": "writing manifest"}
    exchange.server.catalogue.add(Model(name))
    yield {"status": "success"}


def _progress(body: JsonObject, states: Iterator[JsonObject]) -> Answer:
    if body.get("stream") is not False:
        return _progress_stream(states)
    last = list(states)[-1]
    status = _SERVER_ERROR if "error" in last else _OK
    return Plain(status, dumps(last), BARE_JSON)


def _progress_stream(states: Iterator[JsonObject]) -> Answer:
    first = next(states)
    if "error" in first:
        return Plain(_SERVER_ERROR, dumps(first), BARE_JSON)
    return Stream(NDJSON, _progress_lines(first, states))


def _progress_lines(first: JsonObject, states: Iterator[JsonObject]) -> Iterator[Part]:
    yield line(first)
    for state in states:
        yield line(state, is_token="completed" in state)


async def head_blob(exchange: Exchange) -> Answer:
    """HEAD /api/blobs/DIGEST."""
    digest = _digest(exchange)
    if digest not in exchange.server.blobs:
        raise ApiError(_NOT_FOUND, f"blob {quote(digest)} not found")
    return Plain()


async def create_blob(exchange: Exchange) -> Answer:
    """POST /api/blobs/DIGEST."""
    digest = _digest(exchange)
    if digest in exchange.server.blobs:
        return Plain()
    got = exchange.record.body_digest
    if got != digest:
        complaint = f"digest mismatch, expected {quote(digest)}, got {quote(got)}"
        raise ApiError(_BAD_REQUEST, complaint)
    exchange.server.blobs.add(digest)
    return Plain(_CREATED)


def _digest(exchange: Exchange) -> str:
    digest = exchange.rest_of_path
    if not _DIGEST.fullmatch(digest):
        raise ApiError(_BAD_REQUEST, "invalid digest format")
    return digest.replace("-", ":")
