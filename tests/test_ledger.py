"""The ledger: states move only along the table, and everything that happens is remembered."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicom_node.ledger import IllegalChange, Ledger, UnknownJob
from dicom_node.records import InstanceRecord, Job
from dicom_node.schema import MIGRATIONS
from dicom_node.states import DELIVERY_LEAVES, JOB_LEAVES, DeliveryState, JobState, SeriesState
from rules.reasons import Code, reason


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", clock=clock)


def record(sop: str, series: str = "1.2.3", *, revision: int = 1, at: float = 1000.0) -> InstanceRecord:
    return InstanceRecord(
        sop_uid=sop, revision=revision, study_uid="1.2", series_uid=series, sop_class_uid="1.2.840",
        transfer_syntax_uid="1.2.840.1", sha256="00", path=f"instances/{sop}", size=1,
        association_id="a", received_at=at,
    )  # fmt: skip


def waiting_job(ledger: Ledger, series: str = "1.2.3") -> Job:
    ledger.record_instance(record(f"{series}.1", series))
    assert ledger.complete_series(series, "{}", "p", seen_last_at=1000.0)
    row = next(row for row in ledger.series("1.2") if row.series_uid == series)
    return ledger.create_job(row, 7)


def sending_job(ledger: Ledger, *destinations: str) -> Job:
    job = waiting_job(ledger)
    for state in (JobState.QUEUED, JobState.CORRECTING, JobState.CORRECTED):
        ledger.change_job(job.id, state)
    ledger.start_delivery(job.id, destinations, expected=JobState.CORRECTED)
    return ledger.job(job.id)


def test_every_state_has_a_way_on_or_is_an_end() -> None:
    assert set(JOB_LEAVES) == set(JobState)
    assert set(DELIVERY_LEAVES) == set(DeliveryState)
    assert {state for state, leaves in JOB_LEAVES.items() if not leaves} == {JobState.SUPERSEDED}


def test_a_change_that_is_not_in_the_table_is_refused(ledger: Ledger) -> None:
    job = waiting_job(ledger)
    with pytest.raises(IllegalChange, match="waiting"):
        ledger.change_job(job.id, JobState.SENT)
    assert ledger.job(job.id).state is JobState.WAITING


def test_a_job_that_moved_meanwhile_is_left_alone(ledger: Ledger) -> None:
    job = waiting_job(ledger)
    assert not ledger.change_job(job.id, JobState.CORRECTED, expected=JobState.CORRECTING)
    assert ledger.job(job.id).state is JobState.WAITING


def test_an_unknown_job_says_where_to_look(ledger: Ledger) -> None:
    with pytest.raises(UnknownJob, match="dicom-node jobs"):
        ledger.job(99)


def test_every_change_is_an_event_with_its_reason(ledger: Ledger, clock: Clock) -> None:
    job = waiting_job(ledger)
    clock.now = 1234.0
    ledger.change_job(job.id, JobState.SKIPPED, reason(Code.NO_REFERENCE, "no T1"), figures={"x": 1})
    first, last = ledger.events(f"job/{job.id}")
    assert (first.was, first.became) == (None, "waiting")
    assert (last.at, last.was, last.became, last.code) == (1234.0, "waiting", "skipped", "no-reference")
    assert "no T1" in (last.text or "")
    assert last.figures == '{"x": 1}'


def test_one_job_for_each_series_and_revision(ledger: Ledger) -> None:
    job = waiting_job(ledger)
    (row,) = ledger.series("1.2")
    assert ledger.create_job(row, 7).id == job.id
    assert len(ledger.jobs()) == 1


def test_a_late_instance_reopens_the_series_and_supersedes_its_job(ledger: Ledger) -> None:
    job = waiting_job(ledger)
    ledger.record_instance(record("1.2.3.2", at=1100.0))
    (row,) = ledger.series("1.2")
    assert (row.state, row.revision) == (SeriesState.RECEIVING, 2)
    superseded = ledger.job(job.id)
    assert (superseded.state, superseded.reason_code) == (JobState.SUPERSEDED, "new-revision")


def test_a_late_instance_leaves_alone_what_a_pacs_already_has(ledger: Ledger) -> None:
    job = sending_job(ledger, "pacs")
    delivery = ledger.deliveries(job.id)[0]
    ledger.change_delivery(delivery, DeliveryState.SENDING)
    ledger.change_delivery(delivery, DeliveryState.SENT)
    ledger.record_instance(record("1.2.3.2", at=1100.0))
    assert ledger.job(job.id).state is JobState.SENT


def test_a_repeat_does_not_reopen_a_complete_series(ledger: Ledger) -> None:
    waiting_job(ledger)
    ledger.record_repeat("1.2.3.1")
    (row,) = ledger.series("1.2")
    assert (row.state, row.revision, row.last_at) == (SeriesState.COMPLETE, 1, 1000.0)


def test_a_series_that_grew_while_its_headers_were_read_is_not_complete(ledger: Ledger) -> None:
    ledger.record_instance(record("1.2.3.1"))
    ledger.record_instance(record("1.2.3.2", at=1001.0))
    assert not ledger.complete_series("1.2.3", "{}", "p", seen_last_at=1000.0)
    assert ledger.series("1.2")[0].state is SeriesState.RECEIVING


def test_a_new_revision_of_an_instance_is_the_active_one(ledger: Ledger) -> None:
    ledger.record_instance(record("1.2.3.1"))
    ledger.record_instance(record("1.2.3.1", revision=2))
    assert [i.revision for i in ledger.instances_of("1.2.3")] == [2]
    newest = ledger.instance("1.2.3.1")
    assert newest is not None
    assert newest.revision == 2


def test_growth_counts_open_associations_and_remembers_an_abort(ledger: Ledger) -> None:
    ledger.association_opened("a", "SCANNER", "127.0.0.1")
    ledger.record_instance(record("1.2.3.1"))
    assert ledger.growing()[0].open_associations == 1
    ledger.association_closed("a", aborted=True)
    growth = ledger.growing()[0]
    assert (growth.open_associations, growth.aborted) == (0, True)


def test_associations_of_a_listener_that_died_do_not_hold_a_series_open(ledger: Ledger) -> None:
    ledger.association_opened("a", "SCANNER", "127.0.0.1")
    ledger.record_instance(record("1.2.3.1"))
    ledger.close_orphaned_associations()
    assert ledger.growing()[0].open_associations == 0


def test_a_settled_study_is_unsettled_by_the_next_instance(ledger: Ledger) -> None:
    waiting_job(ledger)
    ledger.settle_study("1.2", 1000.0)
    assert ledger.unsettled_studies() == []
    ledger.record_instance(record("1.2.4.1", "1.2.4", at=1200.0))
    assert ledger.unsettled_studies() == [("1.2", 1200.0)]


def test_a_study_that_still_receives_does_not_settle(ledger: Ledger) -> None:
    ledger.record_instance(record("1.2.3.1"))
    ledger.settle_study("1.2", 1000.0)
    assert ledger.unsettled_studies() == [("1.2", 1000.0)]


def test_a_job_is_sent_when_the_last_destination_has_it(ledger: Ledger) -> None:
    job = sending_job(ledger, "pacs", "planning")
    for destination, expected in (("pacs", JobState.SENDING), ("planning", JobState.SENT)):
        delivery = ledger.due_delivery(destination)
        assert delivery is not None
        ledger.change_delivery(delivery, DeliveryState.SENDING)
        ledger.change_delivery(delivery, DeliveryState.SENT)
        assert ledger.job(job.id).state is expected


def test_a_job_fails_only_when_no_destination_is_left_to_try(ledger: Ledger) -> None:
    job = sending_job(ledger, "pacs", "planning")
    dead, alive = ledger.deliveries(job.id)
    ledger.change_delivery(dead, DeliveryState.FAILED, reason(Code.GAVE_UP, "7 days"))
    assert ledger.job(job.id).state is JobState.SENDING
    ledger.change_delivery(alive, DeliveryState.SENDING)
    ledger.change_delivery(alive, DeliveryState.SENT)
    assert (ledger.job(job.id).state, ledger.job(job.id).reason_code) == (JobState.FAILED, "gave-up")


def test_a_delivery_waits_for_its_time(ledger: Ledger, clock: Clock) -> None:
    sending_job(ledger, "pacs")
    delivery = ledger.due_delivery("pacs")
    assert delivery is not None
    ledger.change_delivery(delivery, DeliveryState.SENDING, attempts=1)
    ledger.change_delivery(delivery, DeliveryState.PENDING, next_attempt_at=clock.now + 5)
    assert ledger.due_delivery("pacs") is None
    clock.now += 6
    again = ledger.due_delivery("pacs")
    assert again is not None
    assert again.attempts == 1


def test_retrying_a_failed_delivery_keeps_what_the_destination_has(ledger: Ledger) -> None:
    job = sending_job(ledger, "pacs")
    (delivery,) = ledger.deliveries(job.id)
    ledger.record_stored(delivery, "1.9", 0)
    ledger.change_delivery(delivery, DeliveryState.FAILED, reason(Code.REFUSED, "0xA900"))
    for state in (JobState.QUEUED, JobState.CORRECTING, JobState.CORRECTED):
        ledger.change_job(job.id, state)
    assert ledger.start_delivery(job.id, ["pacs"], expected=JobState.CORRECTED)
    assert ledger.deliveries(job.id)[0].state is DeliveryState.PENDING
    assert ledger.stored(delivery) == {"1.9"}


def test_what_is_committed_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.sqlite")
    job = waiting_job(first)
    # no close(): a killed process does not say goodbye
    assert Ledger(tmp_path / "ledger.sqlite").job(job.id).state is JobState.WAITING


def test_an_instance_is_looked_up_while_another_thread_commits(ledger: Ledger) -> None:
    ledger.record_instance(record("1.1"))
    with ledger.transaction() as db, ThreadPoolExecutor(1) as pool:
        db.execute("UPDATE instances SET repeats = 7")
        known = pool.submit(ledger.instance, "1.1").result(timeout=10)
    assert known is not None
    assert known.sop_uid == "1.1"
    with pytest.raises(sqlite3.OperationalError):
        ledger.committed_rows("UPDATE instances SET repeats = 8")


def test_a_ledger_from_the_future_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(sqlite3.DatabaseError, match="schema"):
        Ledger(tmp_path / "ledger.sqlite")
