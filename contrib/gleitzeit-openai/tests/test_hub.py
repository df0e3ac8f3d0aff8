from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ConfigurationError, FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.pool import State
from gleitzeit_openai.hub import OpenAIHub
from gleitzeit_openai.options import OpenAIOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_core.pool import Record
    from gleitzeit_core.shell import Shell

TWO = {"object": "list", "data": [{"id": "llama-3", "created": 1700000000}, {"id": "qwen:latest"}]}


def hub(*instances: object) -> OpenAIHub:
    """A hub that checks its instances all the time."""
    options = {"check_interval_s": 0.05, "instances": list(instances)}
    return OpenAIHub(OpenAIOptions.model_validate(options), name="far")


def record(shell: Shell) -> Record:
    """The pool's record of the only instance."""
    (one,) = shell.admission.pool
    return one


async def changed_to(shell: Shell, state: State) -> Record:
    """Waits until the only instance is in `state`."""
    seen = asyncio.Event()
    shell.listen(lambda change: seen.set() if change.state == state else None)
    if record(shell).state is not state:
        await seen.wait()
    return record(shell)


async def test_a_server_has_what_it_lists(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """Each listed model is a capability, all are warm, and each has an entry with what is known."""
    server = await listing(TWO)
    await shell.add_hub(hub(f"{server.url}/v1"))
    instance, state = record(shell).instance, record(shell).state
    assert state is State.READY
    assert instance.capabilities == instance.warm == {"model:llama-3", "model:qwen"}
    entries = instance.details["models"]
    assert entries["llama-3"]["modified_at"] == "2023-11-14T22:13:20.000000Z"
    assert entries["qwen"]["model"] == "qwen:latest"
    assert (instance.hub, instance.kind, instance.endpoint) == ("far", "openai", server.url)
    assert [(api, channel.url) for api, channel in instance.offers] == [("openai", server.url)]


async def test_options_reach_the_instance(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """Weight, concurrency and tags are what scheduling goes by."""
    server = await listing(TWO)
    await shell.add_hub(hub({"url": server.url, "weight": 2.5, "max_concurrent": 32, "tags": ["gpu"]}))
    instance = record(shell).instance
    assert (instance.weight, instance.max_concurrent, instance.tags) == (2.5, 32, {"gpu"})


async def test_a_bare_list_is_understood(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """Some servers answer the list alone; what in it is no model is left out."""
    server = await listing([{"id": "a", "created": "yesterday"}, {"id": ""}, {"name": "b"}, "c", {"id": 7}])
    await shell.add_hub(hub(server.url))
    assert record(shell).instance.capabilities == {"model:a"}


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"data": "x"}, "x", 7, None])
async def test_what_is_no_list_is_a_failure(
    answer: object, shell: Shell, listing: Callable[..., Awaitable[Any]]
) -> None:
    """A server that answers something else is not taken for one without models."""
    server = await listing(answer)
    one = hub(server.url)
    await shell.add_hub(one)
    assert record(shell).state is State.DOWN
    with pytest.raises(InstanceFailure, match="not a list of models"):
        await one.check(record(shell).instance)


