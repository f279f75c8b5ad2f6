"""What was sent is taken back: each destination is told to reject what it has, once, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
import pytest
from instances import write_series
from pydicom import Dataset

from dicom_node import decisions
from dicom_node.association import Peer, Problem
from dicom_node.decisions import NotNow
from dicom_node.delivery import DeliveryLoop
from dicom_node.jobs import job_document
from dicom_node.ledger import Ledger
from dicom_node.records import InstanceRecord
from dicom_node.scu import OnStatus, StoreResult, StoreStatus
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState, JobState
from dicom_node.statuses import Outcome
from rules.reasons import Code

KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
RESULT = "result-1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Archive:
    """Reads what it is sent, as long as it takes it."""

    def __init__(self) -> None:
        self.stored: list[Dataset] = []
        self.takes = 10_000
        self.problem: Problem | None = None
        self.outcome = Outcome.STORED

    def __call__(self, _peer: Peer, files: Sequence[Path], on_status: OnStatus) -> StoreResult:
        statuses = []
        for path in files[: self.takes]:
            status = StoreStatus(path, "1.2.3", self.outcome, 0, "said so")
            if status.outcome.arrived:
                self.stored.append(pydicom.dcmread(path))
            on_status(status)
            statuses.append(status)
        return StoreResult(tuple(statuses), tuple(files[self.takes :]), self.problem)

    @property
    def notes(self) -> list[Dataset]:
        return [one for one in self.stored if one.SOPClassUID == KEY_OBJECTS]

    def rejected(self) -> set[str]:
        """SOPInstanceUIDs that the last note names."""
        (study,) = self.notes[-1].CurrentRequestedProcedureEvidenceSequence
        return {
            one.ReferencedSOPInstanceUID
            for series in study.ReferencedSeriesSequence
            for one in series.ReferencedSOPSequence
        }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "root" / "ledger.sqlite", clock=clock)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "root", 0)
    files = write_series(spool.result_dir(RESULT) / "derived", 3)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.SeriesNumber = 490
        dataset.save_as(path)
    return spool


@pytest.fixture
def job(ledger: Ledger, spool: Spool) -> int:
    """A job whose result is owed to two destinations."""
    ledger.record_instance(
        InstanceRecord("1.1", 1, "1", "1.0", "1.2", "1.2.1", "00", "instances/1", 1, "a", 1000.0)
    )
    ledger.complete_series("1.0", "{}", "p", seen_last_at=1000.0)
    job = ledger.create_job(ledger.series("1")[0], 4)
    ledger.change_job(job.id, JobState.QUEUED)
    ledger.change_job(job.id, JobState.CORRECTING, result=RESULT)
    ledger.change_job(job.id, JobState.CORRECTED)
    ledger.start_delivery(job.id, ["pacs", "research"], expected=JobState.CORRECTED)
    return job.id


def loop(name: str, ledger: Ledger, spool: Spool, archive: Archive, clock: Clock) -> DeliveryLoop:
    peer = Peer(name.upper(), "127.0.0.1", 1, "NODE")
    return DeliveryLoop(name, peer, ledger, spool, give_up_days=7, clock=clock, send=archive)


def withdrawn(ledger: Ledger, job: int) -> None:
    decisions.withdraw(ledger, job, "somebody", ("pacs", "research"))


def uids(spool: Spool) -> set[str]:
    return {pydicom.dcmread(path).SOPInstanceUID for path in spool.result_dir(RESULT).rglob("*.dcm")}


def states(ledger: Ledger, job: int) -> dict[str, str]:
    return {one["destination"]: one["state"] for one in job_document(ledger, job)["withdrawals"]}


def test_every_destination_that_has_the_images_is_told_to_reject_them(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    archives = {"pacs": Archive(), "research": Archive()}
    loops = [loop(name, ledger, spool, archive, clock) for name, archive in archives.items()]
    for one in loops:
        one.deliver_one()
    assert ledger.job(job).state is JobState.SENT

    withdrawn(ledger, job)
    for one in loops:
        assert one.withdraw_one()
        assert not one.withdraw_one()

    for archive in archives.values():
        assert len(archive.notes) == 1
        assert archive.rejected() == uids(spool)
    assert states(ledger, job) == {"pacs": "sent", "research": "sent"}
    assert ledger.was_issued(str(archives["pacs"].notes[0].SOPInstanceUID))
    assert not list((spool.root / "work").iterdir())


def test_the_job_says_who_withdrew_it(ledger: Ledger, spool: Spool, job: int) -> None:
    withdrawn(ledger, job)

    now = ledger.job(job)
    assert (now.state, now.reason_code) == (JobState.WITHHELD, Code.WITHDRAWN_BY_PERSON)
    assert "somebody" in (now.reason_text or "")
    event = ledger.events(f"job/{job}")[-1]
    assert (event.who, event.became) == ("somebody", JobState.WITHHELD)
    assert spool.decision(RESULT) == {"decision": "withdrawn", "who": "somebody"}


def test_what_is_still_on_its_way_is_stopped_and_only_what_arrived_is_rejected(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    archive = Archive()
    archive.takes, archive.problem = 2, Problem("the association was aborted", transient=True)
    pacs = loop("pacs", ledger, spool, archive, clock)
    pacs.deliver_one()

    withdrawn(ledger, job)
    archive.takes, archive.problem = 10_000, None
    clock.now += 100
    assert not pacs.deliver_one()
    pacs.withdraw_one()

    assert archive.rejected() == {one.SOPInstanceUID for one in archive.stored[:2]}


def test_who_never_got_an_image_is_told_nothing(ledger: Ledger, spool: Spool, job: int, clock: Clock) -> None:
    withdrawn(ledger, job)
    archive = Archive()
    loop("research", ledger, spool, archive, clock).withdraw_one()

    assert archive.stored == []
    assert states(ledger, job)["research"] == "sent"


def test_a_dead_destination_is_told_later(ledger: Ledger, spool: Spool, job: int, clock: Clock) -> None:
    archive = Archive()
    pacs = loop("pacs", ledger, spool, archive, clock)
    pacs.deliver_one()
    withdrawn(ledger, job)

    archive.takes, archive.problem = 0, Problem("nothing listens there", transient=True)
    assert pacs.withdraw_one()
    assert states(ledger, job)["pacs"] == "pending"
    assert not pacs.withdraw_one()

    archive.takes, archive.problem = 10_000, None
    clock.now += 10
    assert pacs.withdraw_one()
    assert states(ledger, job)["pacs"] == "sent"


def test_a_destination_that_stays_dead_is_given_up(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    archive = Archive()
    pacs = loop("pacs", ledger, spool, archive, clock)
    pacs.deliver_one()
    withdrawn(ledger, job)
    archive.takes, archive.problem = 0, Problem("nothing listens there", transient=True)
    clock.now += 7 * 86400
    pacs.withdraw_one()

    (note,) = [n for n in job_document(ledger, job)["withdrawals"] if n["destination"] == "pacs"]
    assert (note["state"], note["reason"]["code"]) == ("failed", Code.GAVE_UP)


def test_an_archive_that_takes_no_notes_is_asked_three_times(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    archive = Archive()
    pacs = loop("pacs", ledger, spool, archive, clock)
    pacs.deliver_one()
    withdrawn(ledger, job)
    archive.outcome = Outcome.PERMANENT
    tried = 0
    while pacs.withdraw_one():
        tried += 1
        clock.now += 3600

    assert tried == 3
    assert states(ledger, job)["pacs"] == "failed"


def test_a_destination_that_is_no_longer_configured_is_named_as_such(ledger: Ledger, job: int) -> None:
    decisions.withdraw(ledger, job, "somebody", ("research",))

    notes = {one["destination"]: one for one in job_document(ledger, job)["withdrawals"]}
    assert (notes["pacs"]["state"], notes["research"]["state"]) == ("failed", "pending")
    assert notes["pacs"]["reason"]["code"] == Code.DESTINATION_GONE


def test_rejected_images_are_never_sent_again(ledger: Ledger, job: int) -> None:
    withdrawn(ledger, job)

    for decide in (
        lambda: decisions.release(ledger, job, "somebody", ("pacs",)),
        lambda: decisions.retry(ledger, job, "somebody"),
        lambda: decisions.withdraw(ledger, job, "somebody", ("pacs",)),
    ):
        with pytest.raises(NotNow, match="was withdrawn"):
            decide()


def test_what_was_never_sent_cannot_be_withdrawn(ledger: Ledger, spool: Spool) -> None:
    ledger.record_instance(
        InstanceRecord("2.1", 1, "2", "2.0", "1.2", "1.2.1", "00", "instances/2", 1, "a", 1000.0)
    )
    ledger.complete_series("2.0", "{}", "p", seen_last_at=1000.0)
    job = ledger.create_job(ledger.series("2")[0], 4)

    with pytest.raises(NotNow, match="only what was sent"):
        decisions.withdraw(ledger, job.id, "somebody", ("pacs",))


def test_images_that_are_gone_from_the_disk_cannot_be_named(ledger: Ledger, spool: Spool, job: int) -> None:
    spool.remove_result(RESULT)

    with pytest.raises(NotNow, match="keep_days"):
        withdrawn(ledger, job)
    assert ledger.job(job).state is JobState.SENDING


def test_a_withdrawal_survives_a_restart(
    tmp_path: Path, ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    archive = Archive()
    loop("pacs", ledger, spool, archive, clock).deliver_one()
    withdrawn(ledger, job)
    ledger.close()

    again = Ledger(tmp_path / "root" / "ledger.sqlite", clock=clock)
    loop("pacs", again, spool, archive, clock).withdraw_one()

    assert archive.rejected() == uids(spool)
    assert DeliveryState(states(again, job)["pacs"]) is DeliveryState.SENT
