"""Settings: what a short file means, what overrides it, and how mistakes are told."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dicom_node.config import ConfigError, Settings, load_config, remarks, template
from dicom_node.config_sections import ClientTls, ServerTls
from rules import site

SHORT = """\
node: {ae_title: DWICORR}
storage: {root: /data/node}
destinations: {PACS: {ae_title: ARCHIVE, host: pacs, port: 104}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def loaded(file: Path, text: str, **environ: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    return load_config(file, {f"DICOM_NODE__{name}": value for name, value in environ.items()})


def mistakes(file: Path, text: str, **environ: str) -> list[str]:
    """The lines of the message after its first."""
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, **environ)
    head, *lines = str(caught.value).splitlines()
    count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    assert head == f"{count} in the configuration {file}:"
    return [line.removeprefix("  ") for line in lines]


def sentence(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ what a file means


def test_three_lines_are_enough_and_the_only_destination_gets_the_results(file: Path) -> None:
    settings = loaded(file, SHORT)
    assert (settings.node.ae_title, settings.node.port) == ("DWICORR", 11112)
    assert settings.storage.root == Path("/data/node")
    assert settings.deliver_to == ("PACS",)
    assert (settings.assembly.series_quiet_s, settings.assembly.study_wait_s) == (20, 1200)
    assert settings.correction.method == "clinical"
    assert settings.correction.on_poor_quality == "withhold"
    assert settings.web.bind == "127.0.0.1"


def test_with_several_destinations_and_none_named_nothing_is_sent_and_check_can_say_so(file: Path) -> None:
    more = SHORT.replace("{PACS:", "{RESEARCH: {ae_title: R, host: r, port: 104}, PACS:")
    settings = loaded(file, more)
    assert settings.deliver_to == ()
    assert any("RESEARCH, PACS" in remark for remark in remarks(settings))
    named = loaded(file, more + "delivery: {to: [RESEARCH]}")
    assert named.deliver_to == ("RESEARCH",)


def test_open_doors_are_remarked(file: Path) -> None:
    assert any("accept_from" in remark for remark in remarks(loaded(file, SHORT)))
    closed = SHORT.replace("DWICORR}", "DWICORR, accept_from: [{address: 10.0.0.0/8}]}")
    assert remarks(loaded(file, closed)) == ()


def test_a_key_without_a_value_keeps_its_default(file: Path) -> None:
    settings = loaded(file, SHORT + "rules:\ncorrection:\n  device:\n  settings:\n")
    assert settings.correction.device == "auto"
    assert settings.rules.overrides == ()


def test_text_stays_text_whatever_yaml_takes_it_for(file: Path) -> None:
    settings = loaded(file, SHORT.replace("DWICORR", "0123").replace("ARCHIVE", "NO"))
    assert settings.node.ae_title == "0123"
    assert settings.destinations["PACS"].ae_title == "NO"


def test_site_rules_are_typed_as_yaml_types_them(file: Path) -> None:
    rule = '{when: {description: "*QA*", epi_factor: 64, echo_planar: yes}, then: not-reference}'
    settings = loaded(file, f"{SHORT}rules: {{overrides: [{rule}]}}")
    (override,) = settings.rules.overrides
    assert override.when == {"description": "*QA*", "epi_factor": 64, "echo_planar": True}
    assert override.then is site.Then.NOT_REFERENCE


def test_settings_of_the_method_are_checked_by_the_method(file: Path) -> None:
    correction = "correction: {settings: {iterations: 40, spacings_mm: [25, 15]}}"
    assert loaded(file, SHORT + correction).correction.settings == {
        "iterations": "40",
        "spacings_mm": "25,15",
    }
    (told,) = mistakes(file, SHORT + "correction: {settings: {iteration: 40}}")
    assert told.startswith("line 4: correction.settings: Unknown setting 'iteration=40'")
    (told,) = mistakes(file, SHORT + "correction: {settings: {iterations: many}}")
    assert told.endswith("'many' is not a whole number.")


@pytest.mark.parametrize(
    ("written", "size"),
    [("1000", 1000), ("20 GiB", 20 * 2**30), ("1.5TB", 1_500_000_000_000), ("500 MiB", 500 * 2**20)],
)
def test_sizes_are_written_for_people(file: Path, written: str, size: int) -> None:
    settings = loaded(file, SHORT.replace("/data/node}", f"/data/node, min_free_bytes: {written}}}"))
    assert settings.storage.min_free_bytes == size


def test_relative_paths_start_at_the_folder_of_the_file(file: Path) -> None:
    assert loaded(file, SHORT.replace("/data/node", "data")).storage.root == file.parent / "data"


def test_settings_cannot_be_changed_and_travel_to_other_processes(file: Path) -> None:
    settings = loaded(file, SHORT)
    with pytest.raises(ValidationError):
        settings.node.port = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_reading_a_configuration_does_not_bring_the_engine_into_the_process() -> None:
    """The listener is a process of its own and lives in little memory."""
    script = "import dicom_node.config, dicom_node.log, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ------------------------------------------------------------------ environment


def test_the_environment_goes_before_the_file(file: Path) -> None:
    settings = loaded(
        file,
        SHORT,
        NODE__PORT="4242",
        NODE__ACCEPT_FROM='[{"ae_title": "MR1", "address": "10.0.0.7"}]',
        DESTINATIONS__pacs__HOST="other",
        DERIVE__DESCRIPTION_SUFFIX=" DC",
        CORRECTION__SETTINGS="{iterations: 12}",
    )
    assert settings.node.port == 4242
    assert settings.node.accept_from[0].ae_title == "MR1"
    assert settings.destinations["PACS"].host == "other"
    assert settings.derive.description_suffix == " DC"
    assert settings.correction.settings == {"iterations": "12"}


def test_the_environment_alone_is_a_configuration() -> None:
    environ = {
        "DICOM_NODE__NODE__AE_TITLE": "DWICORR",
        "DICOM_NODE__STORAGE__ROOT": "/data",
        "DICOM_NODE__DESTINATIONS__Archive__AE_TITLE": "ARCHIVE",
        "DICOM_NODE__DESTINATIONS__Archive__HOST": "archive",
        "DICOM_NODE__DESTINATIONS__Archive__PORT": "104",
        "DICOM_NODE_TEST_DATA": "not ours",
    }
    assert load_config(None, environ).deliver_to == ("Archive",)


def test_a_mistake_in_the_environment_is_told_by_its_variable(file: Path) -> None:
    assert mistakes(file, SHORT, NODE__PORT="x", NODE__PROT="1", LOG="json", DELIVERY__TO="[") == [
        "DICOM_NODE__DELIVERY__TO: delivery.to: is neither valid JSON nor YAML",
        "DICOM_NODE__LOG: log: 'json' will not do; write a section with the keys format, level",
        "DICOM_NODE__NODE__PORT: node.port: 'x' will not do; write a whole number from 1 to 65535",
        "DICOM_NODE__NODE__PROT: node.prot: unknown key; did you mean port?",
    ]


# ------------------------------------------------------------------ mistakes


def test_all_mistakes_are_told_at_once_with_line_key_and_remedy(file: Path) -> None:
    text = """\
node:
  ae_titel: DWICORR
  port: 70000
storage:
  root: /data/node
  min_free_bytes: lots
destinations:
  PACS: {ae_title: HOSPITAL_PACS_ARCHIVE, host: pacs, port: 104}
delivery:
  to: [PACS, ARCHIVE]
"""
    assert mistakes(file, text) == [
        "line 2: node.ae_titel: unknown key; did you mean ae_title?",
        "line 3: node.port: '70000' will not do; write a whole number from 1 to 65535",
        "line 6: storage.min_free_bytes: 'lots' will not do; write a size such as 20 GiB",
        "line 8: destinations.PACS.ae_title: an AE title has 1 to 16 characters, this one has 21; shorten it",
        "line 10: delivery.to: no destination is called ARCHIVE; under destinations there is: PACS",
    ]


def test_what_is_missing_is_named_with_an_example(file: Path) -> None:
    assert mistakes(file, "destinations:\n  PACS: {host: pacs, port: 104}\n") == [
        "node.ae_title: is missing; write an AE title of 1 to 16 characters, for example ae_title: DWICORR",
        "storage.root: is missing; write a path, for example root: /var/lib/dicom-node",
        "line 2: destinations.PACS.ae_title: is missing; write an AE title of 1 to 16 characters, "
        "for example ae_title: PACS",
    ]


@pytest.mark.parametrize(
    ("line", "key", "remedy"),
    [
        ("root: /x", "root", "unknown key; did you mean storage.root?"),
        ("correction: {mehtod: paper}", "correction.mehtod", "unknown key; did you mean method?"),
        ("log: {zzz: 1}", "log.zzz", "unknown key; there is format, level"),
        ("correction: {method: fast}", "correction.method", "write clinical or paper"),
        ("correction: {device: gpu}", "correction.device", "write auto, cpu, cuda or cuda:N"),
        ("correction: {scheduler: g}", "correction.scheduler", "write an address such as tls://gpu1:8786"),
        (
            "correction: {scheduler: 'tcp://gpu1:8786'}",
            "correction.scheduler",
            "tls:// address, with correction.scheduler_tls",
        ),
        (
            "correction: {scheduler: 'gpu1:8786'}",
            "correction.scheduler",
            "tls:// address, with correction.scheduler_tls",
        ),
        ("correction: {modulate: maybe}", "correction.modulate", "write true or false"),
        ("correction: {workers: 0}", "correction.workers", "write a whole number from 1 to 64"),
        ("correction: {timeout_s: 0}", "correction.timeout_s", "write a number above 0"),
        ("assembly: {study_wait_s: -1}", "assembly.study_wait_s", "write a number of at least 0"),
        ("assembly: {series_quiet_s: .inf}", "assembly.series_quiet_s", "write a number above 0"),
        ("rules: {min_overlap: 1.5}", "rules.min_overlap", "write a number from 0 to 1"),
        ("rules: {overrides: x}", "rules.overrides", "such as [a section with the keys when, then]"),
        ("rules: {reference_order: [T2, CT]}", "rules.reference_order[1]", "STIR, PD, T1, T2* or unknown"),
        ("derive: {description_suffix: ' '}", "derive.description_suffix", "source, e.g. ' DISTCORR'"),
        ("delivery: {to: PACS}", "delivery.to", "write a list of names under destinations, such as [PACS]"),
        ("web: {bind: myhost}", "web.bind", "write 127.0.0.1 or 0.0.0.0"),
        ("web: [1]", "web", "write a section with the keys bind, port, token_file, tls"),
        ("log: json", "log", "'json' will not do; write a section with the keys format, level"),
    ],
)
def test_each_mistake_says_what_to_write_instead(file: Path, line: str, key: str, remedy: str) -> None:
    (told,) = mistakes(file, SHORT + line)
    assert told.startswith(f"line 4: {key}: ")
    assert told.endswith(remedy)


@pytest.mark.parametrize(
    ("rule", "key", "remedy"),
    [
        ("{when: {descripton: x}, then: exclude}", ".when", "did you mean 'description'?"),
        ("{when: {rows: x}, then: exclude}", ".when", "'rows' compares with a number, not with 'x'"),
        ("{when: {}, then: exclude}", ".when", "so the rule would match every series"),
        ("{when: {rows: 1}, then: drop}", ".then", "exclude, reference, not-reference, dwi or not-dwi"),
    ],
)
def test_a_site_rule_names_facts_that_exist(file: Path, rule: str, key: str, remedy: str) -> None:
    (told,) = mistakes(file, f"{SHORT}rules: {{overrides: [{rule}]}}")
    assert told.startswith(f"line 4: rules.overrides[0]{key}: ")
    assert told.endswith(remedy)


@pytest.mark.parametrize(
    ("title", "word"),
    [("' '", "1 to 16"), ("ABCDEFGHIJKLMNOPQ", "17"), ("KÖLN", "accents"), ('"A\\\\B"', "backslash")],
)
def test_an_ae_title_keeps_to_the_standard(file: Path, title: str, word: str) -> None:
    (told,) = mistakes(file, SHORT.replace("DWICORR", title))
    assert told.startswith("line 1: node.ae_title: ")
    assert word in told


def test_a_destination_is_called_by_a_plain_name(file: Path) -> None:
    (told,) = mistakes(file, SHORT.replace("{PACS:", "{my pacs:"))
    assert told.startswith("line 3: destinations.my pacs: this name will not do; write a name of letters")


def test_a_host_is_no_url(file: Path) -> None:
    (told,) = mistakes(file, SHORT.replace("host: pacs", "host: 'http://pacs'"))
    assert told == (
        "line 3: destinations.PACS.host: 'http://pacs' will not do; write a host name or IP address alone"
    )


def test_a_caller_without_title_and_address_is_nobody(file: Path) -> None:
    callers = "[{}, {address: 10.0.0.1/8}]"
    assert mistakes(file, SHORT.replace("DWICORR}", f"DWICORR, accept_from: {callers}}}")) == [
        "line 1: node.accept_from[0]: names no caller; write ae_title, address or both",
        "line 1: node.accept_from[1].address: '10.0.0.1/8' will not do; "
        "write an IP address or a network such as 10.1.2.0/24",
    ]


def test_unsent_studies_are_kept_at_least_as_long_as_sent_ones(file: Path) -> None:
    (told,) = mistakes(file, SHORT.replace("/data/node}", "/data/node, keep_days: 100}"))
    assert told.endswith(
        "storage.keep_unsent_days: 90 is less than keep_days (100); what is unsent must stay longer"
    )


def test_an_exposed_status_page_needs_a_token_that_exists(file: Path) -> None:
    (told,) = mistakes(file, SHORT + "web: {bind: 0.0.0.0}")
    assert told.startswith("line 4: web.token_file: is needed when bind is 0.0.0.0")
    (told,) = mistakes(file, SHORT + "web: {bind: 0.0.0.0, token_file: token}")
    assert told.startswith(f"line 4: web.token_file: there is no file {file.parent / 'token'}; create it")
    (file.parent / "token").write_text("secret")
    settings = loaded(file, SHORT + "web: {bind: 0.0.0.0, token_file: token}")
    assert settings.web.token_file == file.parent / "token"
    assert "secret" not in repr(settings)
    assert loaded(file, SHORT + "web: {bind: '::1'}").web.token_file is None


def test_tls_needs_whom_to_trust_and_both_halves_of_a_pair(tmp_path: Path) -> None:
    certificate, key, ca = (tmp_path / name for name in ("node.crt", "node.key", "ca.crt"))
    for path in (certificate, key, ca):
        path.touch()
    with pytest.raises(ValidationError, match="is needed to check scanners"):
        ServerTls(certificate=certificate, key=key)
    assert ServerTls(certificate=certificate, key=key, ca=ca).require_client_certificate
    assert not ServerTls(certificate=certificate, key=key, require_client_certificate=False).ca
    with pytest.raises(ValidationError, match="certificate and key belong together"):
        ClientTls(certificate=certificate)
    with pytest.raises(ValidationError, match="there is no file"):
        ClientTls(ca=tmp_path / "absent.crt")


# ------------------------------------------------------------------ files that are none


def test_a_key_written_twice_is_told_with_both_lines(file: Path) -> None:
    assert mistakes(file, SHORT + "log: {level: debug}\nlog: {level: info}\n") == [
        "line 5: log: written twice, first in line 4; keep one"
    ]


def test_files_that_hold_no_configuration_are_one_sentence(file: Path) -> None:
    assert sentence(file) == (
        f"There is no configuration file {file}. Write one with `dicom-node init`, "
        "or name another with --config."
    )
    for content, word in {
        b"node:\n\tport: 1\n": "not valid YAML at line 2, column 1",
        b"node: {ae_title: A\n": "not valid YAML at line 2",
        b"a: 1\n---\nb: 2\n": "not valid YAML",
        b"- node\n": "holds a list",
        b"DWICORR\n": "holds a single value",
        b"node: {ae_title: K\xd6LN}\n": "UTF-8",
        b"node: \x00\n": "not valid YAML",
    }.items():
        file.write_bytes(content)
        assert word in sentence(file), content
    assert "cannot be read" in sentence(file.parent)


def test_an_empty_file_misses_what_a_configuration_needs(file: Path) -> None:
    assert [line.split(":")[0] for line in mistakes(file, "# nothing yet\n")] == [
        "node.ae_title",
        "storage.root",
    ]


def test_an_alias_to_its_own_parent_is_refused(file: Path) -> None:
    told = mistakes(file, SHORT + "correction: {settings: &a {b: *a}}")
    assert any("refers to itself" in line for line in told)


# ------------------------------------------------------------------ the template


def test_the_template_is_a_configuration_that_changes_no_default(file: Path) -> None:
    settings = loaded(file, template())
    short = loaded(file, SHORT)
    for section in type(settings).model_fields:
        if section not in ("node", "destinations", "storage"):
            assert getattr(settings, section) == getattr(short, section)
    assert settings.node == short.node
    assert settings.storage.min_free_bytes == short.storage.min_free_bytes


def test_every_default_in_the_template_is_the_models(file: Path) -> None:
    """With the # taken from every `# key: value`, the settings are the same as without."""
    text = _uncommented(template())
    told = [line for line in text.splitlines() if line not in template().splitlines()]
    assert len(told) > 35
    assert loaded(file, text) == loaded(file, template())


def _uncommented(text: str) -> str:
    """The template with its commented keys in force, but for examples of lists and sections.

    An example is a comment `key:` without a value, with the deeper comments under it.
    """
    names = {name for schema in _schemas() for name in schema.get("properties", {})}
    lines = []
    example_depth: int | None = None
    for line in text.splitlines():
        indent, _, comment = line.partition("# ")
        depth = len(line) - len(line.lstrip("# "))
        if example_depth is not None and depth > example_depth:
            continue
        example_depth = None
        key, colon, value = comment.partition(":")
        if indent.strip() or not colon or key not in names:
            lines.append(line)
        elif not value.strip():
            example_depth = depth
        else:
            lines.append(indent + comment)
    return "\n".join(lines)


def _schemas() -> list[dict[str, Any]]:
    schema = Settings.model_json_schema()
    return [schema, *schema["$defs"].values()]
