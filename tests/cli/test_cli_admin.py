"""The commands that change a running gateway, against one that answers as it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.samples import DOWN, INSTANCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ended, Exchange, Gateway, Terminal

    Cli = Callable[..., Ended]

FULL = {**INSTANCE, "limit": 2, "breaker": "closed", "degraded": [], "generation": 0}
OTHER = {**DOWN, "id": "ollama-gpu10-3c4d5e6f", "endpoint": "http://gpu10:11434"}
CHECKS = [
    {"at": 1_795_000_000.0, "ok": True, "took_s": 0.012, "reason": ""},
    {"at": 1_795_000_010.0, "ok": False, "took_s": 5.0, "reason": "no answer to a check within 5 s"},
]


@pytest.fixture
def pool(gateway: Gateway) -> Gateway:
    """A gateway with two instances, whose names begin alike."""
    gateway.on("GET /admin/instances", lambda exchange: exchange.json({"instances": [FULL, OTHER]}))
    return gateway


def answering(data: object, status: int = 200) -> Callable[[Exchange], None]:
    """An answer that is always the same."""
    return lambda exchange: exchange.json(data, status)


# -- adding


def test_add_sends_what_was_said_and_no_more(cli: Cli, gateway: Gateway) -> None:
    """What was not given is left to the gateway; the instance is shown as it is then."""
    gateway.on("POST /admin/instances", answering(FULL, 201))
    ended = cli("instances", "add", "http://gpu1:11434", "--gateway", gateway.url)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[1].split()[:4] == [INSTANCE["id"], "lan", "ready", "1/2"]
    assert gateway.seen[-1].body == {"url": "http://gpu1:11434", "type": "ollama"}
    cli("instances", "add", "http://gpu1:11434", "--hub", "lan", "--gateway", gateway.url)
    assert gateway.seen[-1].body == {"url": "http://gpu1:11434", "hub": "lan"}
    options = ["--type", "openai", "--hub", "lan", "--weight", "2", "--max-concurrent", "8", "--tag", "gpu"]
    ended = cli(
        "instances", "add", "gpu3:8000", *options, "--model", "a", "--model", "b", "--json", "--gateway", gateway.url
    )
    assert ended.json() == FULL
    assert gateway.seen[-1].body == {
        "url": "gpu3:8000",
        "type": "openai",
        "hub": "lan",
        "weight": 2.0,
        "max_concurrent": 8,
        "tags": ["gpu"],
        "models": ["a", "b"],
    }


@pytest.mark.parametrize("option", [("--weight", "0"), ("--weight", "x"), ("--max-concurrent", "0")])
def test_add_refuses_what_makes_no_sense(cli: Cli, gateway: Gateway, option: tuple[str, str]) -> None:
    """Before anything is sent."""
    ended = cli("instances", "add", "http://gpu1:11434", *option, "--gateway", gateway.url)
    assert ended.status == 2
    assert not gateway.seen


def test_what_the_gateway_refuses_is_told_in_its_words(cli: Cli, gateway: Gateway) -> None:
    """One sentence, and the status of a failure."""
    error = {"error": {"code": "invalid_request", "message": "weight must be above 0", "retryable": False}}
    gateway.on("POST /admin/instances", answering(error, 400))
    ended = cli("instances", "add", "http://gpu1:11434", "--gateway", gateway.url)
    assert (ended.status, ended.out, ended.err) == (1, "", "Error: weight must be above 0\n")


# -- which one


@pytest.mark.parametrize(
    "given", [INSTANCE["id"], "http://gpu1:11434", "http://gpu1:11434/", "ollama-gpu1-", "gpu1:", "gpu1-"]
)
def test_an_instance_has_many_names(cli: Cli, pool: Gateway, given: str) -> None:
    """Its id, the beginning of one or of its host, or its URL."""
    pool.on(f"POST /admin/instances/{INSTANCE['id']}/resume", answering(FULL))
    assert cli("instances", "resume", given, "--gateway", pool.url).status == 0


@pytest.mark.parametrize(
    ("given", "hint"),
    [("gpu1", "any of 2 instances, say which: ollama-gpu1-"), ("gpu3", "there is: ollama-"), ("", "unknown")],
)
def test_a_name_that_means_none_or_two_is_refused(cli: Cli, pool: Gateway, given: str, hint: str) -> None:
    """With what there is; nothing is changed."""
    ended = cli("instances", "remove", given, "--gateway", pool.url)
    assert ended.status == 2
    assert hint in ended.err
    assert [seen.verb for seen in pool.seen] == ["GET"]


# -- draining and removing


def test_drain(cli: Cli, pool: Gateway) -> None:
    """It returns at once, with the instance as it is then."""
    pool.on(f"POST /admin/instances/{INSTANCE['id']}/drain", answering({**FULL, "state": "draining"}))
    ended = cli("instances", "drain", "gpu1-", "--gateway", pool.url)
    assert ended.out.splitlines()[1].split()[2] == "draining"


def test_drain_and_wait(cli: Cli, pool: Gateway) -> None:
    """With --wait it asks again until there is no work left."""
    states = ["draining", "draining", "drained"]
    pool.on(
        "GET /admin/instances", lambda exchange: exchange.json({"instances": [{**FULL, "state": states.pop(0)}, OTHER]})
    )
    pool.on(f"POST /admin/instances/{INSTANCE['id']}/drain", answering({**FULL, "state": "draining"}))
    ended = cli("instances", "drain", "gpu1-", "--wait", "--json", "--gateway", pool.url)
    assert ended.json()["state"] == "drained"
    assert not states


def test_drain_and_wait_until_one_of_ours_is_gone(cli: Cli, pool: Gateway) -> None:
    """An instance that the pool owns is gone when it is empty, and that is no error."""
    answers: list[list[dict[str, Any]]] = [[FULL, OTHER], [OTHER]]
    pool.on("GET /admin/instances", lambda exchange: exchange.json({"instances": answers.pop(0)}))
    pool.on(f"POST /admin/instances/{INSTANCE['id']}/drain", answering({**FULL, "state": "draining"}))
    ended = cli("instances", "drain", "gpu1-", "--wait", "--json", "--gateway", pool.url)
    assert (ended.status, ended.json()["state"]) == (0, "gone")


def test_remove(cli: Cli, pool: Gateway) -> None:
    """It waits as long as it is told; the answer goes to programs only."""
    path = f"DELETE /admin/instances/{INSTANCE['id']}?grace_s=5"
    pool.on(path, answering({"removed": INSTANCE["id"]}))
    ended = cli("instances", "remove", "gpu1-", "--grace", "5", "--gateway", pool.url)
    assert (ended.status, ended.out, ended.err) == (0, "", f"removed {INSTANCE['id']}\n")
    ended = cli("instances", "remove", "gpu1-", "--grace", "5", "--json", "--gateway", pool.url)
    assert ended.json() == {"removed": INSTANCE["id"]}


@pytest.mark.parametrize(("answer", "status", "said"), [("y", 0, "removed"), ("n", 1, "it stays"), ("", 1, "it stays")])
def test_a_person_is_asked_before_an_instance_is_removed(
    terminal: Callable[..., Terminal], pool: Gateway, answer: str, status: int, said: str
) -> None:
    """On a terminal, with the name that is meant; nothing is sent unless the answer is yes."""
    pool.on(f"DELETE /admin/instances/{INSTANCE['id']}?grace_s=30", answering({"removed": INSTANCE["id"]}))
    at = terminal("instances", "remove", "gpu1-", "--gateway", pool.url)
    at.read_until(f"Remove {INSTANCE['id']} from the pool")
    at.type(f"{answer}\n")
    at.read_until(said)
    assert at.process.wait() == status
    assert [seen.verb for seen in pool.seen] == (["GET"] if status else ["GET", "DELETE"])


def test_yes_answers_before_it_is_asked(terminal: Callable[..., Terminal], pool: Gateway) -> None:
    """For scripts that run on a terminal."""
    pool.on(f"DELETE /admin/instances/{INSTANCE['id']}?grace_s=30", answering({"removed": INSTANCE["id"]}))
    at = terminal("instances", "remove", "gpu1-", "--yes", "--gateway", pool.url)
    assert at.rest().split() == ["removed", INSTANCE["id"]]
    assert at.process.wait() == 0


def test_show(cli: Cli, pool: Gateway) -> None:
    """All that is known, and the last checks."""
    found = {**FULL, "degraded": ["errors: 12 %"], "health": CHECKS, "details": {}}
    pool.on(f"GET /admin/instances/{INSTANCE['id']}", answering(found))
    lines = cli("instances", "show", "gpu1-", "--gateway", pool.url).out.splitlines()
    assert "endpoint       http://gpu1:11434" in lines
    assert "busy           1/2 of 4" in lines
    assert "degraded       errors: 12 %" in lines
    assert lines[-1].split(maxsplit=2)[1:] == ["failed", "5 s  no answer to a check within 5 s"]
    assert cli("instances", "show", "gpu1-", "--json", "--gateway", pool.url).json() == found


# -- reloading


CHANGES = [
    {
        "path": "routes[0].strategy",
        "what": "changed",
        "before": "random",
        "after": {"name": "ewma"},
        "applied": True,
        "note": "",
    },
    {
        "path": "store",
        "what": "changed",
        "before": None,
        "after": "sqlite",
        "applied": False,
        "note": "needs a restart",
    },
    {"path": "hubs.x", "what": "removed", "before": "x", "after": None, "applied": False, "note": ""},
]


def test_reload_shows_what_changed(cli: Cli, gateway: Gateway) -> None:
    """A line for each change; what was not done is marked."""
    gateway.on("POST /admin/reload", answering({"dry_run": False, "changes": CHANGES}))
    ended = cli("reload", "--gateway", gateway.url)
    assert (ended.status, ended.err) == (0, "done\n")
    assert [line.split() for line in ended.out.splitlines()[1:]] == [
        ["changed", "routes[0].strategy", "random", '{"name":', '"ewma"}', "-"],
        ["changed", "store", "-", "sqlite", "needs", "a", "restart"],
        ["removed", "hubs.x", "x", "-", "not", "applied"],
    ]


def test_reload_without_a_change(cli: Cli, gateway: Gateway) -> None:
    """No table, one remark."""
    gateway.on("POST /admin/reload", answering({"dry_run": False, "changes": []}))
    ended = cli("reload", "--gateway", gateway.url)
    assert (ended.out, ended.err) == ("", "nothing has changed\n")


def test_a_dry_run_says_that_it_is_one(cli: Cli, gateway: Gateway) -> None:
    """And asks for one."""
    answer = {"dry_run": True, "changes": CHANGES}
    gateway.on("POST /admin/reload?dry_run=1", answering(answer))
    assert cli("reload", "--dry-run", "--gateway", gateway.url).err == "nothing of this was done: --dry-run\n"
    assert cli("reload", "--dry-run", "--json", "--gateway", gateway.url).json() == answer


def test_mistakes_are_listed_with_their_places(cli: Cli, gateway: Gateway) -> None:
    """As `config check` lists them, with the status of a wrong configuration."""
    problem = {
        "path": "hubs.lan",
        "message": "unknown key 'tipe'",
        "suggestion": "did you mean 'type'?",
        "place": "g.yaml:3",
    }
    error = {"code": "configuration", "message": "configuration: 1 problem", "problems": [problem]}
    gateway.on("POST /admin/reload", answering({"error": error}, 422))
    ended = cli("reload", "--gateway", gateway.url)
    assert (ended.status, ended.out) == (2, "")
    assert "g.yaml:3: hubs.lan: unknown key 'tipe' (did you mean 'type'?)" in ended.err
