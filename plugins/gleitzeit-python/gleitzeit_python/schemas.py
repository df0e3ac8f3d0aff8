"""The parameters of the protocol's methods."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gleitzeit_python.options import Interpreter

_MIB = 1 << 20
# As Linux has it: of a file's name, of a path, of one string in an environment. A limit is a signed word.
_NAME_BYTES: Final = 255
_PATH_BYTES: Final = 4095
_VARIABLE_BYTES: Final = 128 * 1024 - 1
_LIMIT_MOST: Final = 2**62
_ENVIRONMENT_BYTES: Final = _MIB
_FILES: Final = 10_000
_PATTERNS: Final = 1000


def _text(value: str) -> str:
    """What a program can be given as an argument or in its environment."""
    if "\0" in value:
        raise ValueError("must have no NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be text that UTF-8 can encode") from None
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    """What an interpreter can be started with."""
    if any("=" in name or not name for name in value):
        raise ValueError("names must not be empty, and have no '='")
    sizes = [len(f"{name}={text}".encode()) for name, text in value.items()]
    if sum(sizes) > _ENVIRONMENT_BYTES or max(sizes, default=0) > _VARIABLE_BYTES:
        most = f"at most {_ENVIRONMENT_BYTES}, and {_VARIABLE_BYTES} of each variable"
        raise ValueError(f"has {sum(sizes)} bytes; {most}, are taken")
    return value


def _file_names(value: dict[str, object]) -> dict[str, object]:
    """Names of files below a working directory."""
    for name in value:
        parts = _text(name).split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{name[:200]!r} is no file's name below the working directory")
        if len(name.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
            raise ValueError(f"the name {name[:20]!r}... is longer than a file's can be")
    return value


Session = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Limit = Annotated[int, Field(le=_LIMIT_MOST)]
Text = Annotated[str, AfterValidator(_text)]
Environment = Annotated[dict[Text, Text], AfterValidator(_environment)]


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Content(_Params):
    """A file that is no text. What a run brings back looks the same, so it can be sent again as it is."""

    base64: str = Field(description="Its bytes.")
    size: int | None = Field(default=None, ge=0, description="In bytes; what is brought back has it.")

    @model_validator(mode="after")
    def _decodes(self) -> Self:
        try:
            base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"not base64: {error}") from None
        return self


class Limits(_Params):
    """Of one run, set in its process; a hub may have set lower ones. What is left out is not limited."""

    cpu_s: Limit | None = Field(default=None, ge=1, description="Seconds of processor time.")
    memory_bytes: Limit | None = Field(default=None, ge=16 * _MIB, description="Address space of each process.")
    processes: Limit | None = Field(default=None, ge=1, description="At once; needs a user of the runner's own.")
    file_bytes: Limit | None = Field(default=None, ge=0, description="Size of each file that it writes.")
    open_files: Limit | None = Field(default=None, ge=16, description="Descriptors of each process.")


class ExecuteParams(_Params):
    """Of ``python/execute``: one of ``code`` and ``file``, and whatever else is wanted."""

    code: str | None = Field(default=None, description="What to run.")
    file: str | None = Field(default=None, min_length=1, description="Or the name of one of `files` to run.")
    args: list[Text] = Field(default_factory=list, description="`sys.argv[1:]`.")
    stdin: str | bytes | Content | None = Field(default=None, description="Standard input; left out: empty.")
    files: Annotated[dict[str, str | bytes | Content], AfterValidator(_file_names)] = Field(
        default_factory=dict, max_length=_FILES, description="Put into the working directory first."
    )
    collect: list[str] = Field(
        default_factory=list,
        max_length=_PATTERNS,
        description="Shell patterns of files to bring back; figures always are.",
    )
    environment: Environment = Field(default_factory=dict, description="Added to the environment.")
    timeout_s: float | None = Field(default=None, gt=0, description="Killed after so long; what it said is kept.")
    interpreter: Interpreter | None = Field(default=None, description="`forked` or `fresh`; else the provider's.")
    limits: Limits = Field(default=Limits(), description="Of its processes.")
    session: Session | None = Field(default=None, description="Keep the interpreter for the next call with this name.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.code is None) == (self.file is None):
            raise ValueError("either 'code' or 'file' is needed")
        if self.file is not None and self.session is None and self.file not in self.files:
            raise ValueError(f"'file' names {self.file!r}, which is none of 'files'")
        return self


class ValidateParams(_Params):
    """Of ``python/validate``."""

    code: str = Field(description="What to check.")
    filename: str = Field(default="<code>", description="What it is called in messages.")


class InfoParams(_Params):
    """Of ``python/info``."""

    packages: bool = Field(default=False, description="List the packages that are installed, too.")


class CloseParams(_Params):
    """Of ``python/close_session``."""

    session: Session = Field(description="As it was called in ``python/execute``.")
