"""Options of the hub type `ollama`. Without heavy imports: a configuration is checked before anything starts."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

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

from gleitzeit_core.config_messages import validated
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.supply import SupplyOptions
from gleitzeit_llm.server_options import ServerOptions, Text, written_out
from gleitzeit_ollama.addresses import DISCOVER_PORTS, normalised, without_aliases

Port = Annotated[int, Field(ge=1, le=65535)]


class TlsOptions(BaseModel):
    """How the certificate of an ``https`` server is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verify: bool = Field(default=True, description="False accepts any certificate: for tests only.")
    ca: Path | None = Field(
        default=None,
        description="A file of certificates to trust instead of the system's; relative to the configuration.",
    )

    @field_validator("ca")
    @classmethod
    def _found(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        if ca is None:
            return None
        base_dir = (info.context or {}).get("base_dir")
        full = Path(base_dir, ca.expanduser()) if base_dir else ca.expanduser()
        if not full.is_file():
            raise ValueError(f"no such file: {full}")
        return full


class InstanceOptions(ServerOptions):
    """One server. In a list of them, its URL alone will do."""

    certificates = "tls.ca"

    url: str = Field(description="Such as http://gpu1:11434; without a scheme, http and port 11434 are meant.")
    name: str = Field(default="", description="For people; the URL when empty.")
    models: list[Text] = Field(default=[], description="The models it has. When given, it is not asked for them.")
    tls: TlsOptions = Field(default=TlsOptions(), description="For https.")

    @field_validator("url")
    @classmethod
    def _normalised(cls, url: str) -> str:
        return normalised(url)

    @model_validator(mode="after")
    def _tls_needs_https(self) -> Self:
        if self.tls != TlsOptions() and not self.url.startswith("https://"):
            raise ValueError("'tls' needs a URL that begins with https://")
        return self

    def tls_context(self) -> ssl.SSLContext | None:
        """As `tls` says; None for the system's defaults."""
        if self.tls == TlsOptions():
            return None
        context = ssl.create_default_context(cafile=self.tls.ca)
        if not self.tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


Instance = Annotated[InstanceOptions, BeforeValidator(written_out, json_schema_input_type=InstanceOptions | str)]


class ManagedOptions(SupplyOptions):
    """Servers that are started and stopped here, each a process of its own on this machine."""

    model_config = ConfigDict(hide_input_in_errors=True)

    command: list[Text] = Field(
        default=["ollama", "serve"], min_length=1, description="What to run; it listens where OLLAMA_HOST says."
    )
    min_total: int = Field(default=1, ge=0, description="Started with the hub and kept running.")
    max_total: int = Field(default=1, ge=1, description="Never more than this.")
    models: list[Text] = Field(
        default=[], description="What they have, as far as it must be known before the first of them has said so."
    )
    models_dir: Path | None = Field(
        default=None, description="Sets OLLAMA_MODELS: where the models are; relative to the configuration."
    )
    environment: dict[Text, SecretStr] = Field(default={}, description="Further variables, such as OLLAMA_KEEP_ALIVE.")
    ports: tuple[Port, Port] | None = Field(
        default=None, description="The first and the last port to use on loopback; left out: any that are free."
    )
    log_dir: Path | None = Field(
        default=None, description="For logs, and notes of what runs; left out: in the user's directory for state."
    )
    stop_timeout_s: float = Field(
        default=10.0, ge=0, allow_inf_nan=False, description="One that has not ended by then after SIGTERM is killed."
    )
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Capacity relative to other instances.")
    max_concurrent: int = Field(default=4, ge=1, description="Requests sent to one at once; more wait.")
    tags: list[Text] = Field(default=[], description="Labels that requests can ask for.")

    @field_validator("models_dir", "log_dir")
    @classmethod
    def _beside_the_configuration(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        base_dir: Path = (info.context or {}).get("base_dir") or Path()
        return None if path is None else (base_dir / path.expanduser()).absolute()

    @field_validator("environment")
    @classmethod
    def _not_ours(cls, environment: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, ours in (("OLLAMA_HOST", "ports"), ("OLLAMA_MODELS", "models_dir")):
            if name in environment:
                raise ValueError(f"{name} cannot be set here: '{ours}' says it")
        if any("=" in name or "\0" in name + value.get_secret_value() for name, value in environment.items()):
            raise ValueError("holds a name or a value that no environment can have")
        return environment

    @model_validator(mode="after")
    def _enough_ports(self) -> Self:
        if self.ports is not None and self.ports[1] - self.ports[0] + 1 < self.max_total:
            raise ValueError("'ports' must be the first and the last port, with one for each of max_total")
        return self


class OllamaOptions(HubOptions):
    """Options of the hub type `ollama`. Without any, it discovers."""

    model_config = ConfigDict(hide_input_in_errors=True)

    instances: list[Instance] = Field(
        default=[], description="The servers; a URL alone will do for one.", examples=[["http://gpu1:11434"]]
    )
    managed: ManagedOptions | None = Field(
        default=None, description="Servers to start and stop here; `{}` for one with the defaults."
    )
    discover: bool = Field(
        default=False,
        description="Look for servers at $OLLAMA_HOST and on this machine; on by itself when no others are given.",
    )
    discover_ports: list[Port] = Field(
        default=list(DISCOVER_PORTS), description="The ports that discovery looks at on loopback."
    )
    connect_timeout_s: float = Field(
        default=3.0, gt=0, allow_inf_nan=False, description="A server that accepts no connection for so long is down."
    )
    pull_stall_timeout_s: float = Field(
        default=900.0,
        gt=0,
        allow_inf_nan=False,
        description="A pull has failed when the server says nothing for so long; checking a large file takes minutes.",
    )

    @model_validator(mode="before")
    @classmethod
    def _discover_unless_told(cls, data: Any) -> Any:  # noqa: ANN401 - whatever was configured
        if not isinstance(data, Mapping) or data.get("discover") is not None:
            return data
        others = data.get("instances") or data.get("managed") is not None
        return data if others else {**data, "discover": True}

    @model_validator(mode="after")
    def _something_to_pool(self) -> OllamaOptions:
        if not self.instances and not self.discover and self.managed is None:
            raise ValueError("names no instances and does not discover any: it could never have one")
        twice = _repeated(self.instances, lambda instance: without_aliases(instance.url))
        if twice:
            raise ValueError(f"lists one server twice: {twice[0].url} and {twice[1].url}")
        twice = _repeated(self.instances, lambda instance: instance.name)
        if twice:
            raise ValueError(f"gives the name {twice[0].name!r} to {twice[0].url} and to {twice[1].url}")
        return self


def checked_options(data: dict[str, Any]) -> OllamaOptions:
    """Options from plain values, as a configuration has them.

    Raises:
        ConfigurationError: With everything that is wrong.
    """
    options, problems = validated(OllamaOptions, data)
    if options is None:
        raise ConfigurationError(problems)
    return options


def _repeated(
    instances: list[InstanceOptions], key: Callable[[InstanceOptions], str]
) -> tuple[InstanceOptions, InstanceOptions] | None:
    """The first two that share a key that is not empty."""
    seen: dict[str, InstanceOptions] = {}
    for instance in instances:
        if key(instance) in seen:
            return seen[key(instance)], instance
        if key(instance):
            seen[key(instance)] = instance
    return None
