"""Profiles: what a container may do and use, by name, and how that is said to an engine.

A profile is built from the outside in: one of the three here, then a named one of the configuration, then what the hub
itself says. Each sets single fields; the rest stays.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS: Final = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmg]?)(?:i?b)?", re.IGNORECASE)
_MB: Final = 1024**2
# More than any machine has, and no more than an engine can read.
_SIZE_MOST: Final = 2**60
# An engine refuses less.
_MEMORY_LEAST: Final = 6 * _MB
_CPU_PERIOD_US: Final = 100_000

TMP: Final = "/tmp"  # noqa: S108 - the container's own
AGENT_CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
"""What the runner needs to become another user for each payload, to give that user files, to kill all its processes and
to remove all its files. Payloads have none of them."""


def size_bytes(value: object) -> object:
    """A size as people write it, ``512m`` or ``1.5g``, in bytes; units are powers of 1024.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("a size is a number of bytes, or with a unit: 512m, 1.5g")
    return int(Decimal(match[1]) * _UNITS[match[2].lower()])


Size = Annotated[int, BeforeValidator(size_bytes, json_schema_input_type=int | str), Field(ge=1, le=_SIZE_MOST)]


def beside(path: Path, info: ValidationInfo) -> Path:
    """A path that is relative to the configuration."""
    base_dir: Path = (info.context or {}).get("base_dir") or Path()
    return (base_dir / path.expanduser()).absolute()


class ProfileFields(BaseModel):
    """What a profile sets. What is left out is as in the profile below it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = Field(default=None, min_length=1, description="What containers are made of.")
    memory: Size | None = Field(default=None, ge=_MEMORY_LEAST, description="Such as 512m; there is no swap besides.")
    cpus: float | None = Field(default=None, gt=0, le=1024, description="Of processor time, such as 0.5.")
    pids: int | None = Field(default=None, ge=4, description="Processes and threads at once, the runner's included.")
    open_files: int | None = Field(default=None, ge=32, description="Open files of one process.")
    tmpfs: dict[str, Size] | None = Field(
        default=None,
        description="Directories in memory and their sizes, besides /tmp; what is in them counts as memory.",
    )
    shm: Size | None = Field(default=None, description="The size of /dev/shm.")
    read_only: bool | None = Field(default=None, description="Whether only what is in `tmpfs` can be written.")
    network: str | None = Field(default=None, min_length=1, description="none, bridge, or the name of a network.")
    user: str | None = Field(
        default=None, min_length=1, description="Whom the container's first process runs as; payloads are never root."
    )
    capabilities: tuple[str, ...] | None = Field(default=None, description="All others are dropped.")
    no_new_privileges: bool | None = Field(default=None, description="Whether set-user-id programs have no effect.")
    seccomp: str | None = Field(
        default=None, min_length=1, description="default, unconfined, or a file with a profile in Docker's format."
    )
    runtime: str | None = Field(default=None, min_length=1, description="Such as runsc; left out: the engine's own.")
    single_use: bool | None = Field(default=None, description="Whether each use gets a container of its own.")

    @field_validator("network")
    @classmethod
    def _a_network_of_its_own(cls, network: str | None) -> str | None:
        if network is not None and (network == "host" or network.startswith("container:")):
            raise ValueError("a container shares no network with the host or with another: none, bridge, or a name")
        return network

    @field_validator("capabilities")
    @classmethod
    def _single_capabilities(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        plain = None if names is None else tuple(name.upper().removeprefix("CAP_") for name in names)
        if plain is not None and "ALL" in plain:
            raise ValueError("names those that are needed, never ALL")
        return plain

    @field_validator("seccomp")
    @classmethod
    def _a_profile(cls, seccomp: str | None, info: ValidationInfo) -> str | None:
        if seccomp in (None, "default", "unconfined"):
            return seccomp
        full = beside(Path(seccomp), info)
        try:
            json.loads(full.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{full} is no seccomp profile: {error}") from None
        return str(full)

    @field_validator("tmpfs")
    @classmethod
    def _absolute(cls, tmpfs: dict[str, int] | None) -> dict[str, int] | None:
        for path in tmpfs or {}:
            if not re.fullmatch(r"/[^:,\0]+", path) or ".." in path.split("/"):
                raise ValueError(f"{path!r} is no directory that can be mounted")
        return None if tmpfs is None else {str(PurePosixPath(path)): size for path, size in tmpfs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile with all its fields; see `ProfileFields`."""

    image: str = "python:3.12-slim"
    memory: int = 512 * _MB
    cpus: float = 1.0
    pids: int = 128
    open_files: int = 1024
    tmpfs: Mapping[str, int] = field(default_factory=lambda: {TMP: 64 * _MB})
    shm: int = 16 * _MB
    read_only: bool = True
    network: str = "none"
    # Empty: root for a runner, which makes payloads somebody else; as the image says for a server.
    user: str = ""
    capabilities: tuple[str, ...] = AGENT_CAPABILITIES
    no_new_privileges: bool = True
    seccomp: str = "default"
    runtime: str = ""
    single_use: bool = False

    def over(self, given: ProfileFields) -> Profile:
        """This one with what `given` sets. Directories in memory are added to those there are: runners need /tmp."""
        set_there = {each.name: getattr(given, each.name) for each in fields(self)}
        set_there["tmpfs"] = {**self.tmpfs, **(given.tmpfs or {})}
        return replace(self, **{name: value for name, value in set_there.items() if value is not None})

    def host_config(self) -> dict[str, Any]:
        """What limits a container, as the engine's API has it. Reads the seccomp file."""
        security = ["no-new-privileges"] if self.no_new_privileges else []
        if self.seccomp == "unconfined":
            security.append("seccomp=unconfined")
        elif self.seccomp != "default":
            security.append(f"seccomp={Path(self.seccomp).read_text(encoding='utf-8')}")
        return {
            "AutoRemove": True,
            "CapAdd": list(self.capabilities),
            "CapDrop": ["ALL"],
            "CpuPeriod": _CPU_PERIOD_US,
            "CpuQuota": max(int(self.cpus * _CPU_PERIOD_US), 1000),
            "IpcMode": "private",
            # What it writes comes to us, and fills no disk of the host.
            "LogConfig": {"Type": "none"},
            "Memory": self.memory,
            "MemorySwap": self.memory,
            "NetworkMode": self.network,
            "PidsLimit": self.pids,
            "Privileged": False,
            "ReadonlyRootfs": self.read_only,
            "SecurityOpt": security,
            "ShmSize": self.shm,
            "Tmpfs": {path: f"rw,nosuid,nodev,mode=1777,size={size}" for path, size in self.tmpfs.items()},
            "Ulimits": [
                {"Name": "nofile", "Soft": self.open_files, "Hard": self.open_files},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            **({"Runtime": self.runtime} if self.runtime else {}),
        }


SANDBOXED: Final = Profile()
BUILT_IN: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        "trusted": replace(
            SANDBOXED,
            memory=2048 * _MB,
            cpus=2.0,
            pids=512,
            open_files=4096,
            tmpfs={TMP: 512 * _MB},
            shm=64 * _MB,
            read_only=False,
            network="bridge",
        ),
        "sandboxed": SANDBOXED,
        "untrusted": replace(
            SANDBOXED,
            memory=256 * _MB,
            pids=64,
            open_files=256,
            tmpfs={TMP: 32 * _MB},
            shm=8 * _MB,
            single_use=True,
        ),
    }
)
"""The profiles that are there without any configuration."""
