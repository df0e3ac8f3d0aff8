"""``python/info``: what a runner is, and which packages its interpreter has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import ResourceInstance

_ASK: Final = """
import platform
result = {
    "python": platform.python_version(),
    "implementation": platform.python_implementation(),
    "platform": platform.platform(),
}
"""
_ASK_PACKAGES: Final = """
from importlib import metadata
found = {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]}
result["packages"] = dict(sorted(found.items()))
"""


def question(params: Mapping[str, Any]) -> dict[str, Any]:
    """What to run for the answer."""
    return {"code": _ASK + _ASK_PACKAGES if params.get("packages") else _ASK}


def told(instance: ResourceInstance, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer.

    Raises:
        InstanceFailure: It could not be had.
    """
    if not isinstance(answer["result"], dict):
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"the runner cannot say what it is: {answer['stderr'][-500:]}")
    said = instance.details.get("runner", {})
    names = ("separate_user", "kill_all", "verified_reset", "fork")
    abilities = {name: bool(said.get(name)) for name in names}
    return {**answer["result"], "abilities": abilities, "instance": instance.id}
