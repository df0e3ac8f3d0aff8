"""Options of the hub type `ollama`. Without heavy imports: a configuration is checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gleitzeit_core.config_messages import explain
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.hub import HubOptions
from gleitzeit_ollama.addresses import DISCOVER_PORTS, normalised, without_aliases

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_OURS: Final = frozenset({"connection", "content-length", "content-type", "transfer-encoding"})

Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, Field(min_length=1)]


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


class InstanceOptions(BaseModel):
    """One server. In a list of them, its URL alone will do."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(description="Such as http://gpu1:11434; without a scheme, http and port 11434 are meant.")
    name: str = Field(default="", description="For people; the URL when empty.")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Capacity relative to other instances.")
    max_concurrent: int = Field(default=4, ge=1, description="Requests sent to it at once; more wait.")
    tags: list[Text] = Field(default=[], description="Labels that requests can ask for.")
    models: list[Text] = Field(default=[], description="The models it has. When given, it is not asked for them.")
    probe: bool = Field(
        default=True, description="False: nothing but users' requests is ever sent to it; `models` says what it has."
    )
    headers: dict[str, SecretStr] = Field(default={}, description="Sent with every request.")
    api_key: SecretStr | None = Field(default=None, description="Sent as `Authorization: Bearer ...`.")
    tls: TlsOptions = Field(default=TlsOptions(), description="For https.")

    @field_validator("url")
    @classmethod
    def _normalised(cls, url: str) -> str:
        return normalised(url)

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no header's name")
            if name.lower() in _NOT_OURS:
                raise ValueError(f"{name!r} is set for each request and cannot be given")
            if _CONTROL.search(value.get_secret_value()):
                raise ValueError(f"the value of {name!r} has a line break or another control character")
        return headers

    @field_validator("api_key")
    @classmethod
    def _usable(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
            raise ValueError("must be text of printable ASCII characters without spaces")
        return key

    @model_validator(mode="after")
    def _consistent(self) -> InstanceOptions:
        if not self.probe and not self.models:
            raise ValueError("'probe: false' needs 'models': nobody asks this instance what it has")
        if self.api_key is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("'api_key' and the header 'Authorization' exclude each other")
        if self.tls != TlsOptions() and not self.url.startswith("https://"):
            raise ValueError("'tls' needs a URL that begins with https://")
        return self

    def sent_headers(self) -> dict[str, str]:
        """The headers in plain text, the key's included."""
        plain = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.api_key is not None:
            plain["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return plain


def _written_out(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


Instance = Annotated[InstanceOptions, BeforeValidator(_written_out, json_schema_input_type=InstanceOptions | str)]


class OllamaOptions(HubOptions):
    """Options of the hub type `ollama`. Without any, it discovers."""

    model_config = ConfigDict(hide_input_in_errors=True)

    instances: list[Instance] = Field(
        default=[], description="The servers; a URL alone will do for one.", examples=[["http://gpu1:11434"]]
    )
    discover: bool = Field(
        default=False,
        description="Look for servers at $OLLAMA_HOST and on this machine; on by itself when no instances are given.",
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
        if isinstance(data, Mapping) and not data.get("instances") and data.get("discover") is None:
            return {**data, "discover": True}
        return data

    @model_validator(mode="after")
    def _something_to_pool(self) -> OllamaOptions:
        if not self.instances and not self.discover:
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
    try:
        return OllamaOptions.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(explain(error, OllamaOptions, data, (), lambda _: "")) from None


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
