"""Trace series beside their directional DWI: one field, one job, whenever they arrive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from quick_correction import RECIPE, write_head_study
from received_study import QUIET_S, SLICES, SmallNode, outcome_of, variant, write_small_study

from dicom_node.compute import CorrectionTask, Outcome, Refusal, SiblingFiles, run
from dicom_node.derive import DerivePolicy
from dicom_node.headers import read_instance
from dicom_node.inputs import JobInputs
from dicom_node.load import load
from dicom_node.phantom_study import PhantomStudy
from dicom_node.states import JobState
from rules.reasons import Code

TRACE = {
    "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"],
    "DiffusionDirectionality": "ISOTROPIC",
    "DiffusionGradientOrientation": None,
}
QUIET = QUIET_S + 1


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_small_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def trace(study: PhantomStudy, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The volume of the highest b-value once more, as the scanner's trace images."""
    return variant(study.dwi_files[2 * SLICES :], tmp_path_factory.mktemp("trace"), 6, **TRACE)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SmallNode]:
    made = SmallNode(tmp_path)
    yield made
    made.ledger.close()


def trace_uid(study: PhantomStudy) -> str:
    return f"{study.dwi_series_uid}.6"


def everything(study: PhantomStudy) -> list[Path]:
    return [*study.reference_files, *study.dwi_files]


def finished(node: SmallNode, job_id: int) -> CorrectionTask:
    """The correction of a job ends well and is routed."""
    task = node.workers.tasks[job_id]
    node.spool.result_dir(task.name).mkdir(parents=True, exist_ok=True)
    node.workers.end(job_id, outcome_of(task))
    node.after(1)
    return task


def test_a_trace_that_is_here_in_time_goes_with_its_lead(
    node: SmallNode, study: PhantomStudy, trace: list[Path]
) -> None:
    node.receive([*everything(study), *trace])
    (job,) = node.after(QUIET)
    assert job.series_uid == study.dwi_series_uid
    assert JobInputs.of(job).siblings == ((trace_uid(study), 1),)
    (task,) = node.workers.tasks.values()
    assert len(task.source) == 3 * SLICES
    assert [len(sibling.source) for sibling in task.siblings] == [SLICES]
    assert task.field_from == ()


def test_a_trace_that_comes_while_its_lead_is_queued_goes_with_it(
    node: SmallNode, study: PhantomStudy, trace: list[Path]
) -> None:
    node.workers.slots = 0
    node.receive(everything(study))
    assert node.after(QUIET)[0].state is JobState.QUEUED
    node.receive(trace)
    (job,) = node.after(QUIET)
    assert job.state is JobState.QUEUED
    assert JobInputs.of(job).siblings == ((trace_uid(study), 1),)


def test_a_trace_that_comes_after_its_lead_was_corrected_gets_a_job_with_its_field(
    node: SmallNode, study: PhantomStudy, trace: list[Path]
) -> None:
    node.receive(everything(study))
    lead = node.after(QUIET)[0]
    first = finished(node, lead.id)
    node.receive(trace)
    lead_again, follower = node.after(QUIET)
    assert lead_again.state is JobState.SENDING  # what is on its way is left alone
    assert follower.series_uid == trace_uid(study)
    assert follower.reference_series_uid == lead.reference_series_uid
    (task,) = node.workers.tasks.values()
    assert set(task.field_from) == set(first.source)
    assert len(task.source) == SLICES
    finished(node, follower.id)
    assert [job.state for job in node.after(QUIET)] == [JobState.SENDING, JobState.SENDING]


def test_a_trace_gets_the_same_uids_with_its_lead_and_after_it(
    tmp_path: Path, study: PhantomStudy, trace: list[Path]
) -> None:
    together, after = SmallNode(tmp_path / "a"), SmallNode(tmp_path / "b")
    together.receive([*everything(study), *trace])
    together.after(QUIET)
    (with_lead,) = next(iter(together.workers.tasks.values())).siblings
    after.receive(everything(study))
    finished(after, after.after(QUIET)[0].id)
    after.receive(trace)
    after.after(QUIET)
    (late,) = after.workers.tasks.values()
    assert late.input_digest == with_lead.input_digest
    together.ledger.close()
    after.ledger.close()


def test_a_trace_that_was_first_waits_and_then_goes_with_its_lead(
    node: SmallNode, study: PhantomStudy, trace: list[Path]
) -> None:
    low_b = [*trace, *variant(study.dwi_files[:SLICES], trace[0].parent / "low", 6, **TRACE)]
    node.receive([*study.reference_files, *low_b])
    (job,) = node.after(QUIET)
    assert job.state is JobState.WAITING  # the directional series may still come
    node.receive(study.dwi_files)
    ended, lead = node.after(QUIET)
    assert (ended.state, ended.reason_code) == (JobState.SKIPPED, Code.BY_PRODUCT)
    assert JobInputs.of(lead).siblings == ((trace_uid(study), 1),)


