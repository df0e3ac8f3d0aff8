"""The parameters of the protocol's methods."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gleitzeit_python.options import Interpreter

_MIB = 1 << 20
Session = Annotated[str, StringConstraints(min_length=1, max_length=200)]


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

    cpu_s: int | None = Field(default=None, ge=1, description="Seconds of processor time.")
    memory_bytes: int | None = Field(default=None, ge=16 * _MIB, description="Address space of each process.")
    processes: int | None = Field(default=None, ge=1, description="At once; needs a user of the runner's own.")
    file_bytes: int | None = Field(default=None, ge=0, description="Size of each file that it writes.")
    open_files: int | None = Field(default=None, ge=16, description="Descriptors of each process.")


class ExecuteParams(_Params):
    """Of ``python/execute``: one of ``code`` and ``file``, and whatever else is wanted."""

    code: str | None = Field(default=None, description="What to run.")
    file: str | None = Field(default=None, min_length=1, description="Or the name of one of `files` to run.")
    args: list[str] = Field(default=[], description="`sys.argv[1:]`.")
    stdin: str | Content | None = Field(default=None, description="Standard input; left out: empty.")
    files: dict[str, str | bytes | Content] = Field(default={}, description="Put into the working directory first.")
    collect: list[str] = Field(default=[], description="Shell patterns of files to bring back; figures always are.")
    environment: dict[str, str] = Field(default={}, description="Added to the environment.")
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
        texts = [*self.args, *self.environment, *self.environment.values()]
        if any("\0" in text for text in texts) or any("=" in name or not name for name in self.environment):
            raise ValueError("arguments and environment have no NUL, and names there no '='")
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
