"""Where a configuration comes from: file, environment and flags, each value with its place. Only form is checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict

from gleitzeit_core.errors import ConfigurationError, Problem

FILE_NAME: Final = "gleitzeit.yaml"
ENVIRONMENT_PREFIX: Final = "GLEITZEIT_"
_PROGRAMS: Final = ("CI_RUN", "CONFIG", "DEBUG", "FULL_SIZE", "KEY", "LOG", "LOG_FORMAT", "LOG_LEVEL", "REQUIRE_ALL")
PROGRAM_VARIABLES: Final = frozenset(ENVIRONMENT_PREFIX + name for name in _PROGRAMS)
"""Environment variables for the programs themselves, which are no part of a configuration."""

MAX_FILE_BYTES: Final = 1 << 20
MAX_VALUES: Final = 100_000
"""Also bounds what aliases can unfold to."""
MAX_DEPTH: Final = 32

ConfigPath = tuple[str | int, ...]
"""Keys and positions from the top: ``("routes", 0, "hubs")``."""


class PluginsSection(BaseModel):
    """The section ``plugins``.

    Args:
        disabled: Names of plugins, or of distributions, that are not even imported.
        files: Single-file plugins; relative to the configuration file's folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    disabled: list[str] = []
    files: list[Path] = []


