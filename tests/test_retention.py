"""Retention: what has not arrived, is in progress, or is still needed, stays, whatever is tried."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from received_study import Clock

from dicom_node.ledger import Ledger
from dicom_node.records import InstanceRecord, Job
from dicom_node.retention import BARRED_S, DAY_S, RetentionPolicy, finish_deletions, retain
from dicom_node.spool import Spool, instance_path
from dicom_node.states import DeliveryState, JobState
from rules.reasons import Code, reason

POLICY = RetentionPolicy(keep_days=14, keep_unsent_days=90)
NEVER_HAPPENS = 10_000  # days


class Archive:
    """A node's root with studies of two images each, and jobs that go where a test sends them."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.spool = Spool(root, 0)
        self.ledger = Ledger(root / "ledger.sqlite", clock=self.clock)

    def study(self, uid: str, *, complete: bool = True) -> None:
        for number in (1, 2):
            self.receive(uid, number)
        if complete:
            self.ledger.complete_series(f"{uid}.1", "{}", "", seen_last_at=self.clock())
            self.ledger.settle_study(uid, self.clock())

    def receive(self, uid: str, number: int) -> None:
        sop = f"{uid}.1.{number}"
        path = self.spool.receive(sop, 1, sop.encode())
        self.ledger.record_instance(
            InstanceRecord(
                sop, 1, uid, f"{uid}.1", "1.2", "1.2.1", "00", path.as_posix(), 9, "a", self.clock()
            )
        )

    def job(self, uid: str, *way: JobState) -> Job:
        """A job of the study that went this way; from `corrected` on it has a result."""
        job = self.ledger.create_job(self.ledger.series(uid)[0], 7)
        for state in way:
            if state is JobState.CORRECTING:
                self.ledger.change_job(job.id, state, result=f"result-{job.id}")
                (self.spool.result_dir(f"result-{job.id}") / "derived").mkdir(parents=True)
            elif state is JobState.SENDING:
                self.ledger.start_delivery(job.id, ["pacs"], expected=JobState.CORRECTED)
            elif state is JobState.SENT:
                self.move(job, DeliveryState.SENDING)
                self.move(job, DeliveryState.SENT)
            else:
                self.ledger.change_job(job.id, state, reason(Code.NO_REFERENCE) if not job.result else None)
        self.ledger.settle_study(uid, self.clock())
        return self.ledger.job(job.id)

    def move(self, job: Job, to: DeliveryState, *, commitment: bool = False) -> None:
        (delivery,) = self.ledger.deliveries(job.id)
        self.ledger.change_delivery(delivery, to, commitment=commitment)

    def after(self, days: float) -> list[str]:
        """The studies that are deleted once this many days have passed."""
        self.clock.now += days * DAY_S
        return [study.study_uid for study in retain(self.ledger, self.spool, POLICY)]

    def files(self, uid: str) -> int:
        paths = [self.spool.root / instance_path(f"{uid}.1.{n}", 1) for n in (1, 2)]
        return sum(path.exists() for path in paths)


J = JobState
TO_SENDING = (J.QUEUED, J.CORRECTING, J.CORRECTED, J.SENDING)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "root")


def test_what_was_sent_is_deleted_after_its_days_and_not_before(archive: Archive) -> None:
    archive.study("1.1")
    job = archive.job("1.1", *TO_SENDING, J.SENT)
    assert archive.after(13.9) == []
    assert archive.files("1.1") == 2
    assert archive.after(0.2) == ["1.1"]
    assert archive.files("1.1") == 0
    assert not archive.spool.result_dir(job.result or "").exists()


def test_the_job_stays_in_the_list_and_says_that_its_images_are_gone(archive: Archive) -> None:
    archive.study("1.1")
    job = archive.job("1.1", *TO_SENDING, J.SENT)
    archive.after(15)
    kept = archive.ledger.job(job.id)
    assert (kept.state, kept.deleted) == (J.SENT, archive.clock())
    last = archive.ledger.events(f"job/{job.id}")[-1]
    assert (last.code, last.text) == (
        "deleted", "images and results were deleted from this node: sent and older than 14 days",
    )  # fmt: skip
    assert [event.code for event in archive.ledger.events("study/1.1")] == ["deleted"]


@pytest.mark.parametrize("way", [TO_SENDING[:length] for length in range(5)], ids=lambda way: f"{len(way)}")
def test_nothing_of_a_job_in_progress_is_ever_deleted(archive: Archive, way: tuple[JobState, ...]) -> None:
    archive.study("1.1")
    archive.job("1.1", *way)
    assert archive.after(NEVER_HAPPENS) == []
    assert archive.files("1.1") == 2


def test_a_series_that_is_still_arriving_is_never_deleted(archive: Archive) -> None:
    archive.study("1.1", complete=False)
    assert archive.after(NEVER_HAPPENS) == []


