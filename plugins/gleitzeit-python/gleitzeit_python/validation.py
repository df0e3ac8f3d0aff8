"""Checks the syntax of code without running it.

In a process of its own: there is code that takes the compiler minutes or crashes it, and it must not be this one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

from gleitzeit_core.errors import InvalidRequest

_LIMIT_S: Final = 10.0
_LIMIT_BYTES: Final = 4 << 20
_NOWHERE: Final = dict.fromkeys(("message", "line", "column", "end_line", "end_column", "text"))
_CHECK: Final = """
import json, sys, warnings
warnings.simplefilter("ignore")
name, code = json.loads(sys.stdin.buffer.read())
error = None
try:
    compile(code, name, "exec")
except SyntaxError as found:
    places = {"line": found.lineno, "column": found.offset}
    places |= {"end_line": found.end_lineno, "end_column": found.end_offset}
    # The compiler does not always know one, and then says 0 or less.
    places = {name: place if place and place > 0 else None for name, place in places.items()}
    text = found.text or (code.splitlines()[found.lineno - 1] if found.lineno else "")
    error = {"message": found.msg, **places, "text": text.rstrip()[:500]}
except (ValueError, RecursionError, MemoryError, OverflowError) as found:
    error = {"message": f"{type(found).__name__}: {found}"}
print(json.dumps(error))
"""


async def validate(code: str, filename: str) -> dict[str, Any]:
    """Whether `code` is Python, by the version that runs this; if not, where it is not.

    Args:
        code: To be checked.
        filename: For messages.

    Returns:
        ``valid``, and ``error``: None, or its message, ``line`` and ``column`` (both from 1), where they end, and the
        line itself; all but the message may be None.

    Raises:
        InvalidRequest: It is too long, or takes too long, to be checked.
    """
    data = json.dumps([filename, code]).encode()
    if len(data) > _LIMIT_BYTES:
        raise InvalidRequest(f"code to be checked has at most {_LIMIT_BYTES} bytes", param="code")
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    command = (sys.executable, "-I", "-c", _CHECK)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=nowhere)
    try:
        async with asyncio.timeout(_LIMIT_S):
            said, _ = await process.communicate(data)
    except TimeoutError:
        raise InvalidRequest(f"checking the code takes longer than {_LIMIT_S:g} s", param="code") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    error = json.loads(said) if process.returncode == 0 else {"message": "the compiler cannot cope with this"}
    return {"valid": error is None, "error": error and {**_NOWHERE, **error}}
