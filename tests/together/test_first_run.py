"""What somebody does in the first five minutes, with the real program and the real embedded LLM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import ollama
import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GLEITZEIT = (sys.executable, "-m", "gleitzeit_core.cli")
HI = [{"role": "user", "content": "hi"}]
SHORT = {"num_predict": 8}
FAKES = Path(__file__).parents[1] / "fake_distributions"


def environment(home: Path, **more: str) -> dict[str, str]:
    """A machine on which nothing is configured, and no Ollama is found."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "GLEITZEIT_CI_RUN") if name in os.environ}
    return {**kept, "HOME": str(home), "OLLAMA_HOST": "127.0.0.1:9", **more}


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The program, its address and what it said until it was ready. Killed at the end if it still runs."""
    command = [*GLEITZEIT, "serve", "--port", "0", *arguments]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        said = ""
        while "/v1/chat/completions" not in said:
            line = process.stdout.readline()
            assert line, f"ended early: {(home / 'log').read_text()}"
            said += line
        yield process, re.search(r"http://127\.0\.0\.1:\d+", said).group(), said  # type: ignore[union-attr]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """One gateway for the whole file, with the embedded LLM behind it."""
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


def fetch(url: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - any JSON
    """The answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data)  # noqa: S310 - our own gateway
    with urllib.request.urlopen(request, timeout=50) as answer:  # noqa: S310
        return json.loads(answer.read())


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the models."""
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [int(pid) for pid in task.read_text().split()]
    assert len(found) == 2
    return found


async def until(condition: Callable[[dict[str, Any]], bool], url: str) -> None:
    """Wait until the gateway's status meets `condition`; the test's own time limit bounds it."""
    while not condition(await asyncio.to_thread(fetch, f"{url}/admin/status")):
        await asyncio.sleep(0.01)


def test_serve_says_what_to_do_next(gateway: tuple[Any, str, str]) -> None:
    """The greeting has the address, the instances, the models, and two commands that work when pasted."""
    _, url, said = gateway
    assert said.count("ready") == 2
    assert "models: smollm2" in said
    commands = re.findall(r"^  (curl .*)$", said, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        limit = '"max_tokens": 8' if "/v1/" in command else '"options": {"num_predict": 8}'
        short = command.replace('"model"', f'{limit}, "model"')
        done = subprocess.run(["/bin/sh", "-c", f"{short} -sSf"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "assistant" in done.stdout
    assert fetch(f"{url}/health/ready")["ready"] == 2


def test_the_official_clients_work_unchanged(gateway: tuple[Any, str, str]) -> None:
    """`ollama` and `openai`, streaming and not."""
    url = gateway[1]
    fixed = {**SHORT, "seed": 1, "temperature": 0}
    with ollama.Client(host=url) as client:
        whole = client.chat("smollm2", HI, options=fixed)
        parts = list(client.chat("smollm2", HI, options=fixed, stream=True))
        assert whole.message.content
        assert parts[-1].done
        assert parts[-1].eval_count == whole.eval_count
        assert len(client.embed("smollm2", "hi").embeddings[0]) == 576
        assert [model.model for model in client.list().models] == ["smollm2"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as other:
        answer = other.chat.completions.create(model="smollm2", messages=HI, max_tokens=8)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
        chunks = list(other.chat.completions.create(model="smollm2", messages=HI, max_tokens=8, stream=True))  # type: ignore[arg-type]
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        assert other.models.list().data[0].id == "smollm2"


def test_anthropics_client_works_unchanged(gateway: tuple[Any, str, str]) -> None:
    """Streaming and not; and what it counts beforehand is what the model then reads."""
    conversation = {"model": "smollm2", "system": "Be brief.", "messages": HI}
    with anthropic.Anthropic(base_url=gateway[1], api_key="none") as client:
        counted = client.messages.count_tokens(**conversation).input_tokens
        message = client.messages.create(**conversation, max_tokens=8)
        assert message.content[0].type == "text"
        assert message.content[0].text
        assert message.usage.input_tokens == counted > 0
        assert 0 < message.usage.output_tokens <= 8
        with client.messages.stream(**conversation, max_tokens=8) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().stop_reason in ("max_tokens", "end_turn")


async def test_eight_requests_at_once_use_both_instances(gateway: tuple[Any, str, str]) -> None:
    """The load is spread."""
    url = gateway[1]
    before = {one["id"]: one["served"] for one in fetch(f"{url}/admin/status")["instances"]}
    async with ollama.AsyncClient(host=url) as client:
        answers = await asyncio.gather(*(client.chat("smollm2", HI, options=SHORT) for _ in range(8)))
    after = {one["id"]: one["served"] for one in fetch(f"{url}/admin/status")["instances"]}
    assert all(answer.done for answer in answers)
    assert sorted(after[name] - before[name] for name in after) == [4, 4]


async def test_no_request_fails_when_an_instance_is_killed_under_load(gateway: tuple[Any, str, str]) -> None:
    """`kill -9` of one of the two: every request is answered, and the instance comes back."""
    process, url, _ = gateway
    victims = children_of(process)
    async with ollama.AsyncClient(host=url) as client:
        # Long enough to be seen all at once.
        story = [{"role": "user", "content": "Tell me a long story about a dragon and a clockmaker."}]
        asked = [asyncio.ensure_future(client.chat("smollm2", story, options={"num_predict": 64})) for _ in range(8)]
        await until(lambda status: sum(one["in_flight"] for one in status["instances"]) == 8, url)
        os.kill(victims[0], signal.SIGKILL)
        answers = await asyncio.gather(*asked)
    assert all(answer.done for answer in answers)
    await until(lambda status: {one["state"] for one in status["instances"]} == {"ready"}, url)


def test_the_program_talks_to_its_gateway(gateway: tuple[Any, str, str], tmp_path: Path) -> None:
    """status, instances, models, run and chat, for people and for programs."""

    def gleitzeit(*arguments: str) -> str:
        command = [*GLEITZEIT, *arguments, "--gateway", gateway[1]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(gleitzeit("status", "--json"))["hubs"]
    assert len(json.loads(gleitzeit("instances", "--json"))["instances"]) == 2
    assert "smollm2" in gleitzeit("models")
    messages = json.dumps(HI)
    answer = gleitzeit(
        "run",
        "llm/chat",
        "--param",
        "model=smollm2",
        "--param",
        f"messages={messages}",
        "--param",
        "options={num_predict: 8}",
    )
    assert "assistant" in answer


def test_sigterm_drains_and_leaves_no_child(tmp_path: Path) -> None:
    """The exit status is 0, and the model's processes are gone."""
    with serving(tmp_path) as (process, _, _):
        models = children_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
        assert [pid for pid in models if Path(f"/proc/{pid}").exists()] == []


