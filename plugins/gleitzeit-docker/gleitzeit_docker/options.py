"""Options of the hub type `docker`. Without the SDK: a configuration is checked before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gleitzeit_core.errors import nearest
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.supply_options import SupplyOptions
from gleitzeit_docker.address import Address, Tls, checked_url, from_environment, published_by
from gleitzeit_docker.profiles import AGENT_CAPABILITIES, BUILT_IN, Profile, ProfileFields, beside

RUNNER: Final = "python-runner"
# Nobody who holds one of these needs to break out. With the directories above them they are never mounted.
_SOCKETS: Final = (
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    f"/run/user/{os.getuid()}/docker.sock",
    f"/run/user/{os.getuid()}/podman/podman.sock",
)
# Through the roots and open files of processes it leads to all of them again.
_PROCESSES: Final = PurePosixPath("/proc")


class EngineTls(BaseModel):
    """How a connection to an engine is encrypted. Paths are relative to the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path | None = Field(default=None, description="Certificates to trust instead of the system's.")
    cert: Path | None = Field(default=None, description="Our own certificate.")
    key: Path | None = Field(default=None, description="Its key; left out: in the same file.")
    verify: bool = Field(default=True, description="False accepts any certificate: for tests only.")

    @field_validator("ca", "cert", "key")
    @classmethod
    def _found(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        full = None if path is None else beside(path, info)
        if full is not None and not full.is_file():
            raise ValueError(f"no such file: {full}")
        return full

    def plain(self) -> Tls:
        """As the rest of the plugin has it."""
        return Tls(str(self.ca or ""), str(self.cert or ""), str(self.key or ""), self.verify)


class EngineOptions(BaseModel):
    """One engine. In a list of them, its URL alone will do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        description="As in DOCKER_HOST: unix:///var/run/docker.sock, tcp://host:2376, ssh://user@host.",
        examples=["unix:///var/run/docker.sock"],
    )
    name: str = Field(default="", description="For people; the URL when empty.")
    tls: EngineTls | None = Field(default=None, description="For tcp; left out: not encrypted.")
    published_at: str = Field(
        default="",
        pattern=r"^[\w.:-]*$",
        description="The host where ports of its containers are reached; left out: 127.0.0.1 for unix.",
    )

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        return checked_url(url)

    @model_validator(mode="after")
    def _tls_is_for_tcp(self) -> Self:
        if self.tls is not None and not self.url.startswith("tcp:"):
            raise ValueError("'tls' is for URLs that begin with tcp://")
        return self

    def address(self) -> Address:
        """As the rest of the plugin has it."""
        tls = None if self.tls is None else self.tls.plain()
        at = f"[{self.published_at}]" if ":" in self.published_at else self.published_at
        return Address(self.url, tls, at or published_by(self.url))


def _written_out(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


EngineEntry = Annotated[EngineOptions, BeforeValidator(_written_out, json_schema_input_type=EngineOptions | str)]


class VolumeOptions(BaseModel):
    """A directory or file of the engine's machine that containers see."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="Its path there; must be in or below one of `allowed_volumes`.")
    target: str = Field(description="Its path in the container.")
    read_only: bool = Field(default=True, description="False lets payloads write to it, of all tenants.")

    @field_validator("source", "target")
    @classmethod
    def _plain(cls, path: str) -> str:
        return _plain_path(path)


class NamedProfile(ProfileFields):
    """A profile of the configuration's own."""

    base: Literal["trusted", "sandboxed", "untrusted"] = Field(default="sandboxed", description="What it begins with.")


class DockerOptions(ProfileFields, SupplyOptions, HubOptions):
    """Options of the hub type `docker`. Without any, it has a pool of Python runners on this machine's engine."""

    model_config = ConfigDict(hide_input_in_errors=True)

    engines: list[EngineEntry] = Field(
        default=[], description="Where containers run; left out: DOCKER_HOST, or else the engine of this machine."
    )
    profile: str = Field(default="sandboxed", description="trusted, sandboxed, untrusted, or one of `profiles`.")
    profiles: dict[str, NamedProfile] = Field(default={}, description="Profiles of your own, by name.")
    pull: Literal["missing", "always", "never"] = Field(
        default="missing", description="When to pull the image, in the background; no request waits for it."
    )
    pull_stall_timeout_s: float = Field(
        default=300.0, gt=0, allow_inf_nan=False, description="A pull has failed when nothing is heard for so long."
    )
    api: str = Field(
        default=RUNNER, min_length=1, description="What the containers speak: python-runner, ollama, openai."
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Where they speak it; it is published on a free port of the engine's."
    )
    health_path: str = Field(
        default="/", pattern="^/[!-~]*$", description="They are ready when a GET of this is answered with 200."
    )
    models: list[str] = Field(default=[], description="The models they have, for llm.")
    command: list[str] = Field(default=[], description="What they run; left out: what the image says.")
    environment: dict[str, SecretStr] = Field(default={}, description="Variables of the container.")
    python: str = Field(default="python3", min_length=1, description="The interpreter in the image, for python-runner.")
    preload: list[str] = Field(
        default=[], description="Modules that a python-runner imports once for all forked interpreters, such as numpy."
    )
    volumes: list[VolumeOptions] = Field(default=[], description="What of the engine's machine they see.")
    allowed_volumes: list[str] = Field(default=[], description="Directories that volumes may be in or below.")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Capacity relative to other instances.")
    max_concurrent: int = Field(
        default=1, ge=1, description="Requests sent to one at once; a python-runner has one user at a time."
    )
    tags: list[str] = Field(default=[], description="Labels that requests can ask for.")
    call_timeout_s: float = Field(
        default=15.0, gt=0, allow_inf_nan=False, description="An engine that is silent for so long is down."
    )
    threads: int = Field(default=4, ge=1, le=64, description="Calls made at once to each engine.")

    @field_validator("environment")
    @classmethod
    def _possible(cls, environment: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if any(
            not name or "=" in name or "\0" in name + value.get_secret_value() for name, value in environment.items()
        ):
            raise ValueError("holds a name or a value that no environment can have")
        return environment

    @field_validator("allowed_volumes")
    @classmethod
    def _plain(cls, paths: list[str]) -> list[str]:
        return [_plain_path(path) for path in paths]

    @model_validator(mode="after")
    def _engines_can_be(self) -> Self:
        """Also the one of the environment, of which nothing else says whether it can be."""
        self.engines_used()
        return self

    @model_validator(mode="after")
    def _known_profile(self) -> Self:
        known = [*BUILT_IN, *self.profiles]
        taken = sorted(BUILT_IN.keys() & self.profiles.keys())
        if taken:
            raise ValueError(f"'profiles' must not redefine {', '.join(taken)}: give yours another name, and a 'base'")
        if self.profile not in known:
            hint = nearest(self.profile, known)
            raise ValueError(
                f"unknown profile {self.profile!r}; known: {', '.join(known)}{f'; {hint}' if hint else ''}"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_api(self) -> Self:
        if self.api == RUNNER:
            if self.port is not None or self.models or self.command or self.max_concurrent > 1:
                raise ValueError("a python-runner has no port, models or command of its own, and one user at a time")
            self._check_capabilities()
            return self
        if self.port is None:
            raise ValueError(f"api {self.api!r} needs 'port': where the containers speak it")
        if self.profile_used().network == "none":
            raise ValueError("a port cannot be reached where the profile has no network: set network: bridge")
        deaf = [address.url for _, address in self.engines_used() if not address.published_at]
        if deaf:
            raise ValueError(f"{deaf[0]} needs 'published_at': where the ports of its containers are reached")
        return self

    def _check_capabilities(self) -> None:
        profile = self.profile_used()
        missing = [name for name in AGENT_CAPABILITIES if name not in profile.capabilities]
        if missing and profile.user.partition(":")[0] in ("", "0", "root"):
            raise ValueError(f"a python-runner that is root needs the capabilities {', '.join(missing)}; or set 'user'")

    @model_validator(mode="after")
    def _safe_volumes(self) -> Self:
        sockets = {*_SOCKETS, *(address.socket for _, address in self.engines_used())} - {""}
        writable = [volume.source for volume in self.volumes if not volume.read_only]
        for volume in self.volumes:
            source = _real(volume.source)
            if _holds(_PROCESSES, source) or any(_holds(source, _real(socket)) for socket in sockets):
                raise ValueError(f"{volume.source} is or holds an engine's socket: a container never gets that")
            if not any(_holds(_real(allowed), source) for allowed in self.allowed_volumes):
                raise ValueError(f"{volume.source} is not in or below any of 'allowed_volumes'")
            above = [path for path in writable if _real(path) in source.parents]
            if above:
                # The next container would be given whatever that link leads to.
                raise ValueError(f"{volume.source} is below {above[0]}, where payloads could put a link in its place")
        return self

    @model_validator(mode="after")
    def _engines_once(self) -> Self:
        for seen in ([engine.url for engine in self.engines], [engine.name or engine.url for engine in self.engines]):
            twice = sorted({value for value in seen if seen.count(value) > 1})
            if twice:
                raise ValueError(f"'engines' has {twice[0]} twice")
        return self

    def base_used(self) -> str:
        """The profile of the three that are there that all begins with."""
        named = self.profiles.get(self.profile)
        return self.profile if named is None else named.base

    def profile_used(self) -> Profile:
        """The profile, with what the configuration changes of it."""
        named, base = self.profiles.get(self.profile), BUILT_IN[self.base_used()]
        return (base if named is None else base.over(named)).over(self)

    def engines_used(self) -> list[tuple[str, Address]]:
        """Where containers run: names and addresses.

        Raises:
            ValueError: None are given, and ``DOCKER_HOST`` is no engine's URL.
        """
        if not self.engines:
            address = from_environment()
            return [(address.url, address)]
        return [(engine.name or engine.url, engine.address()) for engine in self.engines]


def _plain_path(path: str) -> str:
    if not re.fullmatch(r"/[^\0]*", path) or ".." in path.split("/"):
        raise ValueError(f"{path!r} must be an absolute path without '..'")
    return str(PurePosixPath(path))


def _real(path: str) -> PurePosixPath:
    """Where a path leads on this machine, which is the engine's as a rule; elsewhere it is the path itself."""
    real = os.path.realpath(path)
    # The usual link, also where this machine has neither.
    is_run = real.startswith("/var/run/") or real == "/var/run"
    return PurePosixPath(f"/run{real.removeprefix('/var/run')}" if is_run else real)


def _holds(above: PurePosixPath, path: PurePosixPath) -> bool:
    return path == above or above in path.parents


def environment_of(options: DockerOptions) -> dict[str, str]:
    """The variables, secrets in the clear."""
    return {name: value.get_secret_value() for name, value in options.environment.items()}
