"""What a person can decide about a job; each decision is an event with who made it and when."""

from __future__ import annotations

from dicom_node.ledger import Ledger, LedgerError
from dicom_node.records import Job
from dicom_node.spool import Spool
from dicom_node.states import JobState
from dicom_node.withdrawal import start_withdrawal
from rules.reasons import Code, reason

RELEASED, WITHHELD, WITHDRAWN = "released", "withheld", "withdrawn"  # as they are noted beside the result
# What a destination may have something of.
WITHDRAWABLE = frozenset(
    {
        *(JobState.SENDING, JobState.SENT, JobState.COMMITTED),
        *(JobState.FAILED, JobState.WITHHELD, JobState.SUPERSEDED),
    }
)


class NotNow(LedgerError):
    """The job is in a state in which this cannot be decided; the message says which states allow it."""


def retry(ledger: Ledger, job_id: int, who: str) -> Job:
    """Try again: a failed or withheld job from its correction, a skipped one from its choice of reference."""
    job = ledger.job(job_id)
    _check_not_withdrawn(job)
    why = reason(Code.RETRIED_BY_PERSON, who)
    if job.state is JobState.SKIPPED:
        ledger.change_job(job.id, JobState.WAITING, why, who=who)
        ledger.unsettle_study(job.study_uid)
    elif job.state in (JobState.FAILED, JobState.WITHHELD):
        ledger.change_job(job.id, JobState.QUEUED, why, who=who, attempts=0, next_attempt_at=0.0)
    else:
        raise NotNow(
            f"Job {job.id} is {job.state}; only failed, skipped and withheld jobs can be tried again."
        )
    return ledger.job(job_id)


def release(ledger: Ledger, job_id: int, who: str, destinations: tuple[str, ...]) -> Job:
    """Send a withheld result after all."""
    job = ledger.job(job_id)
    if job.state is not JobState.WITHHELD:
        raise NotNow(f"Job {job.id} is {job.state}; only withheld jobs can be released.")
    _check_not_withdrawn(job)
    if not destinations:
        raise NotNow("No destination is configured (delivery.to), so there is nowhere to send it.")
    why = reason(Code.RELEASED_BY_PERSON, who)
    _note(ledger, job, RELEASED, who)
    ledger.start_delivery(job.id, destinations, expected=JobState.WITHHELD, why=why, who=who)
    return ledger.job(job_id)


def withhold(ledger: Ledger, job_id: int, who: str) -> Job:
    """Keep a result from being sent, or from being sent further."""
    job = ledger.job(job_id)
    if job.state not in (JobState.CORRECTED, JobState.SENDING):
        raise NotNow(f"Job {job.id} is {job.state}; only corrected and sending jobs can be withheld.")
    _note(ledger, job, WITHHELD, who)
    ledger.change_job(job.id, JobState.WITHHELD, reason(Code.WITHHELD_BY_PERSON, who), who=who)
    return ledger.job(job_id)


def withdraw(ledger: Ledger, job_id: int, who: str, configured: tuple[str, ...]) -> Job:
    """Take back what was sent: who has some of it is told to reject it, and nothing more is sent.

    configured: the destinations that the node sends to now. The notes are the delivery loops' work.
    """
    job = ledger.job(job_id)
    if job.state not in WITHDRAWABLE or not ledger.deliveries(job.id):
        raise NotNow(f"Job {job.id} is {job.state}; only what was sent, or is being sent, can be withdrawn.")
    _check_not_withdrawn(job)
    if not job.result or not Spool(ledger.path.parent, 0).result_dir(job.result).is_dir():
        raise NotNow(
            f"The images of job {job.id} are no longer on this node (storage.keep_days), so that it cannot "
            f"name them; reject series {job.output_series_uid} in the archive."
        )
    _note(ledger, job, WITHDRAWN, who)
    start_withdrawal(ledger, job.id, configured, reason(Code.WITHDRAWN_BY_PERSON, who), who)
    return ledger.job(job_id)


def _check_not_withdrawn(job: Job) -> None:
    """The same correction has the same UIDs: those that were rejected."""
    if job.reason_code == Code.WITHDRAWN_BY_PERSON:
        raise NotNow(f"Job {job.id} was withdrawn: its images were rejected and cannot be sent again.")


def _note(ledger: Ledger, job: Job, decision: str, who: str) -> None:
    """Keep the decision on disk too: a ledger that is lost must not send what somebody withheld."""
    if job.result:
        Spool(ledger.path.parent, 0).note_decision(job.result, {"decision": decision, "who": who})
