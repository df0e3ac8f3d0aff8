"""Ollama's official client manages models through the gateway, over several servers."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import ollama as ollama_client
import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]
    Pair = tuple[OllamaServer, OllamaServer]

pytestmark = pytest.mark.fidelity

EVERYWHERE = {"X-Gleitzeit-Instances": "all"}


def _manage(url: str, file: Path) -> None:
    with ollama_client.Client(host=url) as client:
        assert client.pull("big").status == "success"
        steps = list(client.pull("big", stream=True))
        assert steps[0].status == "pulling manifest"
        assert steps[-1].status == "success"
        assert max(step.completed or 0 for step in steps) == 4000
        assert client.copy("big", "mine").status == "success"
        assert client.create("pirate", from_="smollm2", system="You talk like a pirate.").status == "success"
        made = [step.status for step in client.create("pirate2", from_="smollm2", stream=True)]
        assert made[-2:] == ["writing manifest", "success"]
        digest = client.create_blob(file)
        assert client.create("own", files={"model.gguf": digest}).status == "success"
        names = {model.model for model in client.list().models}
        assert names == {f"{name}:latest" for name in ("smollm2", "big", "mine", "pirate", "pirate2", "own")}
        assert client.show("pirate").modelinfo
        assert client.delete("mine").status == "success"
        assert "mine:latest" not in {model.model for model in client.list().models}


def _fail(url: str) -> None:
    with ollama_client.Client(host=url) as client:
        with pytest.raises(ollama_client.ResponseError, match="file does not exist") as caught:
            client.pull("nothere")
        assert caught.value.status_code == 500
        with pytest.raises(ollama_client.ResponseError, match="file does not exist"):
            list(client.pull("nothere", stream=True))
        for attempt in (client.copy, lambda name, _: client.delete(name)):
            with pytest.raises(ollama_client.ResponseError, match="not found") as caught:
                attempt("nope", "x")
            assert caught.value.status_code == 404
        with pytest.raises(ollama_client.ResponseError, match="no such file") as caught:
            client.push("me/nope")
        assert caught.value.status_code == 500


async def test_client_manages_models(serve: Serve, pair: Pair, tmp_path: Path) -> None:
    """Pull, copy, create from a model and from a file, and delete do what a program expects of one server."""
    gateway = await serve(*pair)
    file = tmp_path / "model.gguf"
    await asyncio.to_thread(file.write_bytes, b"weights" * 100_000)
    await asyncio.to_thread(_manage, gateway.url, file)


async def test_client_hears_of_failures(serve: Serve, pair: Pair) -> None:
    """What cannot be done is the error that the client knows, with the server's own words."""
    gateway = await serve(*pair)
    await asyncio.to_thread(_fail, gateway.url)


async def test_async_client_on_all(serve: Serve, pair: Pair) -> None:
    """With the header its calls are for all instances, and one stream tells of all of them."""
    gateway = await serve(*pair)
    async with ollama_client.AsyncClient(host=gateway.url, headers=EVERYWHERE) as client:
        steps = [step async for step in await client.pull("big", stream=True)]
        assert [step.status for step in steps].count("success") == 1
        assert all(server.catalogue.find("big") is not None for server in pair)
        assert (await client.create("pirate", from_="smollm2")).status == "success"
        assert all(server.catalogue.find("pirate") is not None for server in pair)
        await client.delete("big")
        assert all(server.catalogue.find("big") is None for server in pair)


async def test_client_uploads_a_blob_once(serve: Serve, pair: Pair, tmp_path: Path) -> None:
    """What the client uploads is the same file on all servers, byte for byte: each has compared the digest."""
    gateway = await serve(*pair)
    data = bytes(range(256)) * 4096
    file = tmp_path / "model.gguf"
    await asyncio.to_thread(file.write_bytes, data)
    async with ollama_client.AsyncClient(host=gateway.url) as client:
        digest = await client.create_blob(file)
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert [server.blobs for server in pair] == [{digest}, {digest}]
