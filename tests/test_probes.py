"""Probes, against real sockets and processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from gleitzeit_core.errors import ConfigurationError, FailureKind, InstanceFailure
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.probes import CommandProbe, HttpProbe, ProbeOptions, TcpProbe
from gleitzeit_core.resources import HttpChannel
from gleitzeit_core.testing.machine import make_instance
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.todo import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from gleitzeit_core.resources import ResourceInstance

PROBE: TypeAdapter[HttpProbe | TcpProbe | CommandProbe] = TypeAdapter(ProbeOptions)
# An address that nobody listens on.
NOBODY = "127.0.0.1:9"
# With a hub type that has the options of all hubs.
PLUGIN = """
from gleitzeit_core.hookspecs import HubType, hookimpl

@hookimpl
def gleitzeit_register_hubs():
    hub = "gleitzeit_core.testing.scripted:ScriptedHub"
    return [HubType(name="server", target=hub, options="gleitzeit_core.hub:HubOptions", summary="Servers.")]
"""


class Server:
    """Answers every request with the same bytes, and remembers what it was asked."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.answer = answer
        self.asked: list[list[str]] = []
        self.gone = asyncio.Event()
        self.url = ""
        self.open: dict[asyncio.StreamWriter, asyncio.Event] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.open[writer] = asyncio.Event()
        with contextlib.suppress(ConnectionError):
            head = await reader.read(65536)
            self.asked.append(head.decode("latin-1").strip().split("\r\n"))
            writer.write(self.answer)
            if self.answer:
                await writer.drain()
            else:
                await reader.read()
        self.gone.set()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.open[writer].set()


@contextlib.asynccontextmanager
async def serving(
    answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server on loopback."""
    made = Server(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        scheme = "https" if tls else "http"
        made.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made
    async with asyncio.timeout(PATIENCE_S):
        for closed in made.open.values():
            await closed.wait()


def at(url: str, **channel: Any) -> ResourceInstance:  # noqa: ANN401 - fields of the channel
    """An instance reached by HTTP."""
    return make_instance(url, offers=(("web", HttpChannel(url, **channel)),), probe=True)


async def verdict(options: dict[str, Any], instance: ResourceInstance) -> InstanceFailure | None:
    """What a probe says: None for well."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            await PROBE.validate_python(options).examine(instance)
        except InstanceFailure as failure:
            return failure
    return None


async def failure(options: dict[str, Any], instance: ResourceInstance) -> tuple[FailureKind, str]:
    """What is wrong."""
    found = await verdict(options, instance)
    assert found is not None
    return found.kind, found.message


# -- http -------------------------------------------------------------------------------------------------------------------


async def test_an_answer_is_well() -> None:
    """To a GET of the path below the instance's URL, sent as its requests are."""
    async with serving() as server:
        instance = at(f"{server.url}/prefix", headers={"Authorization": "Bearer secret"})
        assert await verdict({"type": "http", "path": "/health?quick=1"}, instance) is None
    first, *headers = server.asked[0]
    assert first == "GET /prefix/health?quick=1 HTTP/1.1"
    assert f"Host: {server.url.removeprefix('http://')}" in headers
    assert "Authorization: Bearer secret" in headers
    assert "Connection: close" in headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, FailureKind.SERVER_ERROR),
        (302, FailureKind.SERVER_ERROR),
        (204, FailureKind.SERVER_ERROR),
        (401, FailureKind.UNAUTHORIZED),
        (403, FailureKind.UNAUTHORIZED),
    ],
)
async def test_another_status_is_not(status: int, kind: FailureKind) -> None:
    """Unless it was named as a good one."""
    async with serving(f"HTTP/1.1 {status} Some\r\n\r\n".encode()) as server:
        assert await failure({"type": "http"}, at(server.url)) == (kind, f"/ answers {status}")
        assert await verdict({"type": "http", "status": [200, status]}, at(server.url)) is None


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 fine\r\n", b"\n"])
async def test_what_is_no_http_is_not(answer: bytes) -> None:
    """Whatever else listens there."""
    async with serving(answer) as server:
        assert await failure({"type": "http"}, at(server.url)) == (
            FailureKind.SERVER_ERROR,
            "/ is not answered as HTTP has it",
        )


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200", b"x" * 200_000])
async def test_an_answer_that_breaks_off_or_never_ends_a_line_is_not(answer: bytes) -> None:
    """It is not waited for, nor held in memory."""
    async with serving(answer) as server:
        kind, message = await failure({"type": "http"}, at(server.url))
        assert kind is FailureKind.LOST
        assert "gives no answer" in message


