"""Two patients in one study: whatever was decided before, nothing of it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from received_study import QUIET_S, SmallNode, outcome_of, variant, write_small_study

from dicom_node.headers import read_instance, summarise
from dicom_node.phantom_study import PhantomStudy
from dicom_node.records import Job
from dicom_node.states import JobState
from rules.reasons import Code

QUIET = QUIET_S + 1


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_small_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def stranger(study: PhantomStudy, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A series of somebody else under the same StudyInstanceUID."""
    return variant(study.reference_files, tmp_path_factory.mktemp("stranger"), 8, PatientID="SOMEBODY ELSE")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SmallNode]:
    made = SmallNode(tmp_path)
    yield made
    made.ledger.close()


def everything(study: PhantomStudy) -> list[Path]:
    return [*study.reference_files, *study.dwi_files]


def ended(job: Job) -> tuple[JobState, str | None]:
    return job.state, job.reason_code


def corrected(node: SmallNode) -> None:
    """The worker's job ends well."""
    (job_id,) = node.workers.tasks
    task = node.workers.tasks[job_id]
    node.spool.result_dir(task.name).mkdir(parents=True, exist_ok=True)
    node.workers.end(job_id, outcome_of(task))


def test_a_study_of_two_patients_is_never_corrected(
    node: SmallNode, study: PhantomStudy, stranger: list[Path]
) -> None:
    node.receive([*everything(study), *stranger])
    node.after(QUIET)
    assert ended(node.job()) == (JobState.SKIPPED, Code.PATIENT_MISMATCH)
    assert "SOMEBODY" not in (node.job().reason_text or "")


def test_a_stranger_that_arrives_while_the_job_is_queued_parks_it(
    node: SmallNode, study: PhantomStudy, stranger: list[Path]
) -> None:
    node.workers.slots = 0
    node.receive(everything(study))
    assert node.after(QUIET)[0].state is JobState.QUEUED
    node.receive(stranger)
    node.after(QUIET)
    assert ended(node.job()) == (JobState.SKIPPED, Code.PATIENT_MISMATCH)


def test_a_stranger_that_arrives_during_the_correction_keeps_the_result_from_being_sent(
    node: SmallNode, study: PhantomStudy, stranger: list[Path]
) -> None:
    node.receive(everything(study))
    assert node.after(QUIET)[0].state is JobState.CORRECTING
    node.receive(stranger)
    node.after(QUIET)
    corrected(node)
    node.after(1)
    assert ended(node.job()) == (JobState.WITHHELD, Code.PATIENT_MISMATCH)
    assert node.ledger.deliveries(node.job().id) == []


def test_a_stranger_that_arrives_while_the_result_is_sent_stops_the_sending(
    node: SmallNode, study: PhantomStudy, stranger: list[Path]
) -> None:
    node.receive(everything(study))
    node.after(QUIET)
    corrected(node)
    assert node.after(1)[0].state is JobState.SENDING
    node.receive(stranger)
    node.after(QUIET)
    assert ended(node.job()) == (JobState.WITHHELD, Code.PATIENT_MISMATCH)
    assert node.ledger.due_delivery("PACS") is None


def test_once_the_wrong_id_is_mended_and_sent_again_the_study_is_corrected(
    node: SmallNode, study: PhantomStudy, stranger: list[Path], tmp_path: Path
) -> None:
    node.receive([*everything(study), *stranger])
    assert node.after(QUIET)[0].state is JobState.SKIPPED
    node.receive(variant(study.reference_files, tmp_path / "mended", 8))
    assert node.after(QUIET)[0].state is JobState.CORRECTING


def test_one_wrong_id_inside_a_series_is_seen(study: PhantomStudy, tmp_path: Path) -> None:
    images = [read_instance(path) for path in study.dwi_files]
    assert not summarise(images).mixed_patients
    wrong = pydicom.dcmread(study.dwi_files[4])
    wrong.PatientID = "SOMEBODY ELSE"
    wrong.save_as(tmp_path / "wrong.dcm")
    assert summarise([*images[:4], read_instance(tmp_path / "wrong.dcm"), *images[5:]]).mixed_patients
