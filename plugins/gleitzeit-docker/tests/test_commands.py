"""The commands, as a person types them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.cli import main
from gleitzeit_docker.owners import HUB, OWNER, PLACE, Owner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from docker.api.client import APIClient

    Run = Callable[..., Awaitable[tuple[int, str, str]]]

IMAGE = "gleitzeit-test-python:latest"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in a directory with a configuration; its status, output and errors."""

    def wait(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "gleitzeit_core.cli", "docker", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
        return done.returncode, done.stdout, done.stderr

    async def run(*words: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(wait, *words)

    return run


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Two hubs, of which one has an image that is not there."""
    path = tmp_path / "gleitzeit.yaml"
    path.write_text(
        f"hubs:\n  box: {{type: docker, image: '{IMAGE}'}}\n"
        "  other: {type: docker, image: 'gleitzeit-there-is-none:1', pull: never}\n"
    )
    return path


@pytest.mark.parametrize("command", ["", "images", "pull", "build", "ps", "prune"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command says what it does, with examples."""
    assert main(["docker", *command.split(), "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


async def test_an_engine_that_does_not_answer_is_named(run: Run) -> None:
    """In one line, without a traceback."""
    for command in ("ps", "pull"):
        status, _, error = await run(command, "--engine", "unix:///no/such.sock")
        assert status == 1
        assert "unix:///no/such.sock cannot be reached" in error
        assert "Traceback" not in error
    status, _, error = await run("ps", "--engine", "http://x")
    assert status == 2
    assert "must begin with" in error


async def test_an_environment_that_names_no_engine_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mistake of the configuration, not of the program."""
    monkeypatch.setenv("DOCKER_HOST", "far:2375")
    for command in ("ps", "images", "pull", "prune"):
        status, _, error = await run(command)
        assert status == 2
        assert "DOCKER_HOST, 'far:2375': must begin with unix://" in error
        assert "unexpected" not in error


async def test_engines_of_one_name_are_still_two(run: Run, tmp_path: Path) -> None:
    """Two hubs may call different engines the same: neither takes the place of the other."""
    (tmp_path / "gleitzeit.yaml").write_text(
        "hubs:\n"
        + "".join(f"  {n}: {{type: docker, engines: [{{url: 'unix:///no/{n}.sock', name: box}}]}}\n" for n in "ab")
    )
    _, out, error = await run("images", "--json")
    assert [(row["engine"], row["hubs"]) for row in json.loads(out)] == [("box", ["a"]), ("unix:///no/b.sock", ["b"])]
    assert "/no/a.sock cannot be reached" in error
    assert "/no/b.sock cannot be reached" in error


async def test_a_password_for_pip_is_not_built_in(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever gets the image could read it in its history."""
    (tmp_path / "needs.txt").write_text("numpy\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:hidden@index.example/simple")
    status, out, error = await run("build", "--requirements", "needs.txt")
    assert status == 2
    assert "PIP_INDEX_URL holds a user or a password" in error
    assert "hidden" not in out + error


@pytest.mark.docker
@pytest.mark.usefixtures("engine", "configuration")
async def test_images_are_shown_with_digests(run: Run) -> None:
    """Those that hubs need, where, and which is missing; that is a status of its own."""
    status, out, error = await run("images")
    assert status == 1
    assert "missing" in out
    assert "sha256:" in out
    assert "gleitzeit docker pull" in error
    _, out, _ = await run("images", "--json")
    assert {row["image"]: row["state"] for row in json.loads(out)} == {
        IMAGE: "ready",
        "gleitzeit-there-is-none:1": "missing",
    }


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
async def test_a_pull_that_fails_says_so(run: Run) -> None:
    """As JSON for programs, and for people."""
    status, out, error = await run("pull", "127.0.0.1:1/none", "--json")
    assert status == 1
    assert "refused" in json.loads(out.splitlines()[-1])["error"]["message"]
    assert "refused" in error


@pytest.mark.docker
async def test_an_image_is_built(run: Run, engine: APIClient) -> None:
    """Here without packages, as nothing can be downloaded; or only its recipe is shown."""
    needs = Path(__file__).with_name("conftest.py")
    status, out, _ = await run("build", "--recipe", "--requirements", str(needs), "--base", "python:3.13-slim")
    assert status == 0
    assert out.startswith("FROM python:3.13-slim\n")
    status, out, error = await run("build", "--base", IMAGE, "--tag", "gleitzeit-command-test:1")
    try:
        assert (status, error) == (0, "")
        assert "Successfully" in out
    finally:
        engine.remove_image("gleitzeit-command-test:1")


@pytest.mark.docker
async def test_what_dead_owners_left_is_shown_and_removed(run: Run, engine: APIClient, state: Path) -> None:
    """First only shown; and what somebody else owns stays."""
    owner = Owner.begin(state / "gleitzeit" / "docker")
    made = []
    for name in ("a" * 32, owner.name):
        labels = {OWNER: name, PLACE: owner.place, HUB: "box"}
        made.append(engine.create_container(IMAGE, "sleep 60", labels=labels)["Id"])
    try:
        _, out, _ = await run("ps", "--json")
        lives = {each["id"]: each["life"] for each in json.loads(out)}
        assert [lives[each[:12]] for each in made] == ["dead", "alive"]
        status, out, _ = await run("prune", "--dry-run")
        assert (status, out.count("would remove")) == (0, 1)
        assert engine.inspect_container(made[0])
        status, out, _ = await run("prune", "--json")
        assert (status, len(json.loads(out)["removed"])) == (0, 1)
        assert [each["Id"] for each in engine.containers(all=True, filters={"label": OWNER})] == made[1:]
    finally:
        for each in engine.containers(all=True, filters={"label": f"{PLACE}={owner.place}"}):
            engine.remove_container(each["Id"], force=True)
        owner.close()