@dataclass(frozen=True, slots=True)
class RawConfiguration:
    """What was read: well-formed, but not checked.

    Args:
        data: File, environment and flags merged. May hold secrets.
        places: Where values come from; one that is missing comes from where its parent does.
        base_dir: What relative paths are relative to: the file's folder, or the working directory.
        source: The file; None when there is none.
        problems: Mistakes of form that did not end the reading, reported with all others.
        environ: What it was read with, to read it again.
        overrides: Likewise.
    """

    data: Mapping[str, Any] = field(repr=False)
    places: Mapping[ConfigPath, str] = field(repr=False)
    base_dir: Path
    source: Path | None = None
    problems: tuple[Problem, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    overrides: Mapping[str, Any] | None = field(default=None, repr=False)

    def again(self) -> RawConfiguration:
        """Read anew from the same file, or one that is there by now, under the same environment and flags.

        Raises:
            ConfigurationError: The file cannot be read, or is no YAML.
        """
        path = self.source or find_configuration(None, self.environ)
        return read_configuration(path, environ=self.environ, overrides=self.overrides)

    @property
    def plugins(self) -> PluginsSection:
        """What the plugin host needs. Anything malformed is left out: `check_configuration` reports it."""
        section = self.data.get("plugins")
        given = [section.get(key) if isinstance(section, Mapping) else None for key in ("disabled", "files")]
        disabled, files = ([it for it in v if isinstance(it, str)] if isinstance(v, list) else [] for v in given)
        return PluginsSection(disabled=disabled, files=[self.base_dir / _expanded(text) for text in files])

    def place(self, path: ConfigPath) -> str:
        """File and line, environment variable or ``flags``; empty when unknown."""
        known = (self.places.get(path[:length]) for length in range(len(path), -1, -1))
        return next((place for place in known if place), "")


def find_configuration(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file to use: `explicit`, ``$GLEITZEIT_CONFIG``, the one here, the user's; None for none.

    Raises:
        ConfigurationError: One that was asked for by `explicit` or the environment is not there.
    """
    for asked, place in ((explicit, "--config"), (environ.get("GLEITZEIT_CONFIG"), "GLEITZEIT_CONFIG")):
        if asked:
            path = _expanded(asked)
            if not os.path.isfile(path):  # noqa: PTH113 - False for impossible paths, too
                raise ConfigurationError([Problem("", f"no such file: {path}", place=place)])
            return path
    folder = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '~'}/.config"
    usual = (Path(FILE_NAME), _expanded(folder) / "gleitzeit" / FILE_NAME)
    return next((path for path in usual if os.path.isfile(path)), None)  # noqa: PTH113


def read_configuration(
    path: Path | None, *, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None
) -> RawConfiguration:
    """Read a configuration; the environment goes before the file, and flags before both.

    Args:
        path: The file; None for none.
        environ: ``GLEITZEIT_GATEWAY__PORT=9000`` sets ``gateway.port``. Values are YAML scalars, or lists and
            mappings in brackets; an empty one counts as not given.
        overrides: Flags, nested as in a file; a flag that is None was not given, and one that is a function makes the
            new value out of the one there is, or of None.

    Raises:
        ConfigurationError: The file cannot be read, or is no YAML.
    """
    reader = _Reader(str(path or ""))
    data = {} if path is None else reader.read(_text_of(path))
    places, problems = reader.places, reader.problems
    for name in sorted(environ, key=lambda name: (name.count("__"), name)):
        upper = name.upper()
        if upper.startswith(ENVIRONMENT_PREFIX) and upper not in PROGRAM_VARIABLES and environ[name]:
            try:
                _merge(data, _from_variable(name, environ[name], data), places, name)
            except ConfigurationError as error:
                problems += (replace(problem, place=name) for problem in error.problems)
    _merge(data, _given(overrides or {}), places, "flags")
    base_dir = path.absolute().parent if path else Path.cwd()
    return RawConfiguration(data, places, base_dir, path, tuple(problems), environ, overrides)


class _Reader:
    """Turns YAML into plain data, and remembers on which line each value stands; `name` is the file's, for places."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[ConfigPath, str] = {(): name}
        self.problems: list[Problem] = []
        self._left = MAX_VALUES

    def read(self, text: str) -> dict[str, Any]:
        """The mapping that is in a file; an empty file is an empty one."""
        node = self.compose(text)
        data = None if node is None else self.value(node, ())
        if not isinstance(data, dict | None):
            raise ConfigurationError([Problem("", "must be a mapping of sections", place=self._at(node))])
        return data or {}

    def compose(self, text: str) -> yaml.Node | None:
        """Parse. Messages quote nothing of the text, which may hold secrets."""
        message, hint, place = "not YAML", "", self.name
        try:
            return yaml.compose(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = re.sub(r"'[\w!][^']*'", "...", error.problem or message)
            hint = "indent with spaces, not tabs" if r"'\t'" in message else ""
            place = self._line(mark.line) if mark else place
        except yaml.reader.ReaderError as error:
            message = "a control character is not allowed"
            place = self._line(text.count("\n", 0, error.position))
        except RecursionError:
            message = "nested too deeply"
        except (ValueError, OverflowError):  # of an escape or a version with too large a number
            message = "not YAML: a number is too large"
        raise ConfigurationError([Problem("", message, hint, place)])

    def value(self, node: yaml.Node, path: ConfigPath) -> Any:  # noqa: ANN401 - any YAML
        """Plain data: dicts with text as keys, lists, text, numbers, true, false, None."""
        self._left -= 1
        if self._left < 0:
            raise ConfigurationError([Problem("", f"more than {MAX_VALUES} values", place=self.name)])
        if len(path) > MAX_DEPTH:
            raise ConfigurationError([Problem("", f"nested more than {MAX_DEPTH} levels deep", place=self.name)])
        self.places.setdefault(path, self._at(node))
        if node.tag not in _TAGS:
            self._problem(path, node, "tags such as !name are not allowed")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, n)) for n, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.style:
            return node.value
        try:
            return _scalar(node.value)
        except ValueError:  # so many digits that Python refuses them
            self._problem(path, node, "not a value of the kind int")
            return None

    def _mapping(self, node: yaml.MappingNode, path: ConfigPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, key_node, "a key must be text")
                continue
            here = (*path, key_node.value)
            if key_node.value in result:
                self._problem(here, key_node, f"given twice, first at {self.places[here] or 'above'}")
                continue
            self.places[here] = self._at(key_node)
            result[key_node.value] = self.value(value_node, here)
        return result

    def _problem(self, path: ConfigPath, node: yaml.Node, message: str) -> None:
        self.problems.append(Problem(path_text(path), message, place=self._at(node)))

    def _at(self, node: yaml.Node | None) -> str:
        return self._line(node.start_mark.line) if node else self.name

    def _line(self, line: int) -> str:
        return f"{self.name}:{line + 1}" if self.name else ""


def path_text(path: ConfigPath) -> str:
    """As a person writes it: ``hubs.lan.instances[0].url``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


_TAGS: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str"))
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE)


def _scalar(text: str) -> str | float | bool | None:
    """What is not quoted, by YAML 1.2's core schema: ``no``, ``12:30`` and dates are text, as people expect."""
    if text.lower() in ("", "~", "null", "true", "false"):
        return {"true": True, "false": False}.get(text.lower())
    if _INT.fullmatch(text):
        return int(text, 0 if text[1:2] in ("o", "x") else 10)
    return float(re.sub(r"\.(?=[in])", "", text.lower())) if _FLOAT.fullmatch(text) else text


def _text_of(path: Path) -> str:
    """The whole file, if it is one and not too large."""
    place, content = str(path), b""
    try:
        if path.is_file():  # reading a pipe or a device might never end
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) <= MAX_FILE_BYTES:
                return content.decode("utf-8")
        message = "not a regular file" if path.exists() else "no such file"
        message = f"larger than {MAX_FILE_BYTES} bytes" if content else message
    except UnicodeDecodeError as error:
        message, place = "not UTF-8", f"{path}:{content.count(10, 0, error.start) + 1}"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    raise ConfigurationError([Problem("", message, place=place)])


