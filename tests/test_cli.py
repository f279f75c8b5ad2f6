"""The command line as a user meets it: exit codes, one sentence for what is wrong, JSON for scripts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from instances import write_series
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification
from quick_correction import SETTINGS, coarse_head
from received_study import QUIET_S, SmallNode, outcome_of, write_small_study

from dicom_node import cli
from dicom_node.jobs import jobs_document
from dicom_node.nifti import write_volumes
from dicom_node.phantom_study import PhantomStudy
from dicom_node.states import JobState


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine, and the threads of one user among several."""
    torch.set_num_threads(1)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", Path("/nonexistent/config.yaml"))
    monkeypatch.delenv("DICOM_NODE_CONFIG", raising=False)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("jobs", "--json")` is `dicom-node jobs --json` in this process."""

    def ran(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["dicom-node", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, said.out, said.err)

    return ran


def one_sentence(said: Said, code: int, *words: str) -> None:
    """The exit code, and one line on stderr that holds these words and no traceback."""
    assert said.code == code, said
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert "Traceback" not in said.err
    assert "Unexpected" not in said.err
    for word in words:
        assert word in said.err


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_small_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dwi.nii.gz, reference.nii.gz, and thin.nii.gz: a reference of two slices."""
    folder = tmp_path_factory.mktemp("head")
    case = coarse_head()
    reference = case.reference.data.numpy()
    write_volumes(folder / "dwi.nii.gz", case.b0.data.numpy()[np.newaxis], case.b0.affine, flip_rows=False)
    write_volumes(folder / "reference.nii.gz", reference[np.newaxis], case.reference.affine, flip_rows=False)
    affine = case.reference.affine.copy()
    affine[:3, 3] += 16 * affine[:3, 2]
    write_volumes(folder / "thin.nii.gz", reference[np.newaxis, 16:18], affine, flip_rows=False)
    return folder


QUICK = ["--matcher", "none", *(word for key, value in SETTINGS for word in ("--set", f"{key}={value}"))]


def config_file(folder: Path, root: Path, port: int = 11119, **more: Any) -> Path:
    path = folder / "config.yaml"
    settings = {
        "node": {"ae_title": "NODE"},
        "storage": {"root": str(root), "min_free_bytes": 0},
        "destinations": {"PACS": {"ae_title": "PACS", "host": "127.0.0.1", "port": port}},
        **more,
    }
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


# ----------------------------------------------------------------------------------------------- the program


def test_help_is_there_at_once_without_the_engine() -> None:
    code = (
        "import sys; sys.argv = ['dicom-node', '--help']\n"
        "from dicom_node.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'pydicom', 'distributed', 'SimpleITK'} & set(sys.modules)\n"
        "sys.exit(code or ' '.join(heavy) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    for command in ("serve", "correct", "explain", "send", "echo", "jobs", "retry", "check", "demo"):
        assert f"  {command} " in ended.stdout


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    said = run()
    assert said.code == 2
    assert "Commands:" in said.out + said.err


@pytest.mark.parametrize(
    "words", [("nonsense",), ("--nonsense",), ("correct",), ("correct", "x"), ("jobs", "one"), ("send", "x")]
)
def test_wrong_usage_is_2_and_says_what_is_wrong(run: Run, words: tuple[str, ...]) -> None:
    said = run(*words)
    assert said.code == 2
    assert "Error: " in said.err
    assert "Traceback" not in said.err


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out.startswith("dicom-node ")


def test_what_nobody_expected_is_one_sentence_and_a_traceback_only_on_demand(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("dicom_node.offline.correct_input", broken)
    said = run("correct", tmp_path, "--out", tmp_path / "out")
    assert said.code == 1
    assert said.err.strip() == "Unexpected ZeroDivisionError: division by zero (--debug shows where)."
    monkeypatch.setattr(sys, "argv", ["dicom-node", "--debug", "correct", str(tmp_path), "--out", "x"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# ------------------------------------------------------------------------------------------ correct, explain


def test_a_corrected_image_is_0_and_tells_where_the_files_are(run: Run, head: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(
        "correct", head / "dwi.nii.gz", "--reference", head / "reference.nii.gz", "--out", out,
        "--phase-encoding", "j", "--device", "cpu", "--json", *QUICK,
    )  # fmt: skip
    assert said.code in (0, 4)
    (result,) = json.loads(said.out)["results"]
    assert result["out"] == str(out)
    assert (out / "qc.png").exists()
    assert (said.code == 4) == (result["verdict"] == "reject")


def test_a_rejected_correction_is_4_and_says_why(run: Run, head: Path, tmp_path: Path) -> None:
    said = run(
        "correct", head / "dwi.nii.gz", "--reference", head / "thin.nii.gz", "--out", tmp_path / "out",
        "--phase-encoding", "j", "--device", "cpu", *QUICK,
    )  # fmt: skip
    assert said.code == 4
    assert "verdict reject" in said.out
    assert "uncovered" in said.out
    assert ".;" not in said.out  # each reason is a sentence
    assert (tmp_path / "out" / "report.json").exists()


def test_bad_input_of_correct_is_3_and_one_sentence(
    run: Run, study: PhantomStudy, head: Path, tmp_path: Path
) -> None:
    text, out = tmp_path / "notes.txt", ("--out", tmp_path / "out")
    text.write_text("no image")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    t2, dwi = study.reference_files[0].parent, study.dwi_files[0].parent
    reference = ("--reference", head / "reference.nii.gz")
    (tmp_path / "empty").mkdir()
    one_sentence(run("correct", text, *out), 3, "no readable DICOM", "notes.txt is not a DICOM file")
    one_sentence(run("correct", tmp_path / "empty", *out), 3, "no file in", "give the folder")
    one_sentence(run("correct", tmp_path / "gone", *out), 3, "gone does not exist")
    one_sentence(run("correct", t2, *out), 3, "no diffusion series", "whole study", "explain")
    one_sentence(run("correct", dwi, *out), 3, "no suitable anatomical series", "--reference FOLDER")
    one_sentence(run("correct", head / "dwi.nii.gz", *out), 3, "--reference")
    one_sentence(run("correct", tmp_path / "broken.nii.gz", *reference, *out), 3, "broken.nii.gz")
    gone = ("--reference", tmp_path / "gone.nii.gz")
    one_sentence(run("correct", head / "dwi.nii.gz", *gone, *out), 3, "gone.nii.gz does not exist")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "nonsense=1"), "nonsense"),
        (("--set", "iterations"), "--set KEY=VALUE"),
        (("--set", "iterations=many"), "whole number"),
        (("--phase-encoding", "y"), "write one of: i, i-"),
        (("--method", "magic"), "clinical or paper"),
        (("--device", "gpu"), "auto, cpu or cuda:N"),
        (("--total-readout-time", "50"), "seconds"),
        (("--matcher", "magic"), "write one of: none, auto"),
        (("--out", __file__), "is a file"),
        (("--out", f"{__file__}/out"), "is a file"),
    ],
)
def test_a_wrong_option_of_correct_is_2_and_one_sentence(
    run: Run, head: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    reference = ("--reference", head / "reference.nii.gz", "--out", tmp_path / "out")
    one_sentence(run("correct", head / "dwi.nii.gz", *reference, *words), 2, told)
    assert not (tmp_path / "out").exists()


def test_settings_of_the_configured_method_are_not_given_to_another(
    run: Run, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def remember(request: Any, _: object) -> Any:
        asked.append(request.recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("dicom_node.offline.correct_input", remember)
    config = config_file(tmp_path, tmp_path / "root", correction={"settings": {"fold_weight": "3"}})
    for method in ((), ("--method", "clinical"), ("--method", "paper")):
        run("--config", config, "correct", head, "--out", tmp_path / "out", *method)
    assert [recipe.overrides for recipe in asked] == [(("fold_weight", "3"),), (("fold_weight", "3"),), ()]


def test_explain_tells_what_each_series_is(run: Run, study: PhantomStudy) -> None:
    folder = study.dwi_files[0].parent.parent
    document = json.loads(run("explain", folder, "--json").out)
    series = document["studies"][0]["series"]
    assert [one["action"] for one in series] == ["none", "correct"]
    said = run("explain", folder)
    assert said.code == 0
    assert "T2w TSE 3D" in said.out


def test_explain_of_what_is_no_study_is_3(run: Run, tmp_path: Path) -> None:
    one_sentence(run("explain", tmp_path / "gone"), 3, "does not exist")
    assert run("explain", tmp_path).code == 3


# -------------------------------------------------------------------------------------------------- network


@pytest.fixture(scope="module")
def archive() -> Iterator[int]:
    """The port of a PACS that insists on being called PACS."""
    entity = AE("PACS")
    entity.require_called_aet = True
    entity.add_supported_context(Verification)
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0x0000)]
    )
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series", 3)[0].parent


def test_sent_images_are_counted(run: Run, archive: int, files: Path) -> None:
    (files / "LICENSE").write_text("no image")
    to = f"PACS@127.0.0.1:{archive}"
    assert json.loads(run("send", files, "--to", to, "--json").out) == {
        "sent": 3, "of": 3, "problem": None, "refused": [],
    }  # fmt: skip
    said = run("send", files, "--to", to)
    assert said.code == 0
    assert "3 of 3 instances" in said.out
    assert "1 other file left out" in said.out


def test_a_pacs_that_cannot_be_reached_is_5(run: Run, nobody: int, files: Path) -> None:
    to = f"PACS@127.0.0.1:{nobody}"
    one_sentence(run("send", files, "--to", to), 5, f"127.0.0.1:{nobody}")
    said = run("send", files, "--to", to, "--json")
    assert said.code == 5
    assert json.loads(said.out)["sent"] == 0
    told = f"PACS@127.0.0.1:{nobody} cannot be reached: nothing listens there (connection refused)\n"
    assert run("echo", to) == (5, "", told)
    said = run("echo", to, "--json")
    assert said.code == 5
    assert json.loads(said.out)["answers"][0]["problem"]


def test_a_wrong_ae_title_is_5_and_named(run: Run, archive: int, files: Path) -> None:
    to = f"WRONG@127.0.0.1:{archive}"
    one_sentence(run("send", files, "--to", to), 5, "WRONG")
    one_sentence(run("echo", to), 5, "WRONG", "AE title")


def test_an_archive_that_is_there_answers_the_echo(run: Run, archive: int, tmp_path: Path) -> None:
    config = config_file(tmp_path, tmp_path / "root", port=archive)
    said = run("--config", config, "echo")
    assert said.code == 0
    assert said.out.startswith("PACS: answered in ")
    assert run("--config", config, "echo", "PACS").code == 0


def test_an_echo_to_nobody_says_that_there_is_nobody(run: Run, tmp_path: Path) -> None:
    config = config_file(tmp_path, tmp_path / "root", destinations={})
    one_sentence(run("--config", config, "echo"), 2, "AET@HOST:PORT")


def test_what_cannot_be_sent_is_told(run: Run, archive: int, tmp_path: Path) -> None:
    to = f"PACS@127.0.0.1:{archive}"
    one_sentence(run("send", tmp_path / "gone", "--to", to), 3, "gone does not exist")
    one_sentence(run("send", tmp_path, "--to", to), 3, "no DICOM file")
    one_sentence(run("send", tmp_path, "--to", "PACS"), 2, "AET@HOST:PORT")


# -------------------------------------------------------------------------------------------- configuration


def test_five_mistakes_in_the_configuration_are_told_at_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "node:\n  ae_title: AN AE TITLE THAT IS TOO LONG\n  port: 70000\n"
        "storage:\n  root: /var/lib/x\n  keep_dyas: 3\n"
        "assembly:\n  series_quiet_s: soon\n"
        "delivery:\n  to: [NOBODY]\n"
    )
    said = run("--config", path, "check")
    assert said.code == 2
    for told in ("ae_title", "port", "keep_dyas", "series_quiet_s", "NOBODY"):
        assert told in said.err
    for line in (2, 3, 6, 8, 10):
        assert f"line {line}" in said.err
    assert "Traceback" not in said.err


def test_a_configuration_that_is_not_there_is_2(run: Run, tmp_path: Path) -> None:
    one_sentence(run("--config", tmp_path / "gone.yaml", "jobs"), 2, "gone.yaml")
    one_sentence(run("jobs"), 2, "dicom-node init")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_whose_the_node_is_and_corrects_without_it(
    run: Run, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o700)
    config_file(folder, tmp_path / "root")
    monkeypatch.setattr("dicom_node.terminal.DEFAULT_CONFIG", folder / "config.yaml")
    os.seteuid(65534)
    try:
        one_sentence(run("jobs"), 1, "config.yaml cannot be used by this user", "sudo -u dicom-node")
        said = run("echo", "nonsense")
    finally:
        os.seteuid(0)
    assert said.code == 2
    assert "config.yaml cannot be read by this user: defaults hold." in said.err


def test_init_writes_a_configuration_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert run("init", path).code == 0
    assert "ae_title" in path.read_text()
    one_sentence(run("init", path), 3, "exists")
    one_sentence(run("init", tmp_path / "gone" / "config.yaml"), 2, "gone/config.yaml cannot be written")


def test_a_worker_asks_for_an_address(run: Run) -> None:
    one_sentence(run("worker", "gpu1"), 2, "'gpu1'", "tls://gpu1:8786")


# ----------------------------------------------------------------------------------------------------- jobs


@pytest.fixture
def node(study: PhantomStudy, tmp_path: Path) -> SmallNode:
    """A node whose only job is withheld, because its verdict was reject."""
    node = SmallNode(tmp_path / "root")
    node.receive([*study.reference_files, *study.dwi_files])
    (job,) = node.after(QUIET_S + 1)
    node.workers.end(job.id, outcome_of(node.workers.tasks[job.id], "reject"))
    assert node.after(1)[0].state is JobState.WITHHELD
    return node


@pytest.fixture
def config(node: SmallNode, tmp_path: Path) -> Path:
    return config_file(tmp_path, tmp_path / "root")


def test_jobs_are_listed_and_told(run: Run, node: SmallNode, config: Path) -> None:
    assert json.loads(run("--config", config, "jobs", "--json").out) == json.loads(
        json.dumps(jobs_document(node.ledger))
    )
    said = run("--config", config, "jobs", "--state", "withheld")
    assert said.code == 0
    assert "withheld" in said.out
    assert "No job" in run("--config", config, "jobs", "--state", "sent").out
    told = run("--config", config, "jobs", 1)
    assert "waiting → queued" in told.out
    assert json.loads(run("--config", config, "jobs", 1, "--json").out)["revision"] == 1


def test_brackets_in_a_reason_are_shown_as_they_are(run: Run, node: SmallNode, config: Path) -> None:
    node.ledger._db.execute("UPDATE jobs SET reason_text = 'of [/t2] and [b]'")
    said = run("--config", config, "jobs")
    assert said.code == 0
    assert "[/t2]" in said.out
    assert "[b]" in said.out


def test_an_unknown_job_is_3_and_an_unknown_state_2(run: Run, config: Path) -> None:
    for verb in ("jobs", "retry", "release", "withhold"):
        one_sentence(run("--config", config, verb, 77), 3, "no job 77")
    one_sentence(
        run("--config", config, "jobs", "--state", "nonsense"), 2, "'nonsense' is no state", "waiting"
    )


def test_a_node_that_never_ran_has_no_jobs_to_tell(run: Run, tmp_path: Path) -> None:
    config = config_file(tmp_path, tmp_path / "empty")
    one_sentence(run("--config", config, "jobs"), 3, "dicom-node serve")


def test_decisions_are_made_and_refused(run: Run, node: SmallNode, config: Path) -> None:
    one_sentence(run("--config", config, "withhold", 1), 3, "withheld")
    assert run("--config", config, "release", 1).out == "Job 1 is sending.\n"
    assert run("--config", config, "withhold", 1).out == "Job 1 is withheld.\n"
    assert run("--config", config, "retry", 1).out == "Job 1 is queued.\n"
    assert all(event.who for event in node.ledger.events("job/1")[-3:])


def test_who_decides_is_known_where_the_system_has_no_name(
    run: Run, node: SmallNode, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert run("--config", config, "release", 1).code == 0
    who = node.ledger.events("job/1")[-1].who
    assert who
    assert who.startswith("user ")


# ----------------------------------------------------------------------------------------------- check, demo


def test_check_is_0_when_all_is_well_and_5_when_only_a_peer_is_missing(
    run: Run, archive: int, nobody: int, tmp_path: Path
) -> None:
    well = config_file(tmp_path, tmp_path / "root", port=archive)
    said = run("--config", well, "check")
    assert said.code == 0, said
    assert "✓ destination PACS" in said.out
    missing = config_file(tmp_path, tmp_path / "root", port=nobody)
    said = run("--config", missing, "check", "--json")
    assert said.code == 5
    crossed = [item for item in json.loads(said.out)["checks"] if item["mark"] == "failed"]
    assert [item["what"] for item in crossed] == ["destination PACS"]


def test_check_is_1_when_something_here_is_missing(run: Run, archive: int, tmp_path: Path) -> None:
    storage = {"root": str(tmp_path / "root"), "min_free_bytes": 10**18}
    config = config_file(tmp_path, tmp_path / "root", port=archive, storage=storage)
    assert run("--config", config, "check").code == 1


def test_a_demo_of_nothing_says_so(run: Run, tmp_path: Path) -> None:
    one_sentence(run("demo", "--study", tmp_path / "gone"), 3, "does not exist")
    (tmp_path / "empty").mkdir()
    one_sentence(run("demo", "--study", tmp_path / "empty", "--keep", tmp_path / "keep"), 1, "no DICOM file")
