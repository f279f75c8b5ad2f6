"""Deliveries: only what a destination lacks is sent, a dead one is tried later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dicom_node.association import Peer, Problem
from dicom_node.attempts import DAY_S, retry_delay_s
from dicom_node.delivery import DeliveryLoop
from dicom_node.ledger import Ledger
from dicom_node.records import InstanceRecord
from dicom_node.scu import OnStatus, StoreResult, StoreStatus
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState, JobState
from dicom_node.statuses import Outcome

PEER = Peer("PACS", "127.0.0.1", 1, "NODE")
RESULT = "result-1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pacs:
    """Answers what it is told to; remembers which files arrived."""

    def __init__(self) -> None:
        self.arrived: list[str] = []
        self.takes = 10_000
        self.refuses: frozenset[str] = frozenset()
        self.outcome = Outcome.STORED
        self.problem: Problem | None = None

    def __call__(self, _peer: Peer, files: Sequence[Path], on_status: OnStatus) -> StoreResult:
        statuses = []
        for path in files[: self.takes]:
            outcome = Outcome.PERMANENT if path.name in self.refuses else self.outcome
            status = StoreStatus(path, "1.2.3", outcome, 0, "said so")
            if status.outcome.arrived:
                self.arrived.append(path.name)
            on_status(status)
            statuses.append(status)
        return StoreResult(tuple(statuses), tuple(files[self.takes :]), self.problem)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", clock=clock)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "root", 0)
    derived = spool.result_dir(RESULT) / "derived"
    derived.mkdir(parents=True)
    for number in range(3):
        (derived / f"{number:05d}.dcm").write_bytes(b"x")
    return spool


@pytest.fixture
def job(ledger: Ledger) -> int:
    ledger.record_instance(
        InstanceRecord("1.1", 1, "1", "1.0", "1.2", "1.2.1", "00", "instances/1", 1, "a", 1000.0)
    )
    ledger.complete_series("1.0", "{}", "p", seen_last_at=1000.0)
    job = ledger.create_job(ledger.series("1")[0], 4)
    ledger.change_job(job.id, JobState.QUEUED)
    ledger.change_job(job.id, JobState.CORRECTING, result=RESULT)
    ledger.change_job(job.id, JobState.CORRECTED)
    ledger.start_delivery(job.id, ["pacs"], expected=JobState.CORRECTED)
    return job.id


def loop(ledger: Ledger, spool: Spool, pacs: Pacs, clock: Clock) -> DeliveryLoop:
    return DeliveryLoop("pacs", PEER, ledger, spool, give_up_days=7, clock=clock, send=pacs)


def test_a_series_that_arrives_whole_is_sent(ledger: Ledger, spool: Spool, job: int, clock: Clock) -> None:
    pacs = Pacs()
    assert loop(ledger, spool, pacs, clock).deliver_one()
    assert pacs.arrived == ["00000.dcm", "00001.dcm", "00002.dcm"]
    assert ledger.job(job).state is JobState.SENT


def test_nothing_is_due_when_everything_is_sent(ledger: Ledger, spool: Spool, job: int, clock: Clock) -> None:
    sender = loop(ledger, spool, Pacs(), clock)
    sender.deliver_one()
    assert not sender.deliver_one()


def test_an_aborted_association_is_resumed_with_what_is_missing(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    pacs = Pacs()
    pacs.takes, pacs.problem = 2, Problem("the association was aborted", transient=True)
    sender = loop(ledger, spool, pacs, clock)
    sender.deliver_one()
    assert ledger.job(job).state is JobState.SENDING
    pacs.takes, pacs.problem = 10_000, None
    clock.now += 10
    sender.deliver_one()
    assert pacs.arrived == ["00000.dcm", "00001.dcm", "00002.dcm"]
    assert ledger.job(job).state is JobState.SENT


def test_a_dead_destination_is_tried_later_and_the_time_is_in_the_ledger(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    pacs = Pacs()
    pacs.takes, pacs.problem = 0, Problem("PACS@127.0.0.1:1 cannot be reached: no answer", transient=True)
    sender = loop(ledger, spool, pacs, clock)
    sender.deliver_one()
    (delivery,) = ledger.deliveries(job)
    assert (delivery.state, delivery.attempts, delivery.reason_code) == (
        DeliveryState.PENDING,
        1,
        "unreachable",
    )
    assert delivery.reason_text == "the images did not arrive: PACS@127.0.0.1:1 cannot be reached: no answer"
    assert clock.now + 4 <= delivery.next_attempt_at <= clock.now + 6
    assert not sender.deliver_one()


def test_a_destination_that_stays_dead_is_given_up_after_the_configured_days(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    pacs = Pacs()
    pacs.takes, pacs.problem = 0, Problem("unreachable", transient=True)
    clock.now += 7 * DAY_S
    loop(ledger, spool, pacs, clock).deliver_one()
    assert ledger.job(job).state is JobState.FAILED
    assert ledger.job(job).reason_code == "gave-up"


def test_a_refusal_is_tried_three_times_and_then_ends_with_its_reason(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    pacs = Pacs()
    pacs.outcome = Outcome.PERMANENT
    sender = loop(ledger, spool, pacs, clock)
    for _ in range(3):
        assert sender.deliver_one()
        clock.now += 3600
    assert not sender.deliver_one()
    assert (ledger.job(job).state, ledger.job(job).reason_code) == (JobState.FAILED, "refused")


PICTURE = "companion-00004.dcm"


def with_picture(spool: Spool) -> None:
    (spool.result_dir(RESULT) / "derived" / PICTURE).write_bytes(b"x")


def test_a_companion_that_is_refused_leaves_the_series_delivered_and_is_noted(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    with_picture(spool)
    pacs = Pacs()
    pacs.refuses = frozenset({PICTURE})
    sender = loop(ledger, spool, pacs, clock)
    for _ in range(3):
        assert sender.deliver_one()
        clock.now += 3600
    assert pacs.arrived == ["00000.dcm", "00001.dcm", "00002.dcm"]  # each once, before the picture
    assert not sender.deliver_one()
    assert (ledger.job(job).state, ledger.job(job).reason_code) == (JobState.SENT, None)
    (delivery,) = ledger.deliveries(job)
    assert (delivery.state, delivery.reason_code) == (DeliveryState.SENT, "companion-refused")
    notes = [event.text for event in ledger.events(f"job/{job}") if event.code == "companion-refused"]
    assert len(notes) == 1
    assert "said so" in (notes[0] or "")


def test_a_companion_on_which_an_archive_always_breaks_off_leaves_the_series_delivered(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    with_picture(spool)
    pacs = Pacs()
    pacs.takes, pacs.problem = 3, Problem("the association was aborted", transient=True)
    sender = loop(ledger, spool, pacs, clock)
    sender.deliver_one()
    assert ledger.job(job).state is JobState.SENDING
    clock.now += 7 * DAY_S
    pacs.takes = 0
    sender.deliver_one()
    assert ledger.job(job).state is JobState.SENT
    assert ledger.deliveries(job)[0].reason_code == "companion-refused"


def test_a_refused_image_fails_the_delivery_whatever_becomes_of_its_companions(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    with_picture(spool)
    pacs = Pacs()
    pacs.refuses = frozenset({"00001.dcm", PICTURE})
    sender = loop(ledger, spool, pacs, clock)
    for _ in range(3):
        sender.deliver_one()
        clock.now += 3600
    assert (ledger.job(job).state, ledger.job(job).reason_code) == (JobState.FAILED, "refused")


def test_a_delivery_cut_short_by_a_crash_goes_on(
    ledger: Ledger, spool: Spool, job: int, clock: Clock
) -> None:
    ledger.change_delivery(ledger.deliveries(job)[0], DeliveryState.SENDING, attempts=1)
    pacs = Pacs()
    loop(ledger, spool, pacs, clock).deliver_one()
    assert len(pacs.arrived) == 3
    assert ledger.job(job).state is JobState.SENT


def test_a_withheld_job_is_not_sent(ledger: Ledger, spool: Spool, job: int, clock: Clock) -> None:
    ledger.change_job(job, JobState.WITHHELD)
    pacs = Pacs()
    assert not loop(ledger, spool, pacs, clock).deliver_one()
    assert pacs.arrived == []


def test_the_delay_doubles_from_five_seconds_to_an_hour() -> None:
    assert [retry_delay_s(n, 0) for n in (1, 2, 3, 4)] == [5, 10, 20, 40]
    assert retry_delay_s(50, 0) == 3600
    assert retry_delay_s(1, 1) == pytest.approx(6)
    assert retry_delay_s(1, -1) == pytest.approx(4)
