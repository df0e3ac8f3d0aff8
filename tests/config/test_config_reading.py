from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gleitzeit_core.config_reading import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_VALUES,
    PROGRAM_VARIABLES,
    RawConfiguration,
    find_configuration,
    read_configuration,
)
from gleitzeit_core.errors import ConfigurationError, Problem


def read(text: str | bytes, folder: Path, **environ: str) -> RawConfiguration:
    """Read a file with this content."""
    path = folder / "gleitzeit.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_configuration(path, environ=environ)


def problem_of(text: str | bytes, folder: Path) -> Problem:
    """The one problem of a file that cannot be read."""
    with pytest.raises(ConfigurationError) as caught:
        read(text, folder)
    (problem,) = caught.value.problems
    return problem


# -- finding


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_nothing_is_found_where_nothing_is(home: Path) -> None:
    """That is no error: defaults make every section optional."""
    assert find_configuration(None, {"HOME": str(home)}) is None


def test_the_order_of_places(home: Path) -> None:
    """`--config`, then $GLEITZEIT_CONFIG, then the working directory, then the user's directory."""
    user = home / ".config" / "gleitzeit" / "gleitzeit.yaml"
    user.parent.mkdir(parents=True)
    user.touch()
    environ = {"HOME": str(home)}
    assert find_configuration(None, environ) == user
    Path("gleitzeit.yaml").touch()
    assert find_configuration(None, environ) == Path("gleitzeit.yaml")
    for name in ("a.yaml", "b.yaml"):
        (home / name).touch()
    environ["GLEITZEIT_CONFIG"] = str(home / "a.yaml")
    assert find_configuration(None, environ) == home / "a.yaml"
    assert find_configuration(home / "b.yaml", environ) == home / "b.yaml"


def test_the_users_directory_follows_xdg(home: Path) -> None:
    """$XDG_CONFIG_HOME goes before ~/.config; a folder of the file's name is no file."""
    user = home / "xdg" / "gleitzeit" / "gleitzeit.yaml"
    user.mkdir(parents=True)
    environ = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "xdg")}
    assert find_configuration(None, environ) is None
    user.rmdir()
    user.touch()
    assert find_configuration(None, environ) == user


@pytest.mark.parametrize("by", ["--config", "GLEITZEIT_CONFIG"])
def test_a_file_that_was_asked_for_must_be_there(home: Path, by: str) -> None:
    """The problem names who asked for it."""
    missing = home / "missing.yaml"
    explicit, environ = (missing, {}) if by == "--config" else (None, {"GLEITZEIT_CONFIG": str(missing)})
    with pytest.raises(ConfigurationError) as caught:
        find_configuration(explicit, environ)
    assert str(caught.value.problems[0]) == f"{by}: no such file: {missing}"


@pytest.mark.parametrize("path", ["nul\0.yaml", "~no-such-user-anywhere/x.yaml", "x" * 5000])
def test_an_impossible_path_is_a_missing_file(home: Path, path: str) -> None:
    """Not a traceback."""
    with pytest.raises(ConfigurationError, match="no such file"):
        find_configuration(Path(path), {"HOME": str(home)})
    with pytest.raises(ConfigurationError, match=r"no such file|cannot be read"):
        read_configuration(Path(path), environ={})


# -- files


def test_every_value_has_its_place(tmp_path: Path) -> None:
    """File and line of the key or item; what is missing has the place of its parent."""
    raw = read("hubs:\n  lan:\n    instances:\n    - url: a\n    - {url: b}\nroutes: []\n", tmp_path)
    file = tmp_path / "gleitzeit.yaml"
    assert raw.place(("hubs", "lan")) == f"{file}:2"
    assert raw.place(("hubs", "lan", "instances", 1, "url")) == f"{file}:5"
    assert raw.place(("hubs", "lan", "type")) == f"{file}:2"
    assert raw.place(("routes",)) == f"{file}:6"
    assert raw.place(("store",)) == str(file)
    assert (raw.base_dir, raw.source) == (tmp_path, file)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_empty_configuration(tmp_path: Path, text: str | bytes) -> None:
    """So is one with only comments, or with a byte order mark."""
    raw = read(text, tmp_path)
    assert raw.data == {}
    assert raw.problems == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-5", -5),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("&x [1]\nw: *x", [1]),
    ],
)
def test_scalars_are_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    """Only what looks like a number or true and false is one; keys are always text."""
    assert read(f"v: {text}", tmp_path).data["v"] == value
    assert read("1: a\non: b", tmp_path).data == {"1": "a", "on": "b"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\n\tb: 2", 2, "found character '\\t'"),
        ("a: [1\nb: 2", 2, "expected ',' or ']'"),
        ("a: 'x", 1, "found unexpected end of stream"),
        ("a: b: c", 1, "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", 2, "but found another document"),
        ("[1, 2]", 1, "must be a mapping of sections"),
        ("just text", 1, "must be a mapping of sections"),
        ("a: 1\nb: \x01", 2, "a control character is not allowed"),
        (b"a: 1\nb: \xff", 2, "not UTF-8"),
        ("%YAML 9.1\n---\na: 1", 1, "found incompatible YAML document"),
        ("a: *b", 1, "found undefined alias ..."),
    ],
)
def test_what_is_no_yaml_is_one_problem_with_its_line(
    tmp_path: Path, text: str | bytes, line: int, message: str
) -> None:
    """And nothing is checked further."""
    problem = problem_of(text, tmp_path)
    assert problem.place == f"{tmp_path / 'gleitzeit.yaml'}:{line}"
    assert problem.message.startswith(message)


