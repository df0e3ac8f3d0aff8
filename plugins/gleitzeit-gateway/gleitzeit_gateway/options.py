"""Options of the gateway: the section ``gateway``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gleitzeit_gateway import allowed
from gleitzeit_gateway.key_files import read_key
from gleitzeit_gateway.tls import TlsOptions

_KEY_CHARACTERS: Final = 16
FIXED: Final = ("host", "port", "tls", "workers")
"""What a gateway that runs keeps until it is started again."""


def _matching(pattern: str) -> str:
    if re.fullmatch(r"[^*?\[/]+", pattern):
        raise ValueError(f"{pattern!r} matches no method: write '{pattern}/*'")
    return pattern


def _with_either_key(schema: dict[str, Any]) -> None:
    """For editors: a file's name stands for a key."""
    schema["required"].remove("key")
    schema["anyOf"] = [{"required": ["key"]}, {"required": ["key_file"]}]


_Pattern = Annotated[str, Field(min_length=1)]
_MethodPattern = Annotated[_Pattern, AfterValidator(_matching)]


class KeyOptions(BaseModel):
    """One API key."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=_with_either_key
    )

    name: str = Field(min_length=1, description="Who it belongs to; the tenant of its requests, shown in logs.")
    key: SecretStr = Field(description="At least 16 characters; callers send it as a bearer token. Or give `key_file`.")
    key_file: Path | None = Field(
        default=None, description="A file with the key, instead of `key`; relative to the configuration's folder."
    )
    priority: int = Field(default=0, description="Of its requests; higher goes first.")
    admin: bool = Field(
        default=False,
        description="Whether it may add, drain and remove instances, manage models, reload, and see everybody's usage.",
    )
    models: list[_Pattern] = Field(
        default=[], description="Names of models, or patterns such as `llama3*`, that it may use; empty: all."
    )
    methods: list[_MethodPattern] | None = Field(
        default=None,
        description="Methods, or patterns such as `llm/*`: all that it may call, restricted ones as well. "
        "null: all but the restricted ones that the gateway's own `methods` do not name.",
    )
    max_concurrent: int | None = Field(
        default=None, gt=0, description="Requests it may have running. null: any number."
    )
    requests_per_minute: int | None = Field(default=None, gt=0, description="Requests it may send. null: no limit.")
    tokens_per_minute: int | None = Field(
        default=None, gt=0, description="Tokens its requests may take, read and written ones together. null: no limit."
    )
    tokens_per_day: int | None = Field(default=None, gt=0, description="The same, over a day. null: no limit.")

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, data: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever stands there
        """Read the key where a file has it."""
        path = data.get("key_file") if isinstance(data, Mapping) else None
        if not isinstance(path, str | Path):
            return data
        if data.get("key") is not None:
            raise ValueError("give either 'key' or 'key_file', not both")
        return {**data, "key": read_key(path, (info.context or {}).get("base_dir"))}

    @field_validator("key")
    @classmethod
    def _sendable(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if len(text) < _KEY_CHARACTERS:
            raise ValueError(f"a key has at least {_KEY_CHARACTERS} characters, or it could be guessed")
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("a key has printable ASCII characters only, and no spaces, or nobody could send it")
        return key


class GatewayOptions(BaseModel):
    """The section ``gateway``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="Where to listen. Beyond loopback only with keys.")
    port: int = Field(default=8484, ge=0, le=65535, description="0 takes any free port.")
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that listen at the address; several only over external instances.",
    )
    tls: TlsOptions | None = Field(default=None, description="Callers come by https; left out: by http.")
    keys: list[KeyOptions] = Field(default=[], description="Who may call; with none, anybody who reaches it.")
    methods: list[_MethodPattern] = Field(
        default=[],
        description="Restricted methods, such as `python/execute`, or patterns of them, that callers may use. "
        "Those that are not restricted need not be named.",
    )
    allow_anonymous: bool = Field(default=False, description="Listen beyond loopback without keys all the same.")
    allowed_hosts: list[Annotated[str, AfterValidator(allowed.host)]] = Field(
        default=[],
        description="Names in a Host header, besides local ones and addresses; '*' for any. "
        "Empty beyond loopback with keys: any.",
    )
    allowed_origins: list[Annotated[str, AfterValidator(allowed.origin)]] = Field(
        default=[], description="Origins of web pages, besides those on loopback; '*' for any."
    )
    max_body_bytes: int = Field(default=100 * 1024 * 1024, gt=0, description="A larger request is refused.")
    max_batch: int = Field(default=100, ge=1, description="A JSON-RPC batch of more calls is refused.")
    body_timeout_s: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="A request must have arrived whole by then."
    )
    max_connections: int = Field(
        default=8192,
        ge=1,
        description="More are not kept open, nor more than half as many as the process may have files open. One more "
        "takes the place of the one that has done nothing for longest.",
    )
    max_head_bytes: int = Field(default=65536, ge=1024, le=65536, description="Of a request before its body, at most.")
    max_headers: int = Field(default=100, ge=1, le=128, description="A request with more is refused.")
    head_timeout_s: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="All before the body must have arrived by then."
    )
    idle_timeout_s: float = Field(
        default=75.0, gt=0, allow_inf_nan=False, description="A connection without a request is closed after so long."
    )
    send_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="A caller who takes nothing of an answer for so long is cut off.",
    )
    keepalive_s: float | None = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="A caller who has waited so long for the first part of an answer is told that it is coming, and "
        "again each time so much has passed; null or 0: never.",
    )
    grace_s: float = Field(
        default=30.0, ge=0, allow_inf_nan=False, description="How long running answers may take at shutdown."
    )
    access_log: bool = Field(default=True, description="One line per request on standard error.")

    @property
    def is_open(self) -> bool:
        """Whether anybody on other machines could call, and nobody has said that this is meant."""
        return not (is_loopback(self.host) or self.keys or self.allow_anonymous)

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.is_open:
            raise ValueError(
                f"{self.host} can be reached from other machines: configure 'keys', or say that anybody may call with "
                "'allow_anonymous: true' (--allow-anonymous)"
            )
        if len({key.name for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same name")
        if len({key.key.get_secret_value() for key in self.keys}) != len(self.keys):
            raise ValueError("two names have the same key")
        return self


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine only; what is no address and not ``localhost`` is not."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
