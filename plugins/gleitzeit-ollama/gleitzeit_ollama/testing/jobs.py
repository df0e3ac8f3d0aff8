"""From a request to what the model does: a job, and the steps of its turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.answers import ApiError
from gleitzeit_ollama.testing.fields import array, check_options, table, text, whole
from gleitzeit_ollama.testing.golang import BadBody, JsonObject, duration_s, quote
from gleitzeit_ollama.testing.models import qualified_name
from gleitzeit_ollama.testing.replies import Ask, ReplyFunction, ToolCall, as_reply, tokens_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gleitzeit_ollama.testing.models import Model

_BAD_REQUEST = 400
_SERVER_ERROR = 500
_MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work for a model, whichever client API it came through.

    Args:
        ask: what the reply is made from.
        model: the model that works.
        limit: tokens it may say; 0 for no limit.
        is_stream: the answer comes in parts.
        keep_alive_s: how long the model stays in memory afterwards; None for the default.
        top_logprobs: alternatives per token; None for no logprobs.
        is_raw: no template is applied, and no context comes back.
        is_load: there is nothing to answer; the model is only loaded.
    """

    ask: Ask
    model: Model
    limit: int = 0
    is_stream: bool = True
    keep_alive_s: float | None = None
    top_logprobs: int | None = None
    is_raw: bool = False
    is_load: bool = False

    @property
    def is_unload(self) -> bool:
        """There is nothing to answer, and the model shall leave memory."""
        return self.is_load and self.keep_alive_s == 0


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a turn: a thought, a word, or calls of tools."""

    content: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model said, and the figures about it."""

    steps: tuple[Step, ...]
    prompt_tokens: int
    reply_tokens: int
    reason: str

    @property
    def content(self) -> str:
        """All that was said."""
        return "".join(step.content for step in self.steps)

    @property
    def thinking(self) -> str:
        """All that was thought."""
        return "".join(step.thinking for step in self.steps)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All calls of tools."""
        return tuple(call for step in self.steps for call in step.calls)

    def metrics(self) -> JsonObject:
        """Return the figures at the end of a native answer; times follow from the counts."""
        load_ns, prompt_ns, eval_ns = 25_000_000, self.prompt_tokens * 400_000, 0
        eval_ns = self.reply_tokens * 7_000_000
        return {
            "total_duration": load_ns + prompt_ns + eval_ns,
            "load_duration": load_ns,
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": prompt_ns,
            "eval_count": self.reply_tokens,
            "eval_duration": eval_ns,
        }


def take_turn(job: Job, reply: ReplyFunction) -> Turn:
    """Let `reply` answer the job, cut to the job's limit."""
    made = as_reply(reply(job.ask))
    steps = [Step(thinking=token) for token in made.thinking if job.ask.think]
    steps += [Step(content=token) for token in made.tokens]
    is_cut = 0 < job.limit <= len(steps) and not made.tool_calls
    steps = steps[: job.limit] if is_cut else steps
    # The end of the text is a token of its own, which is counted and not shown.
    count = len(steps) + (not is_cut)
    if made.tool_calls:
        steps.append(Step(calls=tuple(made.tool_calls)))
    return Turn(tuple(steps), _prompt_tokens(job), count, "length" if is_cut else "stop")


def _prompt_tokens(job: Job) -> int:
    texts = [text(message, "content") for message in job.ask.messages] or [job.ask.prompt]
    return sum(len(tokens_of(part)) for part in texts) + (0 if job.is_raw else 9)


def logprobs_of(job: Job, steps: Sequence[Step]) -> list[JsonObject]:
    """Return made-up logprobs of these steps, with as many alternatives as were asked for."""
    alternatives = job.top_logprobs or 0
    return [_logprob(step.content or step.thinking, alternatives) for step in steps]


def _logprob(token: str, alternatives: int) -> JsonObject:
    entry = _entry(token, 0)
    if alternatives:
        texts = [token, *(f"{token}{number}" for number in range(1, alternatives))]
        entry["top_logprobs"] = [_entry(other, rank) for rank, other in enumerate(texts)]
    return entry


def _entry(token: str, rank: int) -> JsonObject:
    logprob = -0.25 - rank
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}


def check_capabilities(model: Model, body: Mapping[str, object], *, thinks: bool) -> None:
    """Refuse what the model cannot do.

    Raises:
        ApiError: with the recorded sentence.
    """
    if thinks and not model.can("thinking"):
        name = text(body, "model")
        raise ApiError(_BAD_REQUEST, f"{quote(name)} does not support thinking")
    for field, capability in (("tools", "tools"), ("suffix", "insert")):
        if body.get(field) and not model.can(capability):
            what = f"{qualified_name(model.name)} does not support {capability}"
            raise ApiError(_BAD_REQUEST, what)


def may_think(model: Model, think: object) -> bool:
    """Tell whether the model thinks: where it can, it does unless the request says no."""
    return model.can("thinking") and think is not False


def top_logprobs_of(body: Mapping[str, object]) -> int | None:
    """Return how many alternatives per token are asked for; None for no logprobs.

    Raises:
        ApiError: fewer than 0 or more than 20.
    """
    top = whole(body, "top_logprobs")
    if not 0 <= top <= _MAX_TOP_LOGPROBS:
        raise ApiError(_BAD_REQUEST, "top_logprobs must be between 0 and 20")
    return top if body.get("logprobs") is True else None


def keep_alive_of(body: Mapping[str, object]) -> float | None:
    """Return the seconds the model shall stay in memory, None where nothing is said.

    Raises:
        ApiError: it is no duration.
    """
    value = body.get("keep_alive")
    try:
        return None if value is None else duration_s(value)
    except BadBody as error:
        raise ApiError(_BAD_REQUEST, str(error)) from None


def native_job(path: str, body: JsonObject, model: Model) -> Job:
    """Return the job of a request to `/api/chat` or `/api/generate`.

    Raises:
        ApiError: the model cannot do it, or a value is none of those allowed.
    """
    think = body.get("think")
    keep_alive_s, top_logprobs = keep_alive_of(body), top_logprobs_of(body)
    check_capabilities(model, body, thinks=bool(think))
    options = table(body, "options")
    if complaint := check_options(options):
        raise ApiError(_SERVER_ERROR, complaint)
    ask = make_ask(path, body, model, think=think)
    return Job(
        ask,
        model,
        limit=whole(options, "num_predict"),
        is_stream=body.get("stream") is not False,
        keep_alive_s=keep_alive_s,
        top_logprobs=top_logprobs,
        is_raw=body.get("raw") is True,
        is_load=not (ask.messages if path.endswith("chat") else ask.prompt),
    )


def make_ask(path: str, body: JsonObject, model: Model, *, think: object) -> Ask:
    """Return what a reply is made from."""
    messages = [message for message in array(body, "messages") if isinstance(message, dict)]
    prompt = text(messages[-1], "content") if messages else text(body, "prompt")
    return Ask(
        path,
        text(body, "model"),
        prompt,
        messages,
        [tool for tool in array(body, "tools") if isinstance(tool, dict)],
        body.get("format") or None,
        may_think(model, think),
        body,
    )
