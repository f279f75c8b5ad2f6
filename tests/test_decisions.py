from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node import decisions
from dicom_node.decisions import NotNow
from dicom_node.ledger import Ledger, UnknownJob
from dicom_node.records import InstanceRecord, Job
from dicom_node.states import JobState
from rules.reasons import Code, reason

S = JobState
PATHS: dict[JobState, tuple[JobState, ...]] = {
    S.WAITING: (),
    S.SKIPPED: (S.SKIPPED,),
    S.QUEUED: (S.QUEUED,),
    S.CORRECTING: (S.QUEUED, S.CORRECTING),
    S.CORRECTED: (S.QUEUED, S.CORRECTING, S.CORRECTED),
    S.WITHHELD: (S.QUEUED, S.CORRECTING, S.CORRECTED, S.WITHHELD),
    S.SENDING: (S.QUEUED, S.CORRECTING, S.CORRECTED, S.SENDING),
    S.SENT: (S.QUEUED, S.CORRECTING, S.CORRECTED, S.SENDING, S.SENT),
    S.FAILED: (S.QUEUED, S.CORRECTING, S.FAILED),
    S.SUPERSEDED: (S.SUPERSEDED,),
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.record_instance(
        InstanceRecord("1.2.3", 1, "1.2", "1.2.9", "1.2.840", "1.2.840", "00", "a.dcm", 1, "a", 1.0)
    )
    ledger.complete_series("1.2.9", "{}", "", seen_last_at=1.0)
    return ledger


@pytest.fixture
def job_in(ledger: Ledger) -> Callable[[JobState], Job]:
    def made(state: JobState) -> Job:
        job = ledger.create_job(ledger.series("1.2")[0], 3)
        for step in PATHS[state]:
            ledger.change_job(job.id, step, reason(Code.NO_REFERENCE, "none"))
        if state in (S.CORRECTING, S.FAILED):
            # as after two attempts
            ledger._db.execute("UPDATE jobs SET attempts = 2, next_attempt_at = 5e9")
        ledger.settle_study("1.2", 1.0)
        return ledger.job(job.id)

    return made


@pytest.mark.parametrize("state", [S.FAILED, S.WITHHELD])
def test_a_failed_or_withheld_job_is_tried_again_at_once_with_all_its_attempts(
    ledger: Ledger, job_in: Callable[[JobState], Job], state: JobState
) -> None:
    job = decisions.retry(ledger, job_in(state).id, "somebody")
    assert (job.state, job.attempts, job.next_attempt_at) == (S.QUEUED, 0, 0.0)


def test_a_skipped_job_waits_again_and_its_study_is_looked_at(
    ledger: Ledger, job_in: Callable[[JobState], Job]
) -> None:
    job = job_in(S.SKIPPED)
    assert ledger.unsettled_studies() == []
    assert decisions.retry(ledger, job.id, "somebody").state is S.WAITING
    assert [study for study, _ in ledger.unsettled_studies()] == ["1.2"]


def test_a_withheld_result_is_released_to_every_destination(
    ledger: Ledger, job_in: Callable[[JobState], Job]
) -> None:
    job = decisions.release(ledger, job_in(S.WITHHELD).id, "somebody", ("PACS", "RESEARCH"))
    assert job.state is S.SENDING
    assert [delivery.destination for delivery in ledger.deliveries(job.id)] == ["PACS", "RESEARCH"]


def test_nothing_is_released_to_nobody(ledger: Ledger, job_in: Callable[[JobState], Job]) -> None:
    job = job_in(S.WITHHELD)
    with pytest.raises(NotNow, match=r"delivery\.to"):
        decisions.release(ledger, job.id, "somebody", ())
    assert ledger.job(job.id).state is S.WITHHELD


@pytest.mark.parametrize("state", [S.CORRECTED, S.SENDING])
def test_a_result_that_is_not_sent_yet_can_be_withheld(
    ledger: Ledger, job_in: Callable[[JobState], Job], state: JobState
) -> None:
    job = decisions.withhold(ledger, job_in(state).id, "somebody")
    assert (job.state, job.reason_code) == (S.WITHHELD, Code.WITHHELD_BY_PERSON)


@pytest.mark.parametrize(
    ("decide", "state"),
    [
        (decisions.retry, S.FAILED),
        (decisions.withhold, S.SENDING),
        (lambda ledger, job_id, who: decisions.release(ledger, job_id, who, ("PACS",)), S.WITHHELD),
    ],
)
def test_a_decision_is_an_event_with_who_made_it(
    ledger: Ledger,
    job_in: Callable[[JobState], Job],
    decide: Callable[[Ledger, int, str], Job],
    state: JobState,
) -> None:
    job = decide(ledger, job_in(state).id, "somebody")
    event = ledger.events(f"job/{job.id}")[-1]
    assert event.who == "somebody"
    assert event.text
    assert event.text.endswith("by somebody")


ALLOWED = {
    "retry": {S.FAILED, S.SKIPPED, S.WITHHELD},
    "withhold": {S.CORRECTED, S.SENDING},
    "release": {S.WITHHELD},
}


@pytest.mark.parametrize(
    ("verb", "state"), [(verb, state) for verb in ALLOWED for state in PATHS if state not in ALLOWED[verb]]
)
def test_what_cannot_be_decided_now_says_why_and_changes_nothing(
    ledger: Ledger, job_in: Callable[[JobState], Job], verb: str, state: JobState
) -> None:
    job = job_in(state)
    further = (("PACS",),) if verb == "release" else ()
    with pytest.raises(NotNow, match=f"Job {job.id} is {state}; only"):
        getattr(decisions, verb)(ledger, job.id, "somebody", *further)
    assert ledger.job(job.id) == job


def test_a_job_that_does_not_exist_is_named(ledger: Ledger) -> None:
    with pytest.raises(UnknownJob, match="no job 77"):
        decisions.retry(ledger, 77, "somebody")