def test_a_queued_trace_is_taken_back_when_its_lead_arrives(
    node: SmallNode, study: PhantomStudy, trace: list[Path]
) -> None:
    node.workers.slots = 0
    low_b = [*trace, *variant(study.dwi_files[:SLICES], trace[0].parent / "low", 6, **TRACE)]
    node.receive([*study.reference_files, *low_b])
    assert node.after(400)[0].state is JobState.QUEUED
    node.receive(study.dwi_files)
    ended, lead = node.after(QUIET)
    assert (ended.state, ended.reason_code) == (JobState.SKIPPED, Code.BY_PRODUCT)
    assert JobInputs.of(lead).siblings == ((trace_uid(study), 1),)


def test_a_late_slice_of_a_trace_that_is_queued_with_its_lead_sends_both_back(
    node: SmallNode, study: PhantomStudy, trace: list[Path]
) -> None:
    node.workers.slots = 0
    node.receive([*everything(study), *trace])
    node.after(QUIET)
    revised = variant(
        study.dwi_files[2 * SLICES :][:1], trace[0].parent / "again", 6, **TRACE, ImageComments="revised"
    )
    node.receive(revised)
    node.workers.slots = 1
    node.after(1)
    assert node.job().state is JobState.WAITING  # not with a sibling that is still arriving
    (job,) = node.after(QUIET)
    assert job.state is JobState.CORRECTING
    assert JobInputs.of(job).siblings == ((trace_uid(study), 2),)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorrectionTask, CorrectionTask]:
    """The coarse head with a trace series: one task with both, one for the trace alone, after its lead."""
    torch.set_num_threads(1)
    study = write_head_study(tmp_path_factory.mktemp("head"))
    root = tmp_path_factory.mktemp("root")
    half = len(study.dwi_files) // 2
    copies = variant(study.dwi_files[half:], tmp_path_factory.mktemp("trace"), 6, **TRACE)
    names = {}
    for kind, files in (("t2", study.reference_files), ("dwi", study.dwi_files), ("trace", copies)):
        names[kind] = tuple(Path(f"{kind}-{path.name}") for path in files)
        for path, name in zip(files, names[kind], strict=True):
            shutil.copyfile(path, root / name)
    common = {"root": root, "contrast": "T2", "recipe": RECIPE, "derive": DerivePolicy(), "threads": 1}
    common |= {"reference": names["t2"], "taken_numbers": frozenset({2, 3, 6})}
    together = CorrectionTask(
        name="together",
        source=names["dwi"],
        input_digest="lead",
        siblings=(SiblingFiles(names["trace"], "trace"),),
        **common,
    )
    late = CorrectionTask(
        name="late", source=names["trace"], input_digest="trace", field_from=names["dwi"], **common
    )
    return together, late


@pytest.fixture(scope="module")
def outcomes(head: tuple[CorrectionTask, CorrectionTask]) -> tuple[Outcome, Outcome]:
    together, late = (run(task) for task in head)
    assert isinstance(together, Outcome)
    assert isinstance(late, Outcome)
    return together, late


def derived(task: CorrectionTask, series_uid: str) -> dict[str, bytes]:
    """Pixels of a derived series by SOPInstanceUID."""
    found = {}
    for path in (task.root / "results" / task.name / "derived").glob("*.dcm"):
        image = pydicom.dcmread(path)
        if image.SeriesInstanceUID == series_uid:
            found[str(image.SOPInstanceUID)] = image.PixelData
    return found


def test_one_job_derives_a_series_of_each_with_one_field(
    head: tuple[CorrectionTask, CorrectionTask], outcomes: tuple[Outcome, Outcome]
) -> None:
    together, _ = outcomes
    ((_, trace_series),) = together.siblings
    lead = derived(head[0], together.output_series_uid)
    trace = derived(head[0], trace_series)
    assert len(lead) == 2 * len(trace)
    assert set(together.sop_uids) >= lead.keys() | trace.keys()
    # the trace images are copies of the weighted ones, so one field gives one picture
    assert sorted(trace.values()) == sorted(pixels for pixels in lead.values() if pixels in trace.values())


def test_after_its_lead_a_trace_becomes_the_same_images_under_the_same_uids(
    head: tuple[CorrectionTask, CorrectionTask], outcomes: tuple[Outcome, Outcome]
) -> None:
    together, late = outcomes
    ((_, trace_series),) = together.siblings
    assert late.output_series_uid == trace_series
    assert derived(head[1], trace_series) == derived(head[0], trace_series)


def test_a_series_on_another_grid_does_not_take_over_the_field(
    head: tuple[CorrectionTask, CorrectionTask], tmp_path: Path
) -> None:
    together, late = head
    moved = variant([together.root / path for path in late.source], tmp_path, 7)
    for path in moved:
        image = pydicom.dcmread(path)
        image.ImagePositionPatient[0] += 5
        image.save_as(path)
    instances = [read_instance(path) for path in moved]
    before = load([read_instance(together.root / path) for path in late.source])
    assert not np.allclose(load(instances).affine, before.affine)
    task = CorrectionTask(
        name="moved",
        root=together.root,
        source=tuple(moved),
        reference=together.reference,
        contrast="T2",
        recipe=RECIPE,
        derive=DerivePolicy(),
        threads=1,
        field_from=together.source,
    )
    refused = run(task)
    assert isinstance(refused, Refusal)
    assert refused.code is Code.GEOMETRY
    assert "does not lie on the grid" in refused.text
