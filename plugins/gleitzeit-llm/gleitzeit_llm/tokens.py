"""``llm/count_tokens``: how many tokens a conversation takes, told by the tokenizer of a server that has the model.

Two kinds of server can say it without running the model: llama.cpp, which puts a conversation into the model's template
(``/apply-template``) and splits a text (``/tokenize``), and vLLM, whose ``/tokenize`` does both. Ollama cannot, and
nothing is guessed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest, NoCapableInstance, Unavailable
from gleitzeit_core.resources import ChannelKind, HttpChannel, Speaks
from gleitzeit_llm import models
from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.failures import explaining
from gleitzeit_llm.protocol import CHAT, model_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.runs import InstanceReport
    from gleitzeit_llm.protocol import Json
    from gleitzeit_llm.upstream import Upstream

COUNT_LIMIT_S: Final = 10.0
"""How long a server may take to count."""

_OPENAI: Final = (Speaks("openai", ChannelKind.HTTP),)
# What a server answers that has no such path; 501 is llama.cpp's for one that is switched off.
_NO_SUCH_PATH: Final = frozenset((404, 405, 501))


async def count(upstream: Upstream, params: Mapping[str, Any], reports: Iterable[InstanceReport]) -> Json:
    """``{"model": ..., "input_tokens": ...}`` for the parameters of a chat.

    The servers that have the model are asked one after the other, until one can say it. This takes no slot of theirs:
    they do it beside their work.

    Raises:
        InvalidRequest: None of them has a tokenizer that can be asked; the conversation has images in it, which no
            tokenizer sees; or a server says what is wrong with it.
        NoCapableInstance: Nobody has the model.
        Unavailable: Those that could say it are down or failed.
    """
    known = list(reports)
    model = model_of(params)
    if not known:
        raise NoCapableInstance(f"no instance has {model}", needed=[models.capability(model)])
    _check(params)
    failed = ""
    for report in known:
        channel = _tokenizer(report.instance)
        if channel is None:
            continue
        if not report.serving:
            failed = failed or f"{report.instance.endpoint} is {report.state}"
            continue
        try:
            found = await _ask(upstream, channel, models.own_params(report.instance, params))
        except InstanceFailure as failure:
            if failure.kind is FailureKind.REJECTED:
                raise InvalidRequest(failure.message) from failure
            failed = failure.message
        else:
            if found is not None:
                return {"model": model, "input_tokens": found}
    if failed:
        raise Unavailable(f"the tokens cannot be counted now: {failed}", instances=[one.instance.id for one in known])
    raise InvalidRequest(
        f"tokens of {model!r} cannot be counted: none of the servers that have it has a tokenizer that can "
        "be asked (those of llama.cpp and vLLM have, Ollama has not)",
        param="model",
    )


def _check(params: Mapping[str, Any]) -> None:
    """See that it is a chat, and one that consists of text."""
    DIALECTS["openai"].instance.encode(CHAT, params)
    for index, message in enumerate(params["messages"]):
        if message.get("images"):
            param = f"messages[{index}]"
            raise InvalidRequest(f"{param!r} has images, whose tokens cannot be counted", param=param)


def _tokenizer(instance: ResourceInstance) -> HttpChannel | None:
    """The channel to a server that may be able to say it. An Ollama is none, although it speaks OpenAI's API too."""
    if any(api == "ollama" for api, _ in instance.offers):
        return None
    reached = instance.channel_for(_OPENAI)
    return reached[1] if reached is not None and isinstance(reached[1], HttpChannel) else None


async def _ask(upstream: Upstream, channel: HttpChannel, params: Mapping[str, Any]) -> int | None:
    """The number, or None when the server has no way to say it."""
    payload = DIALECTS["openai"].instance.encode(CHAT, params).payload
    try:
        async with asyncio.timeout(COUNT_LIMIT_S):
            templated = await _post(upstream, channel, "/apply-template", payload)
            if templated is None:
                return _number(channel, await _post(upstream, channel, "/tokenize", payload), "count")
            prompt = templated.get("prompt")
            text = {"content": prompt, "add_special": True, "parse_special": True}
            return _number(channel, await _post(upstream, channel, "/tokenize", text), "tokens")
    except TimeoutError:
        raise InstanceFailure(FailureKind.TIMEOUT, f"{channel.url} did not count in {COUNT_LIMIT_S:g} s") from None


async def _post(upstream: Upstream, channel: HttpChannel, path: str, payload: Json) -> Json | None:
    """The answer, or None when the server has no such path."""
    try:
        with explaining("openai", same_api=False):
            answer = (await upstream.request(channel, "POST", path, payload)).json()
    except InstanceFailure as failure:
        if failure.status in _NO_SUCH_PATH:
            return None
        raise
    if not isinstance(answer, dict):
        raise InstanceFailure(FailureKind.SERVER_ERROR, f"{channel.url}{path} answered no JSON object")
    return answer


def _number(channel: HttpChannel, answer: Json | None, name: str) -> int | None:
    """What a tokenizer says: the tokens themselves, or their number."""
    if answer is None:
        return None
    found = answer.get(name)
    if isinstance(found, list):
        return len(found)
    if type(found) is int and found >= 0:
        return found
    raise InstanceFailure(FailureKind.SERVER_ERROR, f"{channel.url}/tokenize does not say {name!r}")
