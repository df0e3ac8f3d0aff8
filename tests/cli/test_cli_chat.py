from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Exchange, Gateway, Terminal

    Cli = Callable[..., Ended]
    Terminals = Callable[..., Terminal]

PROMPT = r">>> $"


def part(text: str, *, done: bool = False, **message: str) -> dict[str, Any]:
    """One part of a chat."""
    return {"model": "tiny", "message": {"role": "assistant", "content": text, **message}, "done": done}


def echo(exchange: Exchange) -> None:
    """Answer with what was said last, in two parts."""
    said = exchange.seen.body["messages"][-1]["content"]
    exchange.lines(part("You said: "), part(said), part("", done=True))


@pytest.fixture(autouse=True)
def answering(gateway: Gateway) -> None:
    """There is one model, and it echoes."""
    gateway.on("GET /api/tags", lambda exchange: exchange.json({"models": [{"name": "tiny"}]}))
    gateway.on("POST /api/chat", echo)


def said(gateway: Gateway) -> list[str]:
    """What the last chat was about."""
    return [f"{message['role']}: {message['content']}" for message in gateway.seen[-1].body["messages"]]


# -- one question


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["-m", "tiny", "why?"], "not read", "why?"),
        (["-m", "tiny", "why", "is", "it"], "", "why is it"),
        (["tiny", "why?"], "", "why?"),
        (["-m", "tiny"], "why\nnot?\n", "why\nnot?\n"),
        (["tiny"], "why?", "why?"),
        ([], "why?", "why?"),
        (["-m", "tiny", "Sum up:", "-"], "a text", "Sum up: a text"),
        (["tiny", "-", "please"], "a text", "a text please"),
    ],
)
def test_one_question(cli: Cli, gateway: Gateway, arguments: list[str], stdin: str, prompt: str) -> None:
    """From the command line, from standard input, or both; the answer is printed, and nothing else."""
    ended = cli("chat", "--gateway", gateway.url, *arguments, stdin=stdin)
    assert (ended.status, ended.out, ended.err) == (0, f"You said: {prompt}\n", "")
    assert gateway.seen[-1].body["model"] == "tiny"


@pytest.mark.parametrize("stdin", ["", " \n", b"\xff"])
def test_a_question_that_is_none(cli: Cli, gateway: Gateway, stdin: str | bytes) -> None:
    """Nothing on standard input, and what is no text, is a mistake."""
    ended = cli("chat", "--gateway", gateway.url, "-m", "tiny", stdin=stdin)
    assert ended.status == 2
    assert ended.err.startswith("Error: the prompt")
    assert not gateway.seen


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "there is no model; 'gleitzeit instances' shows"), (["b", "a"], "which model? There are: a, b")],
)
def test_without_a_model_there_must_be_just_one(cli: Cli, gateway: Gateway, names: list[str], message: str) -> None:
    """None and several are told, and nothing is asked."""
    gateway.on("GET /api/tags", lambda exchange: exchange.json({"models": [{"name": name} for name in names]}))
    ended = cli("chat", "--gateway", gateway.url, stdin="hi")
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err


def test_thinking_is_no_answer(cli: Cli, gateway: Gateway) -> None:
    """That a model thinks is told once, on standard error; what it thinks is not printed."""
    parts = [part("", thinking="hm"), part("", thinking="so"), part("42"), part("", done=True)]
    gateway.on("POST /api/chat", lambda exchange: exchange.lines(*parts))
    ended = cli("chat", "--gateway", gateway.url, "-m", "tiny", "why?")
    assert (ended.out, ended.err) == ("42\n", "thinking ...\n")


@pytest.mark.parametrize("message", [None, 3, {"content": 3}, {"role": "assistant"}, {"tool_calls": [{}]}])
def test_parts_without_text_are_nothing(cli: Cli, gateway: Gateway, message: object) -> None:
    """Whatever else a part holds is passed over."""
    gateway.on("POST /api/chat", lambda exchange: exchange.lines({"message": message}, part("hi", done=True)))
    assert cli("chat", "--gateway", gateway.url, "-m", "tiny", "why?").out == "hi\n"


# -- a conversation