async def test_a_new_model_is_seen(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """The list is asked for again with every check."""
    server = await listing({"data": [{"id": "a"}]})
    await shell.add_hub(hub(server.url))
    grown = asyncio.Event()
    shell.listen(lambda change: grown.set() if change.after and len(change.after.capabilities) == 2 else None)
    server.answer = {"data": [{"id": "a"}, {"id": "b"}]}
    await grown.wait()
    assert record(shell).instance.warm == {"model:a", "model:b"}


async def test_only_the_named_models_are_used(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """`models` restricts a service with hundreds of them, and may name what it does not list."""
    server = await listing(TWO)
    await shell.add_hub(hub({"url": server.url, "models": ["llama-3", "alias"]}))
    assert record(shell).state is State.READY
    assert record(shell).instance.capabilities == {"model:llama-3", "model:alias"}
    assert set(record(shell).instance.details["models"]) == {"llama-3", "alias"}


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_without_a_list_needs_models(
    status: int, shell: Shell, listing: Callable[..., Awaitable[Any]]
) -> None:
    """Without /v1/models a server is fine when its models are named, and says what to do when they are not."""
    server = await listing(None)
    server.status = status
    await shell.add_hub(hub({"url": server.url, "models": ["a"]}))
    assert record(shell).state is State.READY
    bare = hub(server.url)
    await bare.open()
    try:
        (found,) = await bare.discover()
        with pytest.raises(InstanceFailure, match=f"answers {status}: name what it has in 'models'"):
            await bare.check(found)
    finally:
        await bare.close()


async def test_a_server_that_must_not_be_probed_is_not(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """With `probe: false` it is ready from the start, and nothing is sent to it."""
    server = await listing(TWO)
    await shell.add_hub(hub({"url": server.url, "models": ["a"], "probe": False}))
    assert record(shell).state is State.READY
    await shell.hubs["far"].search()
    assert server.asked == []


async def test_a_key_is_sent(
    shell: Shell, listing: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bearer token, with the other headers, in checks and in the channel that requests use."""
    monkeypatch.setenv("FAR_KEY", "sk-12345678")
    server = await listing(TWO)
    server.key = "sk-12345678"
    await shell.add_hub(hub({"url": server.url, "api_key_env": "FAR_KEY", "headers": {"X-Team": "blue"}}))
    assert record(shell).state is State.READY
    assert server.asked[0]["X-Team"] == "blue"
    ((_, channel),) = record(shell).instance.offers
    assert channel.headers == {"X-Team": "blue", "Authorization": "Bearer sk-12345678"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "wants a key (401): set 'api_key_env' or 'api_key'"),
        ({"api_key": "sk-wrong"}, "refuses the key it is sent (401)"),
    ],
)
async def test_a_wrong_key_is_a_wrong_configuration(
    given: dict[str, str],
    says: str,
    shell: Shell,
    listing: Callable[..., Awaitable[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is shown as misconfigured with what to do, at once and without the key; the right key heals it."""
    caplog.set_level(logging.DEBUG)
    server = await listing(TWO)
    server.key = "sk-right"
    one = hub({"url": server.url, **given})
    await shell.add_hub(one)
    assert record(shell).state is State.MISCONFIGURED
    assert record(shell).reason == f"{server.url} {says}"
    for shown in (record(shell).reason, caplog.text, repr(one), repr(record(shell).instance)):
        assert "sk-" not in shown
    server.key = given["api_key"] if given else None
    assert (await changed_to(shell, State.READY)).reason == ""


async def test_a_failure_shows_no_key(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """A server that echoes the key in its error does not bring it into ours."""
    server = await listing(TWO)
    server.key = "other"
    one = hub({"url": server.url, "api_key": "sk-echo"})
    await shell.add_hub(one)
    with pytest.raises(InstanceFailure) as caught:
        await one.check(record(shell).instance)
    assert caught.value.kind is FailureKind.UNAUTHORIZED
    assert caught.value.body is None
    assert "sk-" not in str(caught.value)


async def test_a_server_that_counts_requests_stays_up(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """A check that is answered 429 shows that the server lives; its last list holds."""
    server = await listing(TWO)
    one = hub(server.url)
    await shell.add_hub(one)
    server.status = 429
    instance = record(shell).instance
    assert await one.check(instance) == instance
    with pytest.raises(InstanceFailure) as caught:
        await one.check(instance.changed(capabilities=frozenset(), warm=frozenset()))
    assert caught.value.kind is FailureKind.BUSY


async def test_a_server_that_fails_goes_down_and_comes_back(
    shell: Shell, listing: Callable[..., Awaitable[Any]]
) -> None:
    """Errors in a row take it out, the first good answer brings it back."""
    server = await listing(TWO)
    await shell.add_hub(hub(server.url))
    server.status = 500
    assert "answered 500" in (await changed_to(shell, State.DOWN)).reason
    server.status = 200
    await changed_to(shell, State.READY)


async def test_a_server_that_is_not_there_is_down(shell: Shell) -> None:
    """A refused connection is no error of the host: the instance is down, and says why."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        await shell.add_hub(hub(f"http://127.0.0.1:{taken.getsockname()[1]}"))
        assert record(shell).state is State.DOWN
        assert "127.0.0.1" in record(shell).reason


async def test_two_servers_are_two_instances(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """One that is down takes nothing from the other, and another search finds the same two."""
    up, down = await listing(TWO), await listing(TWO)
    down.status = 500
    one = hub(up.url, down.url)
    await shell.add_hub(one)
    assert {r.instance.endpoint: r.state for r in shell.admission.pool} == {up.url: State.READY, down.url: State.DOWN}
    await one.search()
    assert len(one.instances) == 2


@pytest.mark.parametrize("url", ["http://gpu2:8000", "HTTP://GPU2:8000/v1/"])
async def test_an_id_is_the_same_in_every_run(url: str) -> None:
    """However the URL is written, so that replicas agree and a store can be read again."""
    one = hub(url)
    await one.open()
    (found,) = await one.discover()
    await one.close()
    assert found.id == "openai-gpu2-8000-db722a1a"


async def test_its_own_certificates_are_trusted(
    shell: Shell, listing: Callable[..., Awaitable[Any]], certificate: Path
) -> None:
    """With `ca_file` a server with a certificate of its own is reached; without, it is not."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server = await listing(TWO, tls=context)
    url = server.url.replace("127.0.0.1", "localhost")
    await shell.add_hub(hub({"url": url, "ca_file": str(certificate)}))
    assert record(shell).state is State.READY
    await shell.remove_hub("far", grace_s=0)
    await shell.add_hub(hub(url))
    assert record(shell).state is State.DOWN
    assert "certificate" in record(shell).reason


async def test_certificates_that_are_none_are_told_of(shell: Shell, tmp_path: Path) -> None:
    """A file without certificates is a mistake in the configuration, named with its place; nothing is left open."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    one = hub("http://a", {"url": "https://b", "ca_file": str(wrong)})
    with pytest.raises(
        ConfigurationError, match=r"hubs\.far\.instances\[1\]\.ca_file: cannot be used: it holds no certificates"
    ):
        await shell.add_hub(one)
    assert shell.hubs == {}


async def test_a_server_of_another_hub_is_not_taken_over_by_hand(
    shell: Shell, listing: Callable[..., Awaitable[Any]]
) -> None:
    """Whoever adds it is told whose it is, and there it stays."""
    server, other = await listing(TWO), await listing(TWO)
    await shell.add_hub(hub(server.url))
    await shell.add_hub(OpenAIHub(OpenAIOptions.model_validate({"instances": [other.url]}), name="near"))
    with pytest.raises(InvalidRequest, match="far"):
        await shell.add_instance("near", {"url": server.url})
    assert {r.instance.endpoint: r.instance.hub for r in shell.admission.pool} == {server.url: "far", other.url: "near"}