def test_the_reference_of_a_job_in_progress_is_never_deleted_even_in_another_study(archive: Archive) -> None:
    archive.study("1.1")
    archive.study("1.2")
    job = archive.job("1.1")
    archive.ledger.change_job(job.id, J.QUEUED, reference_series_uid="1.2.1")
    assert archive.after(NEVER_HAPPENS) == []
    assert archive.files("1.2") == 2


def test_what_an_archive_must_still_promise_to_keep_is_never_deleted(archive: Archive) -> None:
    archive.study("1.1")
    job = archive.job("1.1", *TO_SENDING)
    archive.move(job, DeliveryState.SENDING)
    archive.move(job, DeliveryState.SENT, commitment=True)
    assert archive.ledger.job(job.id).state is J.SENT
    assert archive.after(NEVER_HAPPENS) == []
    (delivery,) = archive.ledger.deliveries(job.id)
    archive.ledger.record_stored(delivery, f"{job.result}/1.dcm", 0)
    archive.ledger.record_asked(delivery, {"2.25.1": {"1.9": f"{job.result}/1.dcm"}}, again_at=0.0)
    assert archive.ledger.record_answer("2.25.1", None, {})
    assert archive.ledger.job(job.id).state is J.COMMITTED
    assert archive.after(1) == []  # its days count from the promise
    assert archive.after(14) == ["1.1"]


@pytest.mark.parametrize(
    "way",
    [(J.SKIPPED,), (*TO_SENDING[:3], J.WITHHELD), (*TO_SENDING[:2], J.FAILED), (*TO_SENDING, J.FAILED)],
    ids=["skipped", "withheld", "failed", "not sent"],
)
def test_what_did_not_arrive_is_kept_longer(archive: Archive, way: tuple[JobState, ...]) -> None:
    archive.study("1.1")
    archive.job("1.1", *way)
    assert archive.after(89) == []
    assert archive.after(2) == ["1.1"]


def test_a_study_without_any_job_is_kept_longer(archive: Archive) -> None:
    archive.study("1.1")
    assert archive.after(89) == []
    assert archive.after(2) == ["1.1"]


def test_the_days_count_from_what_happened_last(archive: Archive) -> None:
    archive.study("1.1")
    job = archive.job("1.1", *TO_SENDING[:3], J.WITHHELD)
    archive.clock.now += 80 * DAY_S
    archive.ledger.start_delivery(job.id, ["pacs"], expected=J.WITHHELD)  # somebody releases it
    archive.move(job, DeliveryState.SENDING)
    archive.move(job, DeliveryState.SENT)
    assert archive.after(13) == []
    assert archive.after(2) == ["1.1"]


def test_deleting_again_does_nothing_more(archive: Archive) -> None:
    archive.study("1.1")
    archive.job("1.1", *TO_SENDING, J.SENT)
    assert archive.after(20) == ["1.1"]
    assert archive.after(20) == []
    assert finish_deletions(archive.ledger, archive.spool) == 0


def test_a_crash_between_ledger_and_disk_is_finished_at_the_next_look(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.study("1.1")
    archive.job("1.1", *TO_SENDING, J.SENT)

    def fails(paths: object) -> None:
        raise OSError("the disk is gone for a moment")

    with monkeypatch.context() as broken:
        broken.setattr(archive.spool, "remove", fails)
        with pytest.raises(OSError, match="gone for a moment"):
            archive.after(20)
    assert archive.files("1.1") == 2
    assert archive.after(0) == []
    assert archive.files("1.1") == 0


def test_an_instance_that_comes_again_while_its_file_goes_is_refused_and_taken_later(
    archive: Archive,
) -> None:
    archive.study("1.1")
    archive.job("1.1", *TO_SENDING, J.SENT)
    archive.after(20)
    with pytest.raises(sqlite3.IntegrityError, match="being deleted"):
        archive.receive("1.1", 1)
    archive.after((BARRED_S + 1) / DAY_S)
    archive.receive("1.1", 1)
    assert archive.files("1.1") == 1
    (series,) = archive.ledger.series("1.1")
    assert (series.state, series.revision, series.deleted) == ("receiving", 2, None)


@pytest.mark.parametrize(
    "path", ["ledger.sqlite", "results", "results/../ledger.sqlite", "instances/aa", "work/x", "/etc/passwd"]
)
def test_nothing_but_instances_and_results_can_be_deleted(archive: Archive, path: str) -> None:
    with pytest.raises(ValueError, match=r"neither an instance nor a result|cannot be the name"):
        archive.spool.remove([path])


def test_results_that_nobody_asked_for_since_the_ledger_was_lost_go_too(archive: Archive) -> None:
    (archive.spool.result_dir("orphan") / "derived").mkdir(parents=True)
    with archive.ledger.transaction() as db:
        db.execute("INSERT INTO found_results VALUES ('orphan', ?)", (archive.clock(),))
    archive.after(80)
    assert archive.spool.result_dir("orphan").exists()
    archive.after(11)
    assert not archive.spool.result_dir("orphan").exists()