@pytest.mark.parametrize("options", [{"type": "http"}, {"type": "tcp"}])
async def test_a_refused_connection_is_down(options: dict[str, Any]) -> None:
    """With the address, without more of the URL."""
    kind, message = await failure(options, at(f"http://user:secret@{NOBODY}/path"))
    assert kind is FailureKind.REFUSED
    assert message.startswith(f"no connection to {NOBODY}")
    assert "secret" not in message


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_tls_is_that_of_the_channel(kind: str, certificate: Path) -> None:
    """A certificate that it trusts is well; one it does not is not; nor is a server that speaks none."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    ours = ssl.create_default_context(cafile=certificate)
    async with serving(tls=theirs) as server, serving() as plain:
        assert await verdict({"type": kind}, at(server.url, tls=ours)) is None
        untrusted = await failure({"type": kind}, at(server.url))
        assert untrusted[0] is FailureKind.REFUSED
        assert "certificate verify failed" in untrusted[1]
        wrong = await failure({"type": kind}, at(plain.url.replace("http:", "https:"), tls=ours))
        assert wrong[0] is FailureKind.REFUSED


async def test_another_port_can_be_named() -> None:
    """For a server whose health is served beside it."""
    async with serving() as server:
        port = int(server.url.rsplit(":", 1)[1])
        for kind in ("http", "tcp"):
            assert await verdict({"type": kind, "port": port}, at(f"http://{NOBODY}")) is None


async def test_a_probe_that_is_given_up_leaves_no_connection() -> None:
    """The other side sees that it is gone."""
    async with serving(b"") as server:
        task = asyncio.create_task(verdict({"type": "http"}, at(server.url)))
        while not server.asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(PATIENCE_S):
            await server.gone.wait()


# -- tcp --------------------------------------------------------------------------------------------------------------------


async def test_a_connection_is_enough_for_tcp() -> None:
    """By the endpoint, where the instance is not reached by HTTP; with or without a scheme."""
    async with serving() as server:
        address = server.url.removeprefix("http://")
        for endpoint in (address, f"tcp://{address}"):
            assert await verdict({"type": "tcp"}, make_instance(endpoint)) is None
    assert await failure({"type": "tcp"}, make_instance(NOBODY)) is not None


@pytest.mark.parametrize("endpoint", ["my-function", "box-1", "http://[::1", "host:99999", "tcp://host", ""])
async def test_what_has_no_address_cannot_be_probed(endpoint: str) -> None:
    """That is said, not raised."""
    for kind in ("tcp", "http"):
        found = await failure({"type": kind}, make_instance(endpoint))
        assert found == (FailureKind.SERVER_ERROR, "cannot be probed: its endpoint has no host and port")


# -- command ----------------------------------------------------------------------------------------------------------------


def python(code: str, *arguments: str) -> dict[str, Any]:
    """A command probe."""
    return {"type": "command", "command": [sys.executable, "-c", code, *arguments]}


async def test_a_command_that_ends_with_0_is_well() -> None:
    """It is told the endpoint; its arguments are passed as they are, to no shell."""
    code = "import os, sys; sys.exit([os.environ['GLEITZEIT_ENDPOINT'], *sys.argv[1:]] != ['gpu 1', '$HOME; false'])"
    assert await verdict(python(code, "$HOME; false"), make_instance("gpu 1")) is None


async def test_a_command_that_ends_otherwise_is_not() -> None:
    """Its status is told; whatever it writes is thrown away."""
    code = "import sys; print('x' * 10**6); print('y' * 10**6, file=sys.stderr); sys.exit(3)"
    assert await failure(python(code), make_instance("a")) == (
        FailureKind.SERVER_ERROR,
        f"{sys.executable!r} ended with 3",
    )
    killed = await failure(python("import os; os.kill(os.getpid(), 9)"), make_instance("a"))
    assert killed[1].endswith("ended with -9")


@pytest.mark.parametrize("command", ["/no/such/program", "with a \0 in it"])
async def test_a_command_that_cannot_be_run_is_not(command: str) -> None:
    """With the reason."""
    kind, message = await failure({"type": "command", "command": [command]}, make_instance("a"))
    assert kind is FailureKind.SERVER_ERROR
    assert message.startswith("cannot run ")


async def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Its child too, which holds a pipe of ours open as long as it lives."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    child = "import sys, time; f = open(sys.argv[1], 'w'); f.write('up'); f.flush(); time.sleep(600)"
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    probing = asyncio.create_task(verdict(python(code, child, str(fifo)), make_instance("a")))
    with await asyncio.to_thread(fifo.open, "rb", buffering=0) as alive:
        assert await asyncio.to_thread(alive.read, 2) == b"up"
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing
        async with asyncio.timeout(PATIENCE_S):
            assert await asyncio.to_thread(alive.read) == b"", "the end of the pipe: nobody holds it any more"


# -- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"type": "udp"},
        {"type": "tcp", "path": "/"},
        {"type": "tcp", "port": 0},
        {"type": "http", "path": "health"},
        {"type": "http", "path": "/a b"},
        {"type": "http", "path": "/\r\nX: y"},
        {"type": "http", "status": []},
        {"type": "http", "port": 65536},
        {"type": "command"},
        {"type": "command", "command": []},
        {"type": "command", "command": "true"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """When the configuration is read, not when an instance is checked."""
    with pytest.raises(ValidationError):
        HubOptions.model_validate({"health_probe": wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{}", "health_probe: needs 'type'"),
        ("{type: udp}", "health_probe: 'type' can be 'http', 'tcp', 'command'"),
        ("{type: http, path: health}", "health_probe.path: must begin with '/' and be written as in a URL"),
        ("{type: tcp, prot: 5}", r"health_probe.prot: unknown key \(did you mean 'port'\?\)"),
    ],
)
def test_what_is_wrong_is_said_as_in_the_rest_of_a_configuration(tmp_path: Path, wrong: str, message: str) -> None:
    """In a sentence, with its place."""
    (tmp_path / "servers.py").write_text(PLUGIN)
    file = tmp_path / "gleitzeit.yaml"
    file.write_text(f"plugins: {{files: [servers.py]}}\nhubs: {{lan: {{type: server, health_probe: {wrong}}}}}\n")
    with pytest.raises(ConfigurationError, match=f"gleitzeit.yaml:2: hubs.lan.{message}"):
        ResourceManager.from_config(file)


def test_there_is_no_probe_unless_one_is_named() -> None:
    """The hub's own check is enough."""
    assert HubOptions().health_probe is None
    probe = HubOptions.model_validate({"health_probe": {"type": "http"}}).health_probe
    assert probe == HttpProbe(type="http", path="/", status=(200,))