def test_a_killed_gateway_leaves_no_child(tmp_path: Path) -> None:
    """Not even SIGKILL of the gateway leaves its model running."""
    with serving(tmp_path) as (process, _, _):
        pids = [os.pidfd_open(pid) for pid in children_of(process)]
        process.kill()
        process.wait()
        for pid in pids:
            # The descriptor is readable once the process has ended; the test's own time limit bounds the wait.
            with os.fdopen(pid):
                assert select.select([pid], [], [], 30)[0]


def test_five_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Each with its place, its path and a suggestion; the exit status is 2."""
    (tmp_path / "gleitzeit.yaml").write_text(
        "hubs:\n"
        "  lan:\n"
        "    type: olama\n"
        "  other:\n"
        "    type: ollama\n"
        "    instances:\n"
        "      - {url: 'http://gpu1:11434', wieght: 2}\n"
        "routes:\n"
        "  - {methods: ['llm/*'], hubs: [lam], strategy: least_loadet}\n"
        "gateway: {prot: 8484}\n"
    )
    done = subprocess.run(
        [*GLEITZEIT, "serve"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "5 problems" in done.stderr
    for path, place, suggestion in (
        ("hubs.lan.type", "gleitzeit.yaml:3", "ollama"),
        ("hubs.other.instances[0].wieght", "gleitzeit.yaml:7", "weight"),
        ("routes[0].hubs[0]", "gleitzeit.yaml:9", "lan"),
        ("routes[0].strategy", "gleitzeit.yaml:9", "least_loaded"),
        ("gateway.prot", "gleitzeit.yaml:10", "port"),
    ):
        line = next(line for line in done.stderr.splitlines() if path in line)
        assert place in line
        assert f"did you mean '{suggestion}'" in line
    assert "Traceback" not in done.stderr


def test_broken_plugins_stand_beside_the_good_ones(tmp_path: Path) -> None:
    """A broken, a duplicate and a misspelt plugin are rows with a reason; the good ones go on."""
    path = os.pathsep.join(str(FAKES / name) for name in ("broken", "same_name", "misspelt", "good"))
    done = subprocess.run(
        [*GLEITZEIT, "plugins", "--json"],
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    rows = listed["plugins"] if isinstance(listed, dict) else listed
    states = {row["status"] for row in rows}
    assert {"ok", "failed", "conflict"} <= states
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    assert {"ollama", "gateway", "llm"} <= {row["name"] for row in rows if row["status"] == "ok"}
