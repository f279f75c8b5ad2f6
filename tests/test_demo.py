"""The demo once from end to end: listener, workers, delivery and an archive, all real, on loopback."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydicom import dcmread
from received_study import write_small_study

from dicom_node.demo import Arrived, Corrected, DemoFailed, Shown, run_demo
from dicom_node.phantom_study import PhantomStudy
from dicom_node.records import Job
from dicom_node.states import JobState


def ignore(_what: str, _stage: str, _fraction: float) -> None:
    """Nobody watches."""


def job(state: JobState, **changes: object) -> Job:
    nothing: dict[str, object] = dict.fromkeys(Job.__dataclass_fields__)
    return Job(**(nothing | {"series_number": 3, "state": state} | changes))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_demo_corrects_a_head_and_an_archive_receives_it(tmp_path: Path) -> None:
    told: list[str] = []
    shown = run_demo(None, tmp_path, lambda what, stage, fraction: told.append(stage))
    assert shown.good, "\n".join(shown.lines())
    (corrected,) = shown.jobs
    assert corrected.job.state is JobState.SENT
    assert corrected.error_mm is not None
    before, after = corrected.error_mm
    assert math.isfinite(before)
    assert after < before / 3
    assert corrected.picture is not None
    assert corrected.picture.read_bytes().startswith(b"\x89PNG")
    (arrived,) = shown.arrived
    assert arrived.number == 390
    assert arrived.b_values == (0.0, 500.0, 1000.0)
    received = [dcmread(path) for path in (tmp_path / "archive").glob("*.dcm")]
    assert len(received) == arrived.instances
    assert all("QC=" in one.ImageComments for one in received)
    assert any("is correcting" in stage for stage in told)
    assert any("mm before" in line for line in shown.lines())


@pytest.mark.slow
def test_a_study_of_one_s_own_is_sent_instead(tmp_path: Path) -> None:
    study: PhantomStudy = write_small_study(tmp_path / "study")
    shown = run_demo(study.dwi_files[0].parent, tmp_path / "keep", ignore)
    (corrected,) = shown.jobs
    assert (corrected.job.state, corrected.job.reason_code) == (JobState.SKIPPED, "no-reference")
    assert (corrected.error_mm, corrected.picture, shown.arrived) == (None, None, ())
    assert shown.good


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with pytest.raises(DemoFailed, match="no DICOM file"):
        run_demo(tmp_path / "study", tmp_path / "keep", ignore)


def test_a_folder_that_is_not_the_demo_s_is_never_deleted(tmp_path: Path) -> None:
    kept = tmp_path / "archive" / "mine.dcm"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(DemoFailed, match="--keep"):
        run_demo(None, tmp_path, ignore)
    assert kept.exists()


@pytest.mark.parametrize(
    ("state", "error_mm", "good"),
    [
        (JobState.SENT, (2.0, 0.5), True),
        (JobState.SENT, (2.0, 2.5), False),
        (JobState.SENT, None, True),
        (JobState.SKIPPED, None, True),
        (JobState.FAILED, None, False),
        (JobState.WITHHELD, (2.0, 0.5), False),
    ],
)
def test_a_demo_is_good_when_every_job_ended_well(
    state: JobState, error_mm: tuple[float, float] | None, good: bool
) -> None:
    shown = Shown(10, (Arrived(390, "x", 1, (0.0,)),), (Corrected(job(state), None, error_mm),), 1.0)
    assert shown.good is good
    assert len(list(shown.lines())) >= 3
