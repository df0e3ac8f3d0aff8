"""One container: how it is described to an engine, and what is known of it while it lives."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.resources import ChannelKind
from gleitzeit_docker.options import RUNNER, DockerOptions, environment_of
from gleitzeit_docker.owners import HUB
from gleitzeit_docker.profiles import TMP
from gleitzeit_python.runner import AgentOptions, command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_docker.attach import AttachedStream
    from gleitzeit_docker.engine import Engine
    from gleitzeit_docker.profiles import Profile

_HOST_NAME: Final = "gleitzeit"
_ROOT: Final = "0:0"
# The user and the group that have nothing, in every image.
_PAYLOADS: Final = (65534, 65534)
# What an engine says of itself, and what it cannot limit where that is false.
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "CpuCfsQuota": "processor time",
    "PidsLimit": "processes",
}
# Servers may be asked by a person what went wrong: docker logs NAME.
_LOGS: Final = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}


@dataclass(slots=True, eq=False)
class Container:
    """A container of ours, from before it is made until it is gone.

    Args:
        name: As the engine has it, and nobody else.
        engine: Where it is.
        id: The engine's own; empty while it is being made.
        stream: Its standard streams, of a runner.
        ready: Whether it is in use: one that is gone then is missed.
        leaving: Whether we are removing it.
        ended: Set with the reason when it has ended otherwise.
    """

    name: str
    engine: Engine
    id: str = ""
    stream: AttachedStream | None = None
    ready: bool = False
    leaving: bool = False
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __repr__(self) -> str:
        """Name, engine and state."""
        state = "leaving" if self.leaving else "ready" if self.ready else "coming"
        return f"<Container {self.name} on {self.engine.name}, {state}>"


class NotYet:
    """The channel of a runner that is not there yet."""

    kind = ChannelKind.STREAM
    closed = True

    async def send(self, data: bytes) -> None:  # noqa: ARG002 - as every channel
        """Nothing can be sent.

        Raises:
            InstanceFailure: Always.
        """
        raise InstanceFailure(FailureKind.LOST, "the container is not there yet", started=False)

    async def receive(self, max_bytes: int = 65536) -> bytes:  # noqa: ARG002 - the same
        """Nothing comes."""
        return b""

    async def aclose(self) -> None:
        """Nothing is open."""


def container_name(hub: str, owner: str, number: int) -> str:
    """A name that no other container of any process has."""
    plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", hub)
    return f"gleitzeit-{plain}-{owner[-12:]}-{number}"


def config(options: DockerOptions, labels: Mapping[str, str], *, hub: str, here: bool = True) -> dict[str, Any]:
    """What an engine is told when a container is made. Reads the seccomp file. Holds the environment's secrets.

    Args:
        options: The hub's.
        labels: Of its owner.
        hub: Its name.
        here: Whether the engine is on this machine, so that ports need be reached from nowhere else.
    """
    profile = options.profile_used()
    host = profile.host_config()
    host["Mounts"] = [
        {"Type": "bind", "Source": volume.source, "Target": volume.target, "ReadOnly": volume.read_only}
        for volume in options.volumes
    ]
    common = {
        "Image": profile.image,
        "Hostname": _HOST_NAME,
        "Labels": {**labels, HUB: hub},
        "NetworkDisabled": profile.network == "none",
        "StopTimeout": 0,
        "HostConfig": host,
    }
    return {**common, **(_runner(options) if options.api == RUNNER else _server(options, host, here=here))}


def _runner(options: DockerOptions) -> dict[str, Any]:
    """Its streams are the channel: when the one attachment that it lets itself be read by ends, so does it."""
    streams = {f"Attach{name}": True for name in ("Stdin", "Stdout", "Stderr")}
    return {
        "User": options.profile_used().user or _ROOT,
        "Entrypoint": [],
        "Cmd": command(options.python),
        # What the image would have run beside payloads looks like something that one has left.
        "Healthcheck": {"Test": ["NONE"]},
        "WorkingDir": "/",
        "OpenStdin": True,
        "StdinOnce": True,
        "Tty": False,
        **streams,
    }


def _server(options: DockerOptions, host: dict[str, Any], *, here: bool) -> dict[str, Any]:
    port, user = f"{options.port}/tcp", options.profile_used().user
    # One that has ended is removed by us, when it was asked what it said last.
    host["AutoRemove"], host["LogConfig"] = False, _LOGS
    host["PortBindings"] = {port: [{"HostIp": "127.0.0.1" if here else "", "HostPort": ""}]}
    own: dict[str, Any] = {"Cmd": options.command} if options.command else {}
    if user:
        own["User"] = user
    environment = [f"{name}={value}" for name, value in environment_of(options).items()]
    return {"ExposedPorts": {port: {}}, "Env": environment, **own}


def not_kept(profile: Profile, info: Mapping[str, Any]) -> list[str]:
    """What of `profile` an engine does not keep, from what it says of itself."""
    found = [what for key, what in _LIMITS.items() if info.get(key) is False]
    security = info.get("SecurityOptions") or ()
    if profile.seccomp != "unconfined" and not any("name=seccomp" in str(each) for each in security):
        found.append("system calls (seccomp)")
    return found


def agent_options(options: DockerOptions, hub: str) -> AgentOptions:
    """What a runner is told through its channel; the environment is not to be seen by whoever inspects a container."""
    profile = options.profile_used()
    user = profile.user.partition(":")[0]
    return AgentOptions(
        # Who bears another name may be root all the same: the agent knows.
        user=None if user.isdecimal() and int(user) else _PAYLOADS,
        environment=environment_of(options),
        places=tuple(path for path in profile.tmpfs if path != TMP),
        preload=tuple(options.preload),
        place=f"hubs.{hub}.",
    )


def published_port(found: Mapping[str, Any], port: int) -> int:
    """The port of the engine's machine that leads to a container's, from what the engine says of it.

    Raises:
        LookupError: There is none.
    """
    bindings = found["NetworkSettings"]["Ports"].get(f"{port}/tcp") or []
    return int(bindings[0]["HostPort"])
