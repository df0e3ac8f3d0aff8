"""Servers that come and go while all is running: by hand, and with another configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ConfigurationError, InvalidRequest
from gleitzeit_core.pool import State
from gleitzeit_openai.hub import OpenAIHub
from gleitzeit_openai.options import OpenAIOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_core.pool import Record
    from gleitzeit_core.shell import Shell

MODELS = {"data": [{"id": "llama-3"}]}


def options(*instances: object, **others: object) -> OpenAIOptions:
    """Of a hub."""
    return OpenAIOptions.model_validate({"instances": list(instances), **others})


def records(shell: Shell) -> dict[str, Record]:
    """By URL."""
    return {record.instance.endpoint: record for record in shell.admission.pool}


async def test_one_that_is_added_can_be_used_at_once(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """With its key, with the settings given and with what it lists."""
    first, second = await listing(MODELS), await listing({"data": [{"id": "qwen"}]})
    second.key = "sk-right"
    await shell.add_hub(OpenAIHub(options(first.url), name="far"))
    settings = {"url": f"{second.url}/v1", "type": "openai", "api_key": "sk-right", "weight": 2, "models": []}
    added = await shell.add_instance("far", settings)
    assert (added.endpoint, added.weight, added.capabilities) == (second.url, 2, {"model:qwen"})
    assert records(shell)[second.url].state is State.READY
    assert "sk-right" not in repr(added)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "nowhere"}, "is not a URL such as"),
        ({"url": "http://a", "wieght": 2}, "did you mean 'weight'?"),
        ({"url": "http://a", "api_key": "sk-a b"}, "api_key: the key has characters in it that no key has"),
        ({"url": "https://a", "ca_file": "no-such.pem"}, "there is no file"),
    ],
)
async def test_wrong_settings_are_refused(
    settings: dict[str, Any], message: str, shell: Shell, listing: Callable[..., Awaitable[Any]]
) -> None:
    """With what is wrong, without a secret, and nothing has changed."""
    server = await listing(MODELS)
    await shell.add_hub(OpenAIHub(options(server.url), name="far"))
    with pytest.raises(InvalidRequest) as caught:
        await shell.add_instance("far", settings)
    assert message in caught.value.message
    assert "sk-" not in caught.value.message
    assert list(records(shell)) == [server.url]


async def test_the_list_of_servers_changes_in_place(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """New ones are ready when it returns, gone ones are gone, changed ones are asked with the new key."""
    stays, goes, comes, changes = [await listing(MODELS) for _ in range(4)]
    hub = OpenAIHub(options(stays.url, goes.url, changes.url), name="far")
    await shell.add_hub(hub)
    before, asked = records(shell), len(stays.asked)
    changes.key = "sk-new"
    later = options(
        stays.url, comes.url, {"url": changes.url, "api_key": "sk-new", "tags": ["gpu"]}, check_interval_s=7
    )
    assert await hub.reconfigure(later)
    after = records(shell)
    assert {url: record.state for url, record in after.items()} == dict.fromkeys(
        (stays.url, comes.url, changes.url), State.READY
    )
    assert after[stays.url] is before[stays.url]
    assert after[changes.url] is before[changes.url]
    assert after[changes.url].instance.tags == {"gpu"}
    assert changes.asked[-1]["Authorization"] == "Bearer sk-new"
    assert len(stays.asked) == asked
    assert hub.options is later
    await hub.search()
    assert records(shell) == after


async def test_other_models_for_a_server_count_at_once(shell: Shell, listing: Callable[..., Awaitable[Any]]) -> None:
    """Named ones replace those it lists; without names it is what it lists again."""
    server = await listing(MODELS)
    hub = OpenAIHub(options(server.url), name="far")
    await shell.add_hub(hub)
    assert await hub.reconfigure(options({"url": server.url, "models": ["alias"]}))
    assert records(shell)[server.url].instance.capabilities == {"model:alias"}
    assert await hub.reconfigure(options(server.url))
    assert records(shell)[server.url].instance.capabilities == {"model:llama-3"}


async def test_a_server_that_is_switched_to_no_probes_is_ready(
    shell: Shell, listing: Callable[..., Awaitable[Any]]
) -> None:
    """It was down, and nobody asks any more: users' requests will tell."""
    server = await listing(MODELS)
    server.status = 500
    hub = OpenAIHub(options(server.url), name="far")
    await shell.add_hub(hub)
    assert records(shell)[server.url].state is State.DOWN
    asked = len(server.asked)
    assert await hub.reconfigure(options({"url": server.url, "models": ["a"], "probe": False}))
    assert records(shell)[server.url].state is State.READY
    assert len(server.asked) == asked


async def test_certificates_that_are_none_change_nothing(
    shell: Shell, listing: Callable[..., Awaitable[Any]], tmp_path: Path
) -> None:
    """All files that cannot be used are named, and all goes on as before."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    server = await listing(MODELS)
    hub = OpenAIHub(options(server.url), name="far")
    await shell.add_hub(hub)
    broken = options(*({"url": f"https://{name}", "ca_file": str(wrong)} for name in "ab"))
    with pytest.raises(ConfigurationError) as caught:
        await hub.reconfigure(broken)
    assert [problem.path for problem in caught.value.problems] == [
        "hubs.far.instances[0].ca_file",
        "hubs.far.instances[1].ca_file",
    ]
    assert list(records(shell)) == [server.url]
