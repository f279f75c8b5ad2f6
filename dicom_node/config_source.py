"""Where settings come from: a YAML file and environment variables, and the place of every value.

Values stay as written until a model gives them a type: an AE title `12345` or `NO` is text, not a number
or a boolean. `Plain` marks what was written without quotes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT_PREFIX = "DICOM_NODE__"
NULL_TAG = "tag:yaml.org,2002:null"
STRING_TAG = "tag:yaml.org,2002:str"

Key = tuple[str | int, ...]


class ConfigError(Exception):
    """The configuration cannot be used; the text is complete, one line for each mistake."""


class Plain(str):
    """Text written without quotes: YAML's own rules may read it as a number, a boolean or a date."""

    __slots__ = ()

    def typed(self) -> Any:
        """What YAML takes it for."""
        return yaml.safe_load(self)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to put right. `line` is None where no line can be named; `variable` if it came from there."""

    key: str
    text: str
    line: int | None = None
    variable: str = ""

    def __str__(self) -> str:
        place = self.variable or (f"line {self.line}" if self.line else "")
        return f"{place + ': ' if place else ''}{self.key + ': ' if self.key else ''}{self.text}"


@dataclass(slots=True)
class Source:
    """Raw values and their places, by key path. Keys without a value are left out: their defaults hold."""

    path: Path | None
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    variables: dict[Key, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def mistake(self, key: Key, text: str) -> Mistake:
        """`text` about `key`, at its line or variable; a key that is absent is placed at its section."""
        for depth in range(len(key), 0, -1):
            place = key[:depth]
            if place in self.variables:
                return Mistake(dotted(key), text, variable=self.variables[place])
            if place in self.lines:
                return Mistake(dotted(key), text, line=self.lines[place])
        return Mistake(dotted(key), text)


def dotted(key: Key) -> str:
    """`("node", "accept_from", 0, "address")` as people write it: `node.accept_from[0].address`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def read(path: Path | None, environ: Mapping[str, str]) -> Source:
    """The values of the file, then those of the environment over them.

    Raises ConfigError when the file is missing, unreadable, no YAML, or no mapping of sections.
    """
    source = Source(path)
    if path is not None:
        root = _compose(_text(path), path)
        if root is not None:
            source.values = _Reader(source).mapping(root, ())
    for name in sorted(environ):
        if name.upper().startswith(ENVIRONMENT_PREFIX):
            _override(source, name, environ[name])
    return source


def _text(path: Path) -> str:
    """The file's text; an absent or unreadable file is one sentence."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {path}. Write one with `dicom-node init`, "
            "or name another with --config."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); check the file and its rights."
        ) from None


def _compose(text: str, path: Path) -> yaml.MappingNode | None:
    """The file as YAML nodes, which know their lines; None for an empty file."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path} is not valid YAML{place}: {error.problem or error.context}. "
            "Indent with spaces, and write `key: value` with a space after the colon."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if root is None or root.tag == NULL_TAG:
        return None
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{path} holds {kind}, but must hold sections such as `node:` and `storage:`.")
    return root


class _Reader:
    """YAML nodes → plain values, noting lines, double keys and keys that are no text in `source`."""

    def __init__(self, source: Source, variable: str = "") -> None:
        self.source = source
        self.variable = variable
        self.open: set[int] = set()  # nodes being read, so that an alias to its own parent ends

    def mapping(self, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._mistake(at, line, "a key must be a word")
                continue
            name = key_node.value
            if name in first:
                self._mistake((*at, name), line, f"written twice, first in line {first[name]}; keep one")
                continue
            first[name] = line
            if not self.variable:
                self.source.lines[*at, name] = line
            if value_node.tag != NULL_TAG:
                values[name] = self.value(value_node, (*at, name))
        return values

    def value(self, node: yaml.Node, at: Key) -> Any:
        if isinstance(node, yaml.ScalarNode):
            quoted = node.style is not None or node.tag == STRING_TAG
            return node.value if quoted else Plain(node.value)
        if id(node) in self.open:
            self._mistake(at, node.start_mark.line + 1, "refers to itself by an alias (*)")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, at)
            return [self._item(item, (*at, index)) for index, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def _item(self, node: yaml.Node, at: Key) -> Any:
        if not self.variable:
            self.source.lines[at] = node.start_mark.line + 1
        return None if node.tag == NULL_TAG else self.value(node, at)

    def _mistake(self, at: Key, line: int, text: str) -> None:
        place = None if self.variable else line
        self.source.mistakes.append(Mistake(dotted(at), text, line=place, variable=self.variable))


def _override(source: Source, name: str, text: str) -> None:
    """Put one variable's value in its place, over the file's.

    The parts of the name are matched without regard to case; a destination that the file does not name
    keeps the spelling of the variable. A value that opens with `[` or `{` is a list or a mapping.
    """
    parts = name[len(ENVIRONMENT_PREFIX) :].split("__")
    if not all(parts):
        source.mistakes.append(Mistake("", "write DICOM_NODE__SECTION__KEY", variable=name))
        return
    section = source.values
    key: Key = ()
    for part in parts[:-1]:
        key = (*key, _matching(section, part, key))
        inner = section.setdefault(str(key[-1]), {})
        if not isinstance(inner, dict):
            source.mistakes.append(Mistake(dotted(key), "is no section in the file", variable=name))
            return
        section = inner
    key = (*key, _matching(section, parts[-1], key))
    value = _parsed(source, name, text, key)
    if value is not None:
        section[str(key[-1])] = value
        source.variables[key] = name


def _matching(section: Iterable[Hashable], part: str, at: Key) -> str:
    """The key of `section` that a part of a variable's name means."""
    for key in section:
        if str(key).casefold() == part.casefold():
            return str(key)
    return part if at == ("destinations",) else part.lower()


def _parsed(source: Source, name: str, text: str, key: Key) -> Any:
    """A variable's value: lists and mappings as YAML (so JSON too), everything else as it stands."""
    if not text.lstrip().startswith(("[", "{")):
        return Plain(text)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        source.mistakes.append(Mistake(dotted(key), "is neither valid JSON nor YAML", variable=name))
        return None
    return None if node is None else _Reader(source, variable=name).value(node, key)