def test_a_conversation_remembers(terminal: Terminals, gateway: Gateway) -> None:
    """Each question goes with what was said before; /clear forgets it but not the system's text; /bye ends."""
    person = terminal("chat", "--gateway", gateway.url, "--system", "Be brief.")
    assert "tiny; /help" in person.read_until(PROMPT)
    person.type("one\n")
    assert "You said: one" in person.read_until(PROMPT)
    person.type("two\n")
    person.read_until(PROMPT)
    assert said(gateway) == ["system: Be brief.", "user: one", "assistant: You said: one", "user: two"]
    person.type("/clear\n")
    assert "forgotten" in person.read_until(PROMPT)
    person.type("three\n")
    person.read_until(PROMPT)
    assert said(gateway) == ["system: Be brief.", "user: three"]
    person.type("/bye\n")
    person.rest()
    assert person.process.wait() == 0


def test_the_end_of_the_input_ends_it(terminal: Terminals, gateway: Gateway) -> None:
    """Ctrl-D is a way to leave."""
    person = terminal("chat", "--gateway", gateway.url, "tiny")
    person.read_until(PROMPT)
    person.type("\x04")
    person.rest()
    assert person.process.wait() == 0


def test_ctrl_c_at_the_prompt_ends_it(terminal: Terminals, gateway: Gateway) -> None:
    """With 130, and no traceback."""
    person = terminal("chat", "--gateway", gateway.url, "tiny")
    person.read_until(PROMPT)
    person.interrupt()
    assert "Traceback" not in person.rest()
    assert person.process.wait() == 130


def test_ctrl_c_stops_an_answer_only(terminal: Terminals, gateway: Gateway) -> None:
    """The connection is closed, the prompt comes back, and what was stopped is not remembered."""
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line(part("Once upon"))
        exchange.wait_until_closed()
        left.set()

    gateway.on("POST /api/chat", answer)
    person = terminal("chat", "--gateway", gateway.url, "tiny")
    person.read_until(PROMPT)
    person.type("a story\n")
    person.read_until("Once upon")
    person.interrupt()
    assert "stopped; it is not remembered" in person.read_until(PROMPT)
    assert left.wait(30)
    gateway.on("POST /api/chat", echo)
    person.type("hi\n")
    person.read_until(PROMPT)
    assert said(gateway) == ["user: hi"]


def test_an_error_does_not_end_a_conversation(terminal: Terminals, gateway: Gateway) -> None:
    """It is told, and the next question is asked as if the failed one had not been."""
    gateway.on("POST /api/chat", lambda exchange: exchange.json({"error": "queue is full"}, 503))
    person = terminal("chat", "--gateway", gateway.url, "tiny")
    person.read_until(PROMPT)
    person.type("one\n")
    assert "Error: queue is full" in person.read_until(PROMPT)
    gateway.on("POST /api/chat", echo)
    person.type("two\n")
    person.read_until(PROMPT)
    assert said(gateway) == ["user: two"]


def test_several_lines_and_none(terminal: Terminals, gateway: Gateway) -> None:
    """Triple quotes hold several lines; an empty line asks nothing; an unknown command is told with those there are."""
    person = terminal("chat", "--gateway", gateway.url, "tiny")
    person.read_until(PROMPT)
    person.type("\n")
    person.read_until(PROMPT)
    person.type("/what\n")
    shown = person.read_until(PROMPT)
    assert "unknown command /what" in shown
    assert "/clear  forget what was said" in shown
    assert not gateway.seen
    person.type('"""one\n')
    person.read_until(r"\.\.\. $")
    person.type('two"""\n')
    person.read_until(PROMPT)
    assert said(gateway) == ["user: one\ntwo"]
    person.type('"""short"""\n')
    person.read_until(PROMPT)
    assert said(gateway)[-1] == "user: short"


def test_a_conversation_in_this_process(terminal: Terminals, local: Path) -> None:
    """Without a gateway the manager lives from the first question to the last; the end cleans up."""
    person = terminal("chat", "--local")
    assert "parrot; /help" in person.read_until(PROMPT)
    for words in ("one two", "three"):
        person.type(f"{words}\n")
        assert words.replace(" ", "! ") + "! " in person.read_until(PROMPT)
    person.type("/bye\n")
    assert "Error" not in person.rest()
    assert person.process.wait() == 0
    assert (local.parent / "notes").read_text() == "destroyed\n"


def test_a_conversation_whose_answers_go_to_a_file(terminal: Terminals, gateway: Gateway, tmp_path: Path) -> None:
    """The prompt does not get among them."""
    with (tmp_path / "answers").open("w") as file:
        person = terminal("chat", "--gateway", gateway.url, "tiny", stdout=file)
        person.read_until(PROMPT)
        person.type("one\n")
        person.read_until(PROMPT)
        person.type("\x04")
        assert person.process.wait() == 0
    assert (tmp_path / "answers").read_text() == "You said: one\n"