# -- in a hub ---------------------------------------------------------------------------------------------------------------


class Probed(ScriptedHub):
    """Checks find a capability, or fail."""

    def __init__(self, **probe: Any) -> None:  # noqa: ANN401 - options
        super().__init__()
        self.options = HubOptions.model_validate({"health_probe": probe})

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """As told, with something found."""
        found = await super().check(instance)
        return found.changed(capabilities=frozenset({"model:x"}))


@pytest.fixture
def probed() -> Callable[[str, str], Awaitable[ResourceInstance]]:
    """Examine an instance at an address in a hub with a TCP probe whose own check fails as said, or not."""

    async def examine(address: str, fails: str) -> ResourceInstance:
        hub = Probed(type="tcp")
        hub.checks[address] = InstanceFailure(FailureKind(fails), "the check said so") if fails else None
        async with asyncio.timeout(PATIENCE_S):
            return await hub.examine(hub.make(address))

    return examine


async def test_a_probe_alone_says_whether_an_instance_is_well(
    probed: Callable[[str, str], Awaitable[ResourceInstance]],
) -> None:
    """The hub's check only adds what it finds, when it can."""
    async with serving() as server:
        address = server.url.removeprefix("http://")
        assert (await probed(address, "")).capabilities == {"model:x"}
        for kind in ("refused", "unauthorized", "server_error"):
            assert (await probed(address, kind)).capabilities == frozenset()
    with pytest.raises(InstanceFailure, match="no connection to"):
        await probed(NOBODY, "")


async def test_without_a_probe_the_check_says_so() -> None:
    """As every hub does by itself."""
    hub = ScriptedHub()
    hub.checks["a"] = InstanceFailure(FailureKind.SERVER_ERROR, "broken")
    with pytest.raises(InstanceFailure, match="broken"):
        await hub.examine(hub.make("a"))
    well = hub.make("b")
    assert await hub.examine(well) is well


@pytest.mark.parametrize("trouble", ["hangs", "breaks"])
async def test_a_check_that_never_answers_does_not_matter_beside_a_probe(trouble: str) -> None:
    """Nor one that fails in any other way: that is just what the probe is for."""

    class Bad(Probed):
        async def check(self, instance: ResourceInstance) -> ResourceInstance:
            if trouble == "breaks":
                raise LookupError(instance.id)
            await asyncio.Event().wait()
            return instance

    async with serving() as server:
        hub = Bad(type="tcp")
        hub.options = HubOptions.model_validate({"health_probe": {"type": "tcp"}, "check_timeout_s": 1.0})
        instance = hub.make(server.url.removeprefix("http://"))
        async with asyncio.timeout(hub.options.check_timeout_s):
            assert await hub.examine(instance) is instance
