"""What an agent is asked, from a request's parameters."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_python.answers import content

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_python.options import PythonOptions


def check(params: Mapping[str, Any], options: PythonOptions) -> None:
    """Refuse what is more than `options` allow.

    Raises:
        InvalidRequest: It is.
    """
    if (params.get("timeout_s") or 0) > options.max_timeout_s:
        raise InvalidRequest(f"timeout_s must be at most {options.max_timeout_s:g}", param="timeout_s")
    files = params.get("files", {})
    pieces = [params.get("code") or "", params.get("stdin") or "", *files, *files.values()]
    pieces += [*params.get("args", ()), *params.get("collect", ())]
    size = sum(len(content(piece)) for piece in pieces)
    if size > options.input_bytes:
        what = "code, standard input, arguments, patterns and files"
        raise InvalidRequest(f"{what} are {size} bytes; at most {options.input_bytes} are taken")


def asked(params: Mapping[str, Any], options: PythonOptions) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the agent is asked, as plain data, and the files that it gets.

    Args:
        params: Checked already.
        options: What holds where they say nothing.
    """
    stdin = params.get("stdin")
    question = {
        "code": params.get("code") or "",
        "file": params.get("file") or "",
        "args": params.get("args", []),
        "stdin": None if stdin is None else base64.b64encode(content(stdin)).decode(),
        "collect": params.get("collect", []),
        "environment": params.get("environment", {}),
        "timeout_s": params.get("timeout_s") or min(options.timeout_s, options.max_timeout_s),
        "fresh": (params.get("interpreter") or options.interpreter) == "fresh",
        "limits": {name: value for name, value in params.get("limits", {}).items() if value is not None},
        "session": params.get("session") is not None,
        "output_bytes": options.output_bytes,
        "files_bytes": options.files_bytes,
    }
    return question, {name: content(value) for name, value in params.get("files", {}).items()}
