"""``gleitzeit chat``: talk to a model, or ask it one question."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import Connection, connection_options
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.models import listed
from gleitzeit_core.cli.output import is_interactive, note, say_error, write
from gleitzeit_core.cli.prompt import read_message
from gleitzeit_core.cli.texts import read_text
from gleitzeit_core.errors import GleitzeitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_core.cli.backend import Backend

_EXAMPLES: Final = (
    "gleitzeit chat                                  talk to the model, if there is just one",
    "gleitzeit chat smollm2",
    "gleitzeit chat smollm2 Why is the sky blue",
    "gleitzeit chat -m smollm2 'Why is the sky blue?'",
    "gleitzeit chat -m smollm2 < question.txt",
    "gleitzeit chat -m smollm2 'Summarise this:' - < report.txt",
)
_HELP: Final = """/clear  forget what was said
/bye    leave; so does Ctrl-D
Ctrl-C  stop the answer
\"\"\"     begin or end a message of several lines"""


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]...")
@click.option("--model", "-m", help="The model; all words are then the prompt.")
@click.option("--system", metavar="TEXT", help="What the model is told before everything else.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="S", help="At most S seconds an answer."
)
@click.option("--local", is_flag=True, help="Do it in this process, even if a gateway runs.")
@connection_options
@pass_invocation
def chat(
    invocation: Invocation,
    connection: Connection,
    words: tuple[str, ...],
    model: str | None,
    system: str | None,
    timeout_s: float | None,
    *,
    local: bool,
) -> None:
    """Chat with MODEL, or ask it one question.

    With a prompt, or with one on the standard input, the answer is printed and that is all. A word that is - stands
    for the standard input. Without a MODEL there must be just one to choose from.
    """
    name, rest = (model, words) if model else (words[0] if words else None, words[1:])
    prompt = _prompt(rest)
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty")
    with connection.backend(invocation, local=local) as backend:
        talk = Talk(backend, name or _only_model(backend), timeout_s, system)
        if prompt is None:
            _converse(talk)
        else:
            talk.say(prompt)


def _prompt(words: Sequence[str]) -> str | None:
    """The one question; None to talk."""
    if not words and is_interactive():
        return None
    texts = [read_text("-", "the prompt") if word == "-" else word for word in words or ("-",)]
    return " ".join(texts)


def _only_model(backend: Backend) -> str:
    names = [str(model["name"]) for model in listed(backend.models())]
    if not names:
        raise click.UsageError("there is no model; 'gleitzeit instances' shows what there is")
    if len(names) > 1:
        raise click.UsageError(f"which model? There are: {', '.join(names)}")
    return names[0]


@dataclass(slots=True)
class Talk:
    """A conversation.

    Args:
        backend: Carries it out.
        model: With whom.
        timeout_s: For each answer; None for no limit.
        system: What the model is told first; None for nothing.
        messages: What was said so far, in Ollama's shape.
    """

    backend: Backend
    model: str
    timeout_s: float | None
    system: str | None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Say `text`, and print the answer as it comes. It is remembered only once it is complete.

        Raises:
            GleitzeitError: There was no complete answer.
        """
        question = {"role": "user", "content": text}
        first = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*first, *self.messages, question]}
        answer: list[str] = []
        thinks = False
        try:
            with closing(self.backend.chat(body, self.timeout_s)) as parts:
                for part in parts:
                    if _text(part, "thinking") and not thinks:
                        thinks = True
                        note("thinking ...")
                    answer.append(_text(part, "content"))
                    write(answer[-1], end="")
        finally:
            if any(answer):
                write("")
        self.messages += [question, {"role": "assistant", "content": "".join(answer)}]


def _text(part: object, key: str) -> str:
    """A text in the message of a part; whatever else it may hold is not for people."""
    message = part.get("message") if isinstance(part, dict) else None
    text = message.get(key) if isinstance(message, dict) else None
    return text if isinstance(text, str) else ""


def _converse(talk: Talk) -> None:
    """Until the person leaves. An answer that fails or is stopped does not end it."""
    note(f"{talk.model}; /help says what else there is")
    while (text := read_message()) is not None:
        if not text.strip():
            continue
        if text.startswith("/"):
            if not _obey(talk, text.strip()):
                return
            continue
        try:
            talk.say(text)
        except KeyboardInterrupt:
            note("stopped; it is not remembered")
        except GleitzeitError as error:
            say_error(error.message)


def _obey(talk: Talk, command: str) -> bool:
    """Do what a line with a slash says. Whether to go on."""
    if command in ("/bye", "/exit", "/quit"):
        return False
    if command == "/clear":
        talk.messages.clear()
        note("forgotten")
    else:
        note(_HELP if command in ("/help", "/?") else f"unknown command {command}\n{_HELP}")
    return True
