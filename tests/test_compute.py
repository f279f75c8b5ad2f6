from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from quick_correction import RECIPE, write_head_study

from dicom_node.compute import CorrectionTask, Outcome, Refusal, read_outcome, run
from dicom_node.derive import DerivePolicy
from dicom_node.distortion import phase_encoding_of
from dicom_node.headers import read_instance, summarise
from dicom_node.phantom_study import PhantomStudy
from rules.reasons import Code


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_head_study(tmp_path_factory.mktemp("study"))


def task_below(root: Path, study: PhantomStudy) -> CorrectionTask:
    """The study copied below a storage root, and the task to correct it."""
    inputs = root / "instances" / "in"
    inputs.mkdir(parents=True)
    names: list[list[Path]] = []
    for kind, files in (("t2", study.reference_files), ("dwi", study.dwi_files)):
        names.append([Path("instances", "in", f"{kind}-{path.name}") for path in files])
        for path, name in zip(files, names[-1], strict=True):
            shutil.copyfile(path, root / name)
    return CorrectionTask(
        name="result",
        root=root,
        source=tuple(names[1]),
        reference=tuple(names[0]),
        contrast="T2",
        recipe=RECIPE,
        derive=DerivePolicy(),
        taken_numbers=frozenset({2, 3}),
        input_digest="abc",
        threads=1,
    )


@pytest.fixture(scope="module")
def task(study: PhantomStudy, tmp_path_factory: pytest.TempPathFactory) -> CorrectionTask:
    return task_below(tmp_path_factory.mktemp("root"), study)


@pytest.fixture(scope="module")
def outcome(task: CorrectionTask) -> Outcome:
    done = run(task)
    assert isinstance(done, Outcome)
    return done


@pytest.fixture
def own_task(study: PhantomStudy, tmp_path: Path) -> CorrectionTask:
    """A task whose files a test may damage."""
    return task_below(tmp_path / "root", study)


def result(task: CorrectionTask) -> Path:
    return task.root / "results" / task.name


def left_in_work(task: CorrectionTask) -> list[Path]:
    return list((task.root / "work").iterdir())


def field_of(folder: Path) -> np.ndarray:
    return np.asarray(nibabel.load(folder / "displacement.nii.gz").dataobj)


def test_a_correction_publishes_everything_and_leaves_no_scratch(
    task: CorrectionTask, outcome: Outcome, study: PhantomStudy
) -> None:
    names = {path.name for path in result(task).iterdir()}
    assert names == {"derived", "displacement.nii.gz", "outcome.json", "qc.png", "report.json"}
    assert len(list((result(task) / "derived").glob("*.dcm"))) == len(study.dwi_files)
    assert left_in_work(task) == []


def test_the_outcome_tells_verdict_figures_and_the_uids_that_were_issued(
    task: CorrectionTask, outcome: Outcome
) -> None:
    derived = [pydicom.dcmread(path) for path in sorted((result(task) / "derived").glob("*.dcm"))]
    assert {one.SeriesInstanceUID for one in derived} == {outcome.output_series_uid}
    assert {one.SOPInstanceUID for one in derived} == set(outcome.sop_uids)
    assert outcome.verdict == json.loads((result(task) / "report.json").read_text())["verdict"]["level"]
    assert outcome.figures["displacement_mm"]["rms"] > 0.2
    assert outcome.seconds["total"] == pytest.approx(
        sum(seconds for stage, seconds in outcome.seconds.items() if stage != "total")
    )
    assert read_outcome(result(task)) == outcome


def test_the_derived_images_are_the_corrected_ones(task: CorrectionTask, outcome: Outcome) -> None:
    source = [pydicom.dcmread(task.root / path) for path in task.source]
    derived = [pydicom.dcmread(path) for path in sorted((result(task) / "derived").glob("*.dcm"))]
    assert sorted(one.DiffusionBValue for one in derived) == sorted(one.DiffusionBValue for one in source)
    changed = np.mean([(a.pixel_array != b.pixel_array).mean() for a, b in zip(source, derived, strict=True)])
    assert changed > 0.3


def test_a_published_result_is_taken_over_without_computing_again(
    task: CorrectionTask, outcome: Outcome
) -> None:
    # inputs that do not exist: only who does not read them can answer
    gone = replace(task, source=(Path("gone.dcm"),), reference=())
    assert run(gone) == outcome


def test_computing_again_gives_the_same_uids_and_the_same_field(
    outcome: Outcome, task: CorrectionTask, own_task: CorrectionTask
) -> None:
    again = run(own_task)
    assert isinstance(again, Outcome)
    assert (again.output_series_uid, again.sop_uids) == (outcome.output_series_uid, outcome.sop_uids)
    np.testing.assert_array_equal(field_of(result(own_task)), field_of(result(task)))
    for path in (result(own_task) / "derived").glob("*.dcm"):
        first = pydicom.dcmread(result(task) / "derived" / path.name)
        assert pydicom.dcmread(path).PixelData == first.PixelData


def test_the_source_is_not_changed(task: CorrectionTask, outcome: Outcome, study: PhantomStudy) -> None:
    for path, original in zip(task.source, study.dwi_files, strict=True):
        stored = hashlib.sha256((task.root / path).read_bytes()).digest()
        assert stored == hashlib.sha256(original.read_bytes()).digest()


def test_an_unreadable_instance_is_a_refusal_that_names_it(own_task: CorrectionTask) -> None:
    (own_task.root / own_task.source[3]).write_bytes(b"this is no DICOM")
    refused = run(own_task)
    assert isinstance(refused, Refusal)
    assert refused.code is Code.UNREADABLE
    assert own_task.source[3].name in refused.text
    assert not result(own_task).exists()
    assert left_in_work(own_task) == []


def test_pixels_that_cannot_be_decoded_are_a_refusal(own_task: CorrectionTask) -> None:
    path = own_task.root / own_task.source[0]
    path.write_bytes(path.read_bytes()[:-100])
    refused = run(own_task)
    assert isinstance(refused, Refusal)
    assert refused.code is Code.UNREADABLE


def test_a_missing_slice_is_a_refusal_about_geometry(own_task: CorrectionTask) -> None:
    refused = run(replace(own_task, source=own_task.source[:-1]))
    assert isinstance(refused, Refusal)
    assert refused.code is Code.GEOMETRY
    assert left_in_work(own_task) == []


def test_an_image_without_contrast_is_a_refusal(own_task: CorrectionTask) -> None:
    for path in own_task.reference:
        dataset = pydicom.dcmread(own_task.root / path)
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.save_as(own_task.root / path)
    refused = run(own_task)
    assert isinstance(refused, Refusal)
    assert refused.code is Code.CORRECTION_FAILED
    assert left_in_work(own_task) == []


def test_trouble_of_this_machine_is_raised_and_leaves_no_scratch(
    own_task: CorrectionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dicom_node.compute.load", full)
    with pytest.raises(OSError, match="space"):
        run(own_task)
    assert left_in_work(own_task) == []


def test_the_report_tells_the_phase_encoding_of_the_header(
    task: CorrectionTask, outcome: Outcome, study: PhantomStudy
) -> None:
    told = json.loads((result(task) / "report.json").read_text())["phase_encoding"]
    choice = phase_encoding_of(summarise([read_instance(path) for path in study.dwi_files]))
    assert choice.axis is not None
    assert choice.axis[0] == "j"
    # the phantom's header names the axis and not the direction along it
    assert (told["axis"], told["polarity"]) == ("j", None)
    assert "0018,1312" in told["source"]