def test_tabs_have_a_suggestion(tmp_path: Path) -> None:
    """They are the most common mistake of this kind."""
    assert problem_of("a:\n\t- 1", tmp_path).suggestion == "indent with spaces, not tabs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a: "\\UFFFFFFFF"', "not YAML: a number is too large"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} levels deep"),
        ("a: &x [*x]", f"nested more than {MAX_DEPTH} levels deep"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcde", "bcdef", strict=True)),
            f"more than {MAX_VALUES} values",
        ),
        ("#" * (MAX_FILE_BYTES + 1), f"larger than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_what_is_too_much_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Deep nesting, aliases that unfold without end, and huge files."""
    assert problem_of(text, tmp_path).message == message


def test_mistakes_of_form_do_not_end_the_reading(tmp_path: Path) -> None:
    """Each has its path and place; the rest of the file is there."""
    raw = read(
        "a: 1\nb: {c: 1, c: 2}\nd: !!python/object:os.system x\ne: 1%s\n? [f]\n: 2\na: 3" % ("0" * 5000), tmp_path
    )
    file = tmp_path / "gleitzeit.yaml"
    assert [str(problem) for problem in raw.problems] == [
        f"{file}:2: b.c: given twice, first at {file}:2",
        f"{file}:3: d: tags such as !name are not allowed",
        f"{file}:4: e: not a value of the kind int",
        f"{file}:5: a key must be text",
        f"{file}:7: a: given twice, first at {file}:1",
    ]
    assert raw.data == {"a": 1, "b": {"c": 1}, "d": None, "e": None}


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """Neither a folder, nor a pipe that would never end, nor what is not there."""
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path, "not a regular file"), (tmp_path / "pipe", "not a regular file")):
        with pytest.raises(ConfigurationError, match=message):
            read_configuration(path, environ={})
    with pytest.raises(ConfigurationError, match="no such file"):
        read_configuration(tmp_path / "missing", environ={})


def test_messages_about_form_quote_nothing(tmp_path: Path) -> None:
    """A password that is not quoted must not end up in a log."""
    for text in (
        "password: *hunter2",
        "password: !hunter2 x",
        "password: 'hunter2",
        "password: %hunter2 @",
        "[hunter2",
    ):
        try:
            told = [str(problem) for problem in read(text, tmp_path).problems]
        except ConfigurationError as error:
            told = [str(error)]
        assert told
        assert "hunter2" not in "".join(told)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Nothing but a configuration or a `ConfigurationError` comes of a file."""
    folder = tmp_path_factory.getbasetemp()
    with suppress(ConfigurationError):
        assert isinstance(read(content, folder).data, dict)


# -- environment and flags


def test_without_a_file_there_is_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are then relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    raw = read_configuration(None, environ={"GLEITZEIT_GATEWAY__PORT": "9000", "HOME": "/"})
    assert raw.data == {"gateway": {"port": 9000}}
    assert raw.place(("gateway", "port")) == "GLEITZEIT_GATEWAY__PORT"
    assert (raw.source, raw.base_dir) == (None, tmp_path)


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    """Mappings are merged, everything else is replaced, and each value keeps its own place."""
    path = tmp_path / "c.yaml"
    path.write_text("gateway:\n  host: file\n  port: 1\n  keys: [file, more]\n  tls: {cert: file}\n")
    raw = read_configuration(
        path,
        environ={"GLEITZEIT_GATEWAY__PORT": "2", "GLEITZEIT_GATEWAY__KEYS": "[env]", "GLEITZEIT_GATEWAY__TLS": "off"},
        overrides={"gateway": {"port": 3, "host": None, "paths": ("a",)}, "hubs": {"x": None}, "store": {}},
    )
    assert raw.data == {
        "gateway": {"host": "file", "port": 3, "keys": ["env"], "tls": "off", "paths": ["a"]},
        "store": {},
    }
    assert raw.place(("gateway", "host")) == f"{path}:2"
    assert raw.place(("gateway", "port")) == "flags"
    assert raw.place(("gateway", "keys", 1)) == "GLEITZEIT_GATEWAY__KEYS"
    assert raw.place(("gateway", "tls", "cert")) == "GLEITZEIT_GATEWAY__TLS"


def test_an_override_may_be_a_function(tmp_path: Path) -> None:
    """It makes the new value out of the one there is, or of None; when the file is read again, out of the new one."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text("routes: [a]\n")
    overrides = {"routes": lambda routes: [*routes, "b"], "other": lambda other: [other]}
    raw = read_configuration(file, environ={}, overrides=overrides)
    assert raw.data == {"routes": ["a", "b"], "other": [None]}
    assert raw.place(("routes", 1)) == "flags"
    file.write_text("routes: [c]\n")
    assert raw.again().data == {"routes": ["c", "b"], "other": [None]}


