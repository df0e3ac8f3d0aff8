"""What a caller who asks for an instance, and not for an answer, may say of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

from gleitzeit_core.config_messages import validated
from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.resources import ANONYMOUS, MODEL, Requirements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gleitzeit_core.hub import ResourceHub

M = TypeVar("M", bound=BaseModel)


class _Needs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    capabilities: list[str] = []
    tags: list[str] = []
    instances: list[str] = []


def requirements_of(kind: str, needs: Requirements | Mapping[str, Any] | None) -> Requirements:
    """`needs` of an instance of `kind`.

    Args:
        kind: A hub's kind or name.
        needs: As plain data: ``model``, ``capabilities``, ``tags``, ``instances``, all optional.

    Raises:
        InvalidRequest: They are wrong.
    """
    if isinstance(needs, Requirements):
        return replace(needs, kind=kind)
    given = checked(_Needs, needs or {})
    model = [MODEL + given.model] if given.model else []
    return Requirements(
        accepts=(),
        kind=kind,
        capabilities=frozenset((*given.capabilities, *model)),
        tags=frozenset(given.tags),
        instances=frozenset(given.instances),
    )


def of_tenant(requirements: Requirements, tenant: str, hubs: Iterable[ResourceHub[Any]]) -> Requirements:
    """`requirements` of a lease for `tenant`, where one of the `hubs` that are meant keeps instances for tenants."""
    bound = any(hub.tenant_bound and requirements.kind in ("", hub.kind, hub.name) for hub in hubs)
    return replace(requirements, tenant=requirements.tenant or tenant or ANONYMOUS) if bound else requirements


def checked(model: type[M], data: Mapping[str, Any]) -> M:
    """`data` as a `model`; `InvalidRequest`, with all that is wrong, if it is none."""
    found, problems = validated(model, data)
    if found is None:
        raise InvalidRequest("; ".join(map(str, problems)), param=problems[0].path or None)
    return found


def positive(name: str, value: object) -> float:
    """`value`, a caller's `name`.

    Raises:
        InvalidRequest: It is not a number above 0.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return value
    raise InvalidRequest(f"{name} must be a number above 0, not {value!r}", param=name)