def _from_variable(name: str, text: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What one environment variable sets. Its case does not count, and ``_`` may stand for ``-``."""
    parts = name[len(ENVIRONMENT_PREFIX) :].lower().split("__")
    if not all(parts) or len(parts) > MAX_DEPTH:
        form = f"{ENVIRONMENT_PREFIX}SECTION__KEY"
        raise ConfigurationError([Problem("", "not the name of a setting", f"the form is {form}")])
    keys: list[str] = []
    at: Any = data
    for part in parts:
        known = at if isinstance(at, Mapping) else {}
        keys.append(next((k for k in known if k.lower().replace("-", "_") == part), part))
        at = known.get(keys[-1])
    value = parse_value(text, tuple(keys))
    return {keys[0]: reduce(lambda inner, key: {key: inner}, reversed(keys[1:]), value)}


def parse_value(text: str, path: ConfigPath) -> Any:  # noqa: ANN401 - any YAML
    """A scalar, or a list or mapping in brackets. Anything else is text: passwords are full of special characters.

    Raises:
        ConfigurationError: What is in brackets cannot be read.
    """
    reader, brackets = _Reader(""), text.lstrip()[0:1] in ("[", "{")
    try:
        node = reader.compose(text)
    except ConfigurationError as error:
        if not brackets:
            return text
        raise ConfigurationError([replace(p, path=path_text(path)) for p in error.problems]) from None
    scalar = isinstance(node, yaml.ScalarNode) and (node.style or node.value == text.strip())
    if node is None or not (scalar or brackets):
        return text
    value = reader.value(node, path)
    if reader.problems:
        raise ConfigurationError(reader.problems)
    return value


def _merge(
    data: dict[str, Any], overlay: Mapping[str, Any], places: dict[ConfigPath, str], place: str, path: ConfigPath = ()
) -> None:
    """Lay `overlay` over `data`: mappings are merged, everything else is replaced."""
    for key, given in overlay.items():
        here = (*path, key)
        old = data.get(key)
        value = given(old) if callable(given) else given
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value, places, place, here)
            continue
        for stale in [known for known in places if known[: len(here)] == here]:
            del places[stale]
        places[here] = place
        data[key] = value


def _given(value: Any) -> Any:  # noqa: ANN401 - any data
    """Plain data of what was given: no None in mappings, nor mappings that hold nothing else."""
    if isinstance(value, Mapping):
        items = {str(k): _given(v) for k, v in value.items() if v is not None}
        return {k: v for k, v in items.items() if v != {} or not value[k]}
    return [_given(item) for item in value] if isinstance(value, list | tuple) else value


def _expanded(path: str | Path) -> Path:
    """With ``~`` replaced, where there is such a home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `Path.expanduser` raises where there is none