def test_overrides_do_not_change_what_was_passed() -> None:
    """The caller's mapping is copied."""
    mine = {"gateway": {"port": 3}}
    raw = read_configuration(None, environ={"GLEITZEIT_GATEWAY__HOST": "x"}, overrides=mine)
    assert raw.data["gateway"] == {"host": "x", "port": 3}
    assert mine == {"gateway": {"port": 3}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9000", 9000),
        ("true", True),
        ("null", None),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("'5'", "5"),
        ("*x", "*x"),
        ("pa #ss", "pa #ss"),
        ("a: b", "a: b"),
        ("# x", "# x"),
        ("- a", "- a"),
        ("'open", "'open"),
        ("http://gpu1:11434", "http://gpu1:11434"),
    ],
)
def test_a_variable_is_a_scalar_or_in_brackets(text: str, value: object) -> None:
    """What is no YAML scalar is text: passwords are full of special characters."""
    assert read_configuration(None, environ={"GLEITZEIT_A__B": text}).data == {"a": {"b": value}}


def test_a_variables_name_finds_keys_in_any_spelling(tmp_path: Path) -> None:
    """Case does not count, an underscore may stand for a hyphen, and a key that is new is lower case."""
    raw = read("hubs: {My-Lan: {type: x}}", tmp_path, gleitzeit_HUBS__MY_LAN__Type="y", GLEITZEIT_HUBS__NEW__TYPE="z")
    assert raw.data == {"hubs": {"My-Lan": {"type": "y"}, "new": {"type": "z"}}}


def test_variables_that_set_nothing() -> None:
    """Those for programs, those of others, and empty ones."""
    environ = dict.fromkeys(PROGRAM_VARIABLES, "x") | {"PATH": "x", "GLEITZEITX": "1", "GLEITZEIT_GATEWAY__PORT": ""}
    assert read_configuration(None, environ=environ).data == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("GLEITZEIT_GATEWAY____PORT", "1", "not the name of a setting"),
        ("GLEITZEIT_", "1", "not the name of a setting"),
        ("GLEITZEIT_" + "A__" * MAX_DEPTH + "A", "1", "not the name of a setting"),
        ("GLEITZEIT_A__KEYS", "[hunter2", "expected ',' or ']'"),
        ("GLEITZEIT_A__KEYS", "[!hunter2 x]", "tags such as !name are not allowed"),
        ("GLEITZEIT_A__KEYS", "{a: 1, a: 2}", "given twice"),
    ],
)
def test_a_variable_that_cannot_be_used_is_a_problem(name: str, text: str, message: str) -> None:
    """Its place is its name; its value is not shown; the others count."""
    raw = read_configuration(None, environ={name: text, "GLEITZEIT_B": "1"})
    (problem,) = raw.problems
    assert problem.place == name
    assert problem.message.startswith(message)
    assert "hunter2" not in str(problem)
    assert raw.data == {"b": 1}


# -- what the plugin host needs before anything is checked


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    """An absolute path stays, and ~ is the home directory."""
    raw = read("plugins: {disabled: [x], files: [./my_hub.py, /abs.py, ~/home.py]}", tmp_path)
    assert raw.plugins.disabled == ["x"]
    assert raw.plugins.files == [tmp_path / "my_hub.py", Path("/abs.py"), Path("~/home.py").expanduser()]


@pytest.mark.parametrize("text", ["plugins: 5", "plugins:", "plugins: {disabled: x, files: {a: b}}", "plugins: []"])
def test_a_malformed_plugins_section_disables_nothing(tmp_path: Path, text: str) -> None:
    """It is reported later, together with all other problems."""
    plugins = read(text, tmp_path).plugins
    assert (plugins.disabled, plugins.files) == ([], [])


def test_no_secret_in_a_repr(tmp_path: Path) -> None:
    """A raw configuration may be logged."""
    assert "hunter2" not in repr(read("gateway: {keys: [hunter2]}", tmp_path))
