"""What is wrong with a configuration, in words: which line, which key, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dicom_node.config_source import Key, Mistake, Source, dotted

Schema = Mapping[str, Any]


def report(path: Path | None, mistakes: Iterable[Mistake]) -> str:
    """The whole message: how many mistakes and where, then one line each, in the order of the file."""
    ordered = sorted(mistakes, key=lambda mistake: (mistake.line or 0, mistake.variable))
    count = f"{len(ordered)} mistake{'s' if len(ordered) > 1 else ''}"
    head = f"{count} in the configuration {path or '(environment only)'}:"
    return "\n".join([head, *(f"  {mistake}" for mistake in ordered)])


def mistakes_of(error: ValidationError, source: Source, schema: Schema) -> list[Mistake]:
    """pydantic's findings as sentences. `schema` is the JSON schema of the whole model.

    A misspelt key is one mistake: that the right one is missing follows from it and is not told again.
    """
    told = []
    findings = error.errors()
    meant = {_meant(f["loc"], schema) for f in findings if f["type"] == "extra_forbidden"}
    for finding in findings:
        key = tuple(part for part in finding["loc"] if part != "[key]")
        if finding["type"] != "missing" or key not in meant:
            told.append(source.mistake(key, _sentence(finding, key, schema)))
    return told


def _sentence(finding: Any, key: Key, schema: Schema) -> str:
    if finding["type"] == "extra_forbidden":
        return _unknown(key, schema)
    if finding["type"] == "missing":
        return _missing(key, schema)
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    if finding["loc"][-1:] == ("[key]",):
        expected = _at(key[:-1], schema).get("propertyNames", {})
        return f"this name will not do; write {_expected(expected, schema)}"
    return f"{_shown(finding['input'])} will not do; write {_expected(_at(key, schema), schema)}"


def _missing(key: Key, schema: Schema) -> str:
    expected = _at(key, schema)
    example = f", for example {key[-1]}: {expected['examples'][0]}" if expected.get("examples") else ""
    return f"is missing; write {_expected(expected, schema)}{example}"


def _meant(key: Key, schema: Schema) -> Key | None:
    """The known key that an unknown one resembles: first beside it, then in other sections."""
    name = str(key[-1]).lower()
    if near := difflib.get_close_matches(name, _beside(key, schema), n=1, cutoff=0.6):
        return (*key[:-1], near[0])
    elsewhere = {str(path[-1]): path for path in _keys(schema, schema)}
    near = difflib.get_close_matches(name, list(elsewhere), n=1, cutoff=0.75)
    return elsewhere[near[0]] if near else None


def _beside(key: Key, schema: Schema) -> list[str]:
    return list(_at(key[:-1], schema).get("properties", {}))


def _unknown(key: Key, schema: Schema) -> str:
    meant = _meant(key, schema)
    if meant is None:
        return f"unknown key; there is {', '.join(_beside(key, schema))}"
    same_section = meant[:-1] == key[:-1]
    return f"unknown key; did you mean {meant[-1] if same_section else dotted(meant)}?"


def _shown(value: Any) -> str:
    """The value as the person wrote it, shortened."""
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "an empty entry"
    text = repr(str(value))
    return text if len(text) <= 60 else f"{text[:57]}…'"


def _expected(expected: Schema, schema: Schema) -> str:
    """What may stand there."""
    expected = _resolved(expected, schema)
    if "write" in expected:
        return str(expected["write"])
    if "enum" in expected:
        return " or ".join(", ".join(map(str, expected["enum"])).rsplit(", ", 1))
    kind = expected.get("type", "")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(expected)
    if kind == "array":
        return f"a list, such as [{_expected(expected.get('items', {}), schema)}]"
    if kind == "object":
        keys = ", ".join(expected.get("properties", {}))
        return f"a section with the keys {keys}" if keys else "a section of `name: value` lines"
    if kind == "string" and "maxLength" in expected:
        return f"text of at most {expected['maxLength']} characters"
    return {"boolean": "true or false", "string": "text"}.get(kind, "another value")


def _bounds(expected: Schema) -> str:
    low, high = expected.get("minimum"), expected.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if high < 1e6 else f" from {low} to {high}"
    if low is not None:
        return f" of at least {low:g}"
    return f" above {expected['exclusiveMinimum']:g}" if "exclusiveMinimum" in expected else ""


def _resolved(part: Schema, schema: Schema) -> Schema:
    """`part` itself: references followed, and of 'X or nothing' the X. Its own hints win."""
    while True:
        if "$ref" in part:
            target = schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        elif "anyOf" in part:
            target = next(choice for choice in part["anyOf"] if choice.get("type") != "null")
        else:
            return part
        part = {**target, **{name: value for name, value in part.items() if name not in ("$ref", "anyOf")}}


def _at(key: Key, schema: Schema) -> Schema:
    """The schema of the value at `key`; empty where the model does not say."""
    part = schema
    for step in key:
        part = _resolved(part, schema)
        if isinstance(step, int):
            part = part.get("items", {})
        else:
            part = part.get("properties", {}).get(step) or _any_named(part) or {}
    return _resolved(part, schema)


def _keys(part: Schema, schema: Schema, at: Key = ()) -> Iterator[Key]:
    """Every key of the model, sections too; NAME stands for a destination's own name."""
    part = _resolved(part, schema)
    for name, inner in part.get("properties", {}).items():
        yield (*at, name)
        yield from _keys(inner, schema, (*at, name))
    if named := _any_named(part):
        yield from _keys(named, schema, (*at, "NAME"))


def _any_named(part: Schema) -> Schema | None:
    """The schema of entries whose names a site chooses, such as destinations."""
    patterns = list(part.get("patternProperties", {}).values())
    inner = patterns[0] if patterns else part.get("additionalProperties")
    return inner if isinstance(inner, dict) else None
