"""The reconcile loop on a small phantom study, with workers and a clock that obey the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from received_study import (
    QUIET_S,
    SLICES,
    STUDY_WAIT_S,
    SmallNode,
    outcome_of,
    variant,
    write_small_study,
)

from dicom_node import decisions
from dicom_node.assembly import OPEN_QUIET_FACTOR
from dicom_node.compute import Refusal
from dicom_node.phantom_study import PhantomStudy
from dicom_node.reconcile import BETTER_REFERENCE_WAIT_S, LEASE_S, Reconciler
from dicom_node.states import DeliveryState, JobState
from rules.reasons import Code

QUIET = QUIET_S + 1
NodeOf = Callable[..., SmallNode]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_small_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def node_of(tmp_path: Path) -> NodeOf:
    return lambda **policy: SmallNode(tmp_path / "root", **policy)


@pytest.fixture
def node(node_of: NodeOf) -> SmallNode:
    return node_of()


@pytest.fixture
def t1(study: PhantomStudy, tmp_path: Path) -> list[Path]:
    return variant(
        study.reference_files,
        tmp_path / "t1",
        5,
        SeriesDescription="T1w TSE",
        ProtocolName="T1w TSE",
        RepetitionTime="500",
        EchoTime="9",
    )


def everything(study: PhantomStudy) -> list[Path]:
    return [*study.reference_files, *study.dwi_files]


def correcting(node: SmallNode, study: PhantomStudy) -> int:
    """A node whose only job is with a worker; the number of the job."""
    node.receive(everything(study))
    (job,) = node.after(QUIET)
    assert job.state is JobState.CORRECTING
    return job.id


def finished(node: SmallNode, study: PhantomStudy, verdict: str = "pass") -> int:
    """A node whose only job was corrected and routed; the number of the job."""
    job_id = correcting(node, study)
    node.workers.end(job_id, outcome_of(node.workers.tasks[job_id], verdict))
    node.after(1)
    return job_id


def deliver(node: SmallNode, job_id: int) -> None:
    """The destination takes a job's result."""
    for delivery in node.ledger.deliveries(job_id):
        node.ledger.change_delivery(delivery, DeliveryState.SENDING)
        node.ledger.change_delivery(delivery, DeliveryState.SENT)


# ------------------------------------------------------------------------------------------ completion


