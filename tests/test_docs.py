"""What a user reads says everything that there is, and nothing that there is not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from quick_correction import coarse_head

from dicom_node.config import Settings, template
from dicom_node.log import KEYS as LOG_KEYS
from dicom_node.nifti import write_volumes
from rules.reasons import Code
from rules.site import FACT_NAMES

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------ configuration

SCHEMA = Settings.model_json_schema()
MISSING = object()


def resolved(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """References followed, and of 'X or nothing' the X."""
    while "$ref" in part or "anyOf" in part:
        if "$ref" in part:
            part = SCHEMA["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        else:
            part = next(choice for choice in part["anyOf"] if choice.get("type") != "null")
    return part


def keys(part: Mapping[str, Any] = SCHEMA, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its default, MISSING where it has none or is a section."""
    part = resolved(part)
    for name, inner in part.get("properties", {}).items():
        target = resolved(inner)
        section = bool(target.get("properties"))
        if at:
            yield at + name, MISSING if section else inner.get("default", MISSING)
        yield from keys(inner, f"{at}{name}.")
    for inner in part.get("patternProperties", {}).values():
        yield from keys(inner, f"{at}NAME.")
    if part.get("type") == "array":
        yield from keys(part["items"], at)


KEYS_AND_DEFAULTS = dict(keys())


def test_the_walk_finds_keys_at_every_depth() -> None:
    assert KEYS_AND_DEFAULTS["node.port"] == 11112
    assert KEYS_AND_DEFAULTS["derive.companions.qc"] is False
    assert "destinations.NAME.tls.ca" in KEYS_AND_DEFAULTS
    assert "rules.overrides.then" in KEYS_AND_DEFAULTS
    assert len(KEYS_AND_DEFAULTS) > 60


def rows() -> dict[str, str]:
    """The tables of docs/configuration.md: key → default as written."""
    found = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", text_of("configuration.md"), flags=re.MULTILINE)
    return {key: default.strip().strip("`") for key, default in found}


def test_every_key_is_in_the_configuration_docs_and_no_other() -> None:
    assert set(rows()) == set(KEYS_AND_DEFAULTS)


@pytest.mark.parametrize("key", sorted(KEYS_AND_DEFAULTS))
def test_the_default_in_the_docs_is_the_models(key: str) -> None:
    default, told = KEYS_AND_DEFAULTS[key], rows()[key]
    if default is MISSING:
        assert told in ("required", "", "none", "{}")
    elif default is None:
        assert told in ("none", "any")
    elif key == "storage.min_free_bytes":
        assert told == f"{default // 2**30} GiB"
    elif isinstance(default, bool):
        assert told == str(default).lower()
    elif isinstance(default, int | float):
        assert float(told) == default
    elif isinstance(default, list):
        assert told == "[]"
    else:
        assert told.strip('"') == default


@pytest.mark.parametrize("key", sorted(KEYS_AND_DEFAULTS))
def test_every_key_stands_in_the_template(key: str) -> None:
    section, *_, name = key.split(".")
    within = re.search(rf"^{section}:\n(.*?)(?=^\w|\Z)", template(), flags=re.MULTILINE | re.DOTALL)
    assert within, f"no section {section} in dicom_node/config.yaml"
    assert re.search(rf"[\s{{#-]{name}:", within[1]), f"{name} is missing under {section}"


def test_the_template_in_the_repository_is_the_one_that_init_writes() -> None:
    assert (REPOSITORY / "config.yaml").read_text(encoding="utf-8") == template()


def test_every_fact_that_a_site_rule_can_name_is_in_the_docs() -> None:
    section = text_of("configuration.md").split("Facts that a rule can name")[1].split("## ")[0]
    told = set(re.findall(r"`([a-z_]+)`", section))
    assert set(FACT_NAMES) <= told


# ------------------------------------------------------------------ reasons


@pytest.mark.parametrize("code", sorted(Code))
def test_every_reason_says_what_it_means_and_what_to_do(code: Code) -> None:
    section = re.search(rf"^### `{code}`\n(.*?)(?=^#|\Z)", text_of("troubleshooting.md"), re.M | re.S)
    assert section, f"docs/troubleshooting.md has no section ### `{code}`"
    assert re.search(r"\*\*What it means:\*\* \S", section[1])
    assert re.search(r"\*\*What to do:\*\* \S", section[1])


def test_no_reason_is_told_that_does_not_exist() -> None:
    told = re.findall(r"^### `([\w-]+)`$", text_of("troubleshooting.md"), flags=re.MULTILINE)
    assert set(told) == set(Code)


# ------------------------------------------------------------------ commands


def commands() -> Mapping[str, Any]:
    from dicom_node.cli import app

    found: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def described() -> dict[str, str]:
    """The sections of docs/commands.md: command → its text."""
    sections = re.split(r"^## `", text_of("commands.md"), flags=re.MULTILINE)[1:]
    return {re.split(r"[ `]", section)[0]: section for section in sections}


def test_every_command_is_in_the_docs_and_no_other() -> None:
    assert set(described()) == set(commands())


def test_every_option_of_every_command_is_in_the_docs() -> None:
    absent = []
    for name, command in commands().items():
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--")]
            if options and options[0] != "--help" and options[0] not in described()[name]:
                absent.append(f"{name} {options[0]}")
    assert not absent


def test_commands_that_other_docs_name_exist() -> None:
    known = set(commands())
    for path in (*DOCS.glob("*.md"), REPOSITORY / "dicom_node" / "config.yaml"):
        named = set(re.findall(r"`dicom-node (?:--\S+ \S+ )?([a-z]+)", path.read_text(encoding="utf-8")))
        assert named <= known, path.name


# ------------------------------------------------------------------ for developers


def test_the_page_on_the_library_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = coarse_head()
    for name, volume in (("b0", case.b0), ("t2", case.reference)):
        voxels = volume.data.numpy()[np.newaxis]
        write_volumes(tmp_path / f"{name}.nii.gz", voxels, volume.affine, flip_rows=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text_of("library.md"), flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out.startswith("pass: error of position 2.")
    assert names["after"] < 0.5 * names["before"]
    np.testing.assert_allclose(names["b0"].affine, case.b0.affine, atol=1e-4)
    np.testing.assert_allclose(names["b0"].data, case.b0.data, rtol=1e-4)
    assert names["corrected"].shape == names["b0"].shape
    assert (tmp_path / "displacement.nii.gz").exists()
    for name in re.findall(
        r"^\| `(\w+)", text_of("library.md").split("of the result")[1], flags=re.MULTILINE
    ):
        assert hasattr(names["result"], name)


def test_every_file_that_developers_are_sent_to_exists() -> None:
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text_of("developing.md")))
    there = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("[!.]*/**/*.py")}
    absent = [
        n for n in named if not any(f"/{path}".endswith(f"/{n}") or f"/{n}" in f"/{path}" for path in there)
    ]
    assert named
    assert not absent


# ------------------------------------------------------------------ links


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", path.read_text("utf-8")):
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), flags=re.MULTILINE)
            anchors = {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            }
            assert anchor in anchors, f"{path.name} links to {target}#{anchor}"


def test_what_the_log_may_hold_has_no_name_of_a_patients_attribute() -> None:
    assert not [key for key in LOG_KEYS if re.search(r"patient|name|birth|description|comment", key)]
