"""What every server with an LLM can be configured with: its capacity, its headers, its key. Without heavy imports."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.needs import checked

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_KEY: Final = re.compile(r"[\x21-\x7e]+")
_NOT_OURS: Final = frozenset({"connection", "content-length", "content-type", "transfer-encoding"})

Text = Annotated[str, Field(min_length=1)]


class ServerOptions(BaseModel):
    """One server: what all kinds have in common. A kind adds ``models``, and says what a URL is."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    certificates: ClassVar[str] = ""
    """The option with a file of certificates, for messages."""

    url: str = Field(description="Where it is.")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Capacity relative to other instances.")
    max_concurrent: int = Field(default=4, ge=1, description="Requests sent to it at once; more wait.")
    tags: list[Text] = Field(default=[], description="Labels that requests can ask for.")
    probe: bool = Field(
        default=True, description="False: nothing but users' requests is ever sent to it; `models` says what it has."
    )
    cancellable: bool = Field(
        default=True,
        description="False: it cannot bear connections that are closed early. Work whose caller has left goes on, "
        "keeps its place until it ends, and is thrown away.",
    )
    headers: dict[str, SecretStr] = Field(default={}, description="Sent with every request.")
    api_key: SecretStr | None = Field(default=None, description="Sent as `Authorization: Bearer ...`.")
    api_key_env: Text | None = Field(
        default=None, description="The environment variable that holds the key, in place of `api_key`."
    )

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
        if key is not None:
            _check_key(key.get_secret_value(), "the key")
        return key

    @field_validator("api_key_env")
    @classmethod
    def _is_set(cls, name: str | None) -> str | None:
        if name is not None:
            _check_key(os.environ.get(name, ""), f"the environment variable {name!r}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("'api_key' and 'api_key_env' exclude each other")
        if self.key is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("a key and the header 'Authorization' exclude each other")
        if not self.probe and not self.has_models:
            raise ValueError("'probe: false' needs 'models': nobody asks this instance what it has")
        return self

    @property
    def has_models(self) -> bool:
        """Whether the options say which models it has."""
        return bool(getattr(self, "models", None))

    @property
    def key(self) -> str | None:
        """The key, from wherever it is kept; None when there is none."""
        if self.api_key_env is not None:
            return os.environ.get(self.api_key_env, "").strip() or None
        return None if self.api_key is None else self.api_key.get_secret_value().strip()

    def tls_context(self) -> ssl.SSLContext | None:
        """What ``https`` goes by; None for the system's defaults. Reads files.

        Raises:
            OSError: A file of certificates cannot be used.
        """
        return None

    def sent_headers(self) -> dict[str, str]:
        """The headers in plain text, the key's included."""
        plain = {name: value.get_secret_value() for name, value in self.headers.items()}
        return plain if self.key is None else {**plain, "Authorization": f"Bearer {self.key}"}


OptionsT = TypeVar("OptionsT", bound=ServerOptions)


def written_out(value: object) -> object:
    """The long form of a server that is given as a URL alone."""
    return {"url": value} if isinstance(value, str) else value


def by_hand(kind: type[OptionsT], settings: Mapping[str, Any]) -> OptionsT:
    """The options of one server that somebody adds while all is running.

    Args:
        kind: Of options.
        settings: As in a configuration; ``type`` and ``hub``, and an empty list of models, do not count.
            ``api_key_env`` is refused: whoever may name a server could have any variable of this process sent there.

    Raises:
        InvalidRequest: With everything that is wrong, and no secret.
    """
    if settings.get("api_key_env") is not None:
        raise InvalidRequest("'api_key_env' is for configurations: give 'api_key'", param="api_key_env")
    told = {name: value for name, value in settings.items() if name not in ("type", "hub", "api_key_env")}
    if told.get("models", True) in ([], None):
        del told["models"]
    return checked(kind, told)


def _check_key(key: str, where: str) -> None:
    """Refuse what cannot be sent, without showing it."""
    if not key.strip():
        raise ValueError(f"{where} is empty or not set")
    if not _KEY.fullmatch(key.strip()):
        raise ValueError(f"{where} has characters in it that no key has")