def test_a_series_is_complete_after_the_quiet_time_and_not_before(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive(study.dwi_files)
    node.after(QUIET_S - 1)
    assert node.series_states() == {study.dwi_series_uid: "receiving"}
    node.after(2)
    assert node.series_states() == {study.dwi_series_uid: "complete"}


def test_while_its_association_is_open_a_series_waits_longer(node: SmallNode, study: PhantomStudy) -> None:
    association = node.open_association()
    node.receive(study.dwi_files, association)
    node.after(OPEN_QUIET_FACTOR * QUIET_S - 1)
    assert node.series_states() == {study.dwi_series_uid: "receiving"}
    node.ledger.association_closed(association, aborted=False)
    node.after(0)
    assert node.series_states() == {study.dwi_series_uid: "complete"}


def test_a_console_that_never_closes_its_association_does_not_hold_a_series_for_ever(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive(study.dwi_files, node.open_association())
    node.after(OPEN_QUIET_FACTOR * QUIET_S)
    assert node.series_states() == {study.dwi_series_uid: "complete"}


def test_after_an_abort_a_series_waits_for_the_rest(node: SmallNode, study: PhantomStudy) -> None:
    association = node.open_association()
    node.receive(study.dwi_files, association)
    node.ledger.association_closed(association, aborted=True)
    node.after(QUIET)
    assert node.series_states() == {study.dwi_series_uid: "receiving"}
    node.after(4 * QUIET_S)
    assert node.series_states() == {study.dwi_series_uid: "complete"}


def test_a_dwi_that_lacks_a_slice_is_waited_for_and_then_skipped_as_incomplete(
    node: SmallNode, study: PhantomStudy
) -> None:
    # without the last slice of the last volume
    node.receive([*study.reference_files, *study.dwi_files[:-1]])
    assert node.after(QUIET) == []
    (job,) = node.after(45 * QUIET_S)
    assert (job.state, job.reason_code) == (JobState.SKIPPED, Code.INCOMPLETE)


def test_nothing_is_decided_while_another_series_of_the_study_arrives(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive(study.dwi_files)
    node.clock.now += QUIET
    node.receive(study.reference_files[:3])
    assert node.after(0) == []


def test_many_series_that_become_quiet_at_once_are_read_over_several_looks(
    node: SmallNode, study: PhantomStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.assembly.READ_S", -1.0)
    node.receive([*study.reference_files, *study.dwi_files])
    node.receive(variant(study.dwi_files, tmp_path, 7))
    for complete in (0, 1, 2):
        assert list(node.series_states().values()).count("complete") == complete
        assert not node.jobs()  # nothing is decided before all of the study has been looked at
        node.after(QUIET if not complete else 1)
    node.after(1)
    assert list(node.series_states().values()) == ["complete"] * 3
    assert len(node.jobs()) == 2


def test_a_long_look_says_that_it_is_alive(
    node: SmallNode, study: PhantomStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    monkeypatch.setattr("dicom_node.assembly.ALIVE_EVERY", 10)
    node.loop = Reconciler(
        node.ledger, node.spool, node.workers, node.policy, clock=node.clock, alive=lambda: said.append(1)
    )
    node.receive(study.dwi_files)
    node.after(QUIET)
    assert len(said) == len(study.dwi_files) // 10


def test_a_file_that_cannot_be_read_does_not_stop_the_loop(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    node.receive(everything(study))
    record = node.ledger.instances_of(study.reference_series_uid)[0]
    (node.spool.root / record.path).write_bytes(b"no longer DICOM")
    node.after(QUIET)
    assert set(node.series_states().values()) == {"complete"}
    assert node.job().series_uid == study.dwi_series_uid


def test_a_b0_that_cannot_be_read_is_asked_for_again(node: SmallNode, study: PhantomStudy) -> None:
    node.receive(everything(study))
    for record in node.ledger.instances_of(study.dwi_series_uid):
        path = node.spool.root / record.path
        if not pydicom.dcmread(path, stop_before_pixels=True).DiffusionBValue:
            path.write_bytes(path.read_bytes()[:400])
    (job,) = node.after(QUIET)
    assert (job.state, job.reason_code) == (JobState.SKIPPED, Code.NO_LOW_B)
    assert f"{SLICES} files could not be read and may hold what is missing" in str(job.reason_text)


# ------------------------------------------------------------------------------------- choice of reference


def test_a_dwi_with_a_t2_is_queued_with_both_series_and_the_reasons(
    node: SmallNode, study: PhantomStudy
) -> None:
    job_id = correcting(node, study)
    job, task = node.ledger.job(job_id), node.workers.tasks[job_id]
    assert (job.series_uid, job.reference_series_uid) == (study.dwi_series_uid, study.reference_series_uid)
    assert job.choice is not None
    assert [one["series_uid"] for one in json.loads(job.choice) if one["accepted"]] == [
        study.reference_series_uid
    ]
    assert (len(task.source), len(task.reference)) == (len(study.dwi_files), len(study.reference_files))
    assert all((task.root / path).is_file() for path in (*task.source, *task.reference))
    assert task.contrast == "T2"
    assert task.taken_numbers == {2, 3}


def test_without_a_reference_a_job_waits_and_is_then_skipped(node: SmallNode, study: PhantomStudy) -> None:
    node.receive(study.dwi_files)
    assert node.after(QUIET)[0].state is JobState.WAITING
    assert node.after(STUDY_WAIT_S - QUIET - 1)[0].state is JobState.WAITING
    (job,) = node.after(2)
    assert (job.state, job.reason_code) == (JobState.SKIPPED, Code.NO_REFERENCE)
    assert job.reason_text
    assert "anatomical" in job.reason_text


def test_a_reference_that_arrives_while_the_job_waits_ends_the_waiting(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive(study.dwi_files)
    node.after(QUIET)
    node.receive(study.reference_files)
    assert node.after(QUIET)[0].state is JobState.CORRECTING


def test_a_reference_that_arrives_too_late_takes_the_job_up_again(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive(study.dwi_files)
    node.after(QUIET)
    node.after(STUDY_WAIT_S)
    assert node.job().state is JobState.SKIPPED
    node.receive(study.reference_files)
    assert node.after(QUIET)[0].state is JobState.CORRECTING
    became = [event.became for event in node.ledger.events(f"job/{node.job().id}")]
    assert became == ["waiting", "skipped", "waiting", "queued", "correcting"]


def test_the_second_best_contrast_waits_for_the_best(
    node: SmallNode, study: PhantomStudy, t1: list[Path]
) -> None:
    node.receive([*t1, *study.dwi_files])
    assert node.after(QUIET)[0].state is JobState.WAITING
    node.receive(study.reference_files)
    (job,) = node.after(QUIET)
    assert job.reference_series_uid == study.reference_series_uid


def test_the_second_best_contrast_serves_when_nothing_better_comes(
    node: SmallNode, study: PhantomStudy, t1: list[Path]
) -> None:
    node.receive([*t1, *study.dwi_files])
    node.after(QUIET)
    (job,) = node.after(BETTER_REFERENCE_WAIT_S)
    assert job.state is JobState.CORRECTING
    assert job.reference_series_uid == f"{study.reference_series_uid}.5"


def test_a_reference_that_changed_while_its_job_was_queued_is_chosen_again(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    node.workers.slots = 0
    node.receive(everything(study))
    assert node.after(QUIET)[0].state is JobState.QUEUED
    node.receive(rewritten(study.reference_files[:1], tmp_path))
    node.workers.slots = 1
    assert node.after(1)[0].state is JobState.WAITING
    (job,) = node.after(QUIET)
    assert job.state is JobState.CORRECTING
    assert job.reference_revision == 2


def test_two_patients_in_one_study_stop_the_correction(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    node.receive(
        [*variant(study.reference_files, tmp_path / "x", 7, PatientID="DEMO-0002"), *study.dwi_files]
    )
    (job,) = node.after(QUIET)
    assert (job.state, job.reason_code) == (JobState.SKIPPED, Code.PATIENT_MISMATCH)
    assert "DEMO" not in str(job)


# ---------------------------------------------------------------------------------- what triggers nothing


def test_an_anatomical_series_alone_gives_no_job(node: SmallNode, study: PhantomStudy) -> None:
    node.receive(study.reference_files)
    assert node.after(QUIET) == []
    assert node.ledger.unsettled_studies() == []


def test_a_trace_beside_its_directional_dwi_gives_no_job(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    trace = variant(
        study.dwi_files[2 * SLICES :],
        tmp_path / "trace",
        6,
        ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"],
        DiffusionDirectionality="ISOTROPIC",
        DiffusionGradientOrientation=None,
    )
    node.receive([*everything(study), *trace])
    (job,) = node.after(QUIET)
    assert job.series_uid == study.dwi_series_uid
    classes = {row.series_uid: row.series_class for row in node.ledger.all_series()}
    assert classes[f"{study.dwi_series_uid}.6"] == "by-product"


def test_our_own_output_that_comes_back_triggers_nothing(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    own = variant(
        study.dwi_files, tmp_path / "own", 390, ImageType=["DERIVED", "PRIMARY", "OTHER", "NONE", "DISTCORR"]
    )
    node.receive([*study.reference_files, *own])
    assert node.after(QUIET) == []


def test_our_own_output_is_known_by_its_uids_when_the_archive_stripped_its_marks(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    job_id = finished(node, study)
    stripped = variant(study.dwi_files, tmp_path / "own", 390)
    uids = [str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in stripped]
    node.ledger.issue_uids(job_id, uids)
    node.receive(stripped)
    assert [job.id for job in node.after(QUIET)] == [job_id]


def test_the_same_study_twice_gives_no_second_job(node: SmallNode, study: PhantomStudy) -> None:
    job_id = finished(node, study)
    node.receive(everything(study))
    node.after(QUIET)
    (job,) = node.after(STUDY_WAIT_S)
    assert (job.id, job.state) == (job_id, JobState.SENDING)
    assert len(node.workers.attempts) == 1


# ---------------------------------------------------------------------------------------- late instances


def test_a_late_volume_supersedes_the_correction_and_starts_another(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive([*study.reference_files, *study.dwi_files[: 2 * SLICES]])
    (first,) = node.after(QUIET)
    first_task = node.workers.tasks[first.id]
    node.receive(study.dwi_files[2 * SLICES :])
    assert node.job().state is JobState.SUPERSEDED
    node.workers.end(first.id, outcome_of(first_task))
    first, second = node.after(QUIET)
    assert first.state is JobState.SUPERSEDED
    assert (second.state, second.revision) == (JobState.CORRECTING, 2)
    assert len(node.workers.tasks[second.id].source) == 3 * SLICES
    assert (
        outcome_of(node.workers.tasks[second.id]).output_series_uid
        != outcome_of(first_task).output_series_uid
    )


def test_what_an_archive_has_stays_sent_when_a_late_volume_is_corrected(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    job_id = finished(node, study)
    deliver(node, job_id)
    node.receive(rewritten(study.dwi_files[:1], tmp_path))
    first, second = node.after(QUIET)
    assert first.state is JobState.SENT
    assert second.state is JobState.CORRECTING
    assert node.workers.tasks[second.id].name != first.result


def test_a_changed_instance_replaces_its_first_version_in_the_inputs(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    node.receive(everything(study))
    changed = rewritten(study.dwi_files[:1], tmp_path)
    node.receive(changed)
    (job,) = node.after(QUIET)
    source = [(node.spool.root / path).read_bytes() for path in node.workers.tasks[job.id].source]
    assert len(source) == len(study.dwi_files)
    assert changed[0].read_bytes() in source
    assert study.dwi_files[0].read_bytes() not in source


# ----------------------------------------------------------------------------------------------- workers


def test_a_free_worker_gets_one_job_and_the_other_waits_its_turn(
    node: SmallNode, study: PhantomStudy, tmp_path: Path
) -> None:
    node.receive([*everything(study), *variant(study.dwi_files, tmp_path / "b", 8)])
    states = {job.state for job in node.after(QUIET)}
    assert states == {JobState.CORRECTING, JobState.QUEUED}


def test_a_good_correction_goes_to_every_destination(node_of: NodeOf, study: PhantomStudy) -> None:
    node = node_of(deliver_to=("PACS", "RESEARCH"))
    job_id = finished(node, study)
    job = node.ledger.job(job_id)
    assert (job.state, job.verdict) == (JobState.SENDING, "pass")
    assert job.output_series_uid
    assert node.ledger.was_issued(job.output_series_uid)
    assert [delivery.destination for delivery in node.ledger.deliveries(job_id)] == ["PACS", "RESEARCH"]


def test_a_lost_worker_gives_its_job_back_until_the_attempts_are_used_up(
    node: SmallNode, study: PhantomStudy
) -> None:
    job_id = correcting(node, study)
    node.workers.end(job_id, error="its process ended", lost=True)
    (job,) = node.after(0)
    assert (job.state, job.reason_code) == (JobState.QUEUED, Code.WORKER_LOST)
    assert node.after(1)[0].state is JobState.QUEUED
    assert node.after(60)[0].state is JobState.CORRECTING
    node.workers.end(job_id, error="its process ended", lost=True)
    (job,) = node.after(0)
    assert (job.state, job.reason_code, job.attempts) == (JobState.FAILED, Code.WORKER_LOST, 2)
    assert node.workers.attempts == [1, 2]


def test_a_job_that_no_worker_holds_any_more_goes_back_when_its_lease_runs_out(
    node: SmallNode, study: PhantomStudy
) -> None:
    job_id = correcting(node, study)
    node.workers.tasks.pop(job_id)  # it ended, and nobody heard of it
    assert node.after(LEASE_S - 1)[0].state is JobState.CORRECTING
    node.after(2)
    assert node.after(60)[0].state is JobState.CORRECTING
    assert node.workers.attempts == [1, 2]
    codes = [event.code for event in node.ledger.events(f"job/{job_id}")]
    assert Code.WORKER_LOST in codes


def test_a_worker_that_lives_keeps_its_job_however_long_it_takes(
    node: SmallNode, study: PhantomStudy
) -> None:
    job_id = correcting(node, study)
    for _ in range(5):
        node.after(LEASE_S - 1)
    assert node.ledger.job(job_id).state is JobState.CORRECTING
    assert node.workers.attempts == [1]


def test_workers_that_take_nothing_leave_the_job_for_later(
    node: SmallNode, study: PhantomStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the scheduler is gone")

    node.receive(everything(study))
    with monkeypatch.context() as broken:
        broken.setattr(node.workers, "submit", refuse)
        with pytest.raises(OSError, match="gone"):
            node.after(QUIET)
    node.after(LEASE_S + 1)
    assert node.after(60)[0].state is JobState.CORRECTING


def test_input_that_cannot_be_corrected_fails_at_once_with_its_reason(
    node: SmallNode, study: PhantomStudy
) -> None:
    job_id = correcting(node, study)
    node.workers.end(job_id, Refusal(Code.UNREADABLE, "00001.dcm is damaged."))
    (job,) = node.after(0)
    assert (job.state, job.reason_code) == (JobState.FAILED, Code.UNREADABLE)
    assert job.reason_text == "the images could not be read: 00001.dcm is damaged."


def test_a_correction_that_takes_too_long_is_stopped(node: SmallNode, study: PhantomStudy) -> None:
    job_id = correcting(node, study)
    node.workers.late.append(job_id)
    (job,) = node.after(0)
    assert node.workers.stopped == [job_id]
    assert (job.state, job.reason_code) == (JobState.QUEUED, Code.TIMEOUT)


def test_after_a_restart_a_correction_starts_again(node: SmallNode, study: PhantomStudy) -> None:
    job_id = correcting(node, study)
    name = node.workers.tasks[job_id].name
    node.restart()
    job = node.ledger.job(job_id)
    assert (job.state, job.reason_code) == (JobState.QUEUED, Code.RESTARTED)
    node.after(1)
    assert node.workers.tasks[job_id].name == name


def test_other_settings_give_the_result_another_name(node: SmallNode, study: PhantomStudy) -> None:
    job_id = correcting(node, study)
    name = node.workers.tasks[job_id].name
    node.policy = replace(node.policy, recipe=replace(node.policy.recipe, overrides=(("iterations", "7"),)))
    node.restart()
    node.after(1)
    assert node.workers.tasks[job_id].name != name


def test_another_version_of_the_program_gives_the_result_another_name(
    node: SmallNode, study: PhantomStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = correcting(node, study)
    name = node.workers.tasks[job_id].name
    monkeypatch.setattr("dicom_node.tasks.__version__", "99.0")
    node.restart()
    node.after(1)
    assert node.workers.tasks[job_id].name != name


# ------------------------------------------------------------------------------------------------ routing


@pytest.mark.parametrize(
    ("verdict", "policy", "state"),
    [
        ("reject", {}, JobState.WITHHELD),
        ("reject", {"on_reject": "flag"}, JobState.SENDING),
        ("review", {}, JobState.SENDING),
        ("review", {"on_review": "flag"}, JobState.SENDING),
        ("review", {"on_review": "withhold"}, JobState.WITHHELD),
        ("pass", {"on_review": "withhold"}, JobState.SENDING),
    ],
)
def test_the_verdict_and_the_site_decide_what_is_sent(
    node_of: NodeOf, study: PhantomStudy, verdict: str, policy: dict[str, Any], state: JobState
) -> None:
    node = node_of(**policy)
    job = node.ledger.job(finished(node, study, verdict))
    assert job.state is state
    assert (job.reason_code == Code.VERDICT) == (state is JobState.WITHHELD)
    if state is JobState.WITHHELD:
        assert job.reason_text
        assert "the images agree less than before" in job.reason_text


def test_without_a_destination_the_result_is_withheld(node_of: NodeOf, study: PhantomStudy) -> None:
    node = node_of(deliver_to=())
    job = node.ledger.job(finished(node, study))
    assert (job.state, job.reason_code) == (JobState.WITHHELD, Code.NO_DESTINATION)


def test_a_result_that_was_released_stays_released(node: SmallNode, study: PhantomStudy) -> None:
    job_id = finished(node, study, "reject")
    decisions.release(node.ledger, job_id, "somebody", ("PACS",))
    assert node.after(60)[0].state is JobState.SENDING


def test_a_skipped_job_that_a_person_tries_again_is_decided_again(
    node: SmallNode, study: PhantomStudy
) -> None:
    node.receive(study.dwi_files)
    node.after(QUIET)
    node.after(STUDY_WAIT_S)
    decisions.retry(node.ledger, node.job().id, "somebody")
    (job,) = node.after(1)
    assert (job.state, job.reason_code) == (JobState.SKIPPED, Code.NO_REFERENCE)
    who = [event.who for event in node.ledger.events(f"job/{job.id}") if event.who]
    assert who == ["somebody"]


def rewritten(files: Sequence[Path], tmp_path: Path) -> list[Path]:
    """The same instances with other bytes, as a console sends after a correction of its own."""
    folder = tmp_path / "rewritten"
    folder.mkdir()
    copies = []
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.ImageComments = "once more"
        copies.append(folder / path.name)
        dataset.save_as(copies[-1], enforce_file_format=True)
    return copies
