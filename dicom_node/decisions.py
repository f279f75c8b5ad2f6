"""What a person can decide about a job; each decision is an event with who made it and when."""

from __future__ import annotations

from dicom_node.ledger import Ledger, LedgerError
from dicom_node.records import Job
from dicom_node.states import JobState
from rules.reasons import Code, reason


class NotNow(LedgerError):
    """The job is in a state in which this cannot be decided; the message says which states allow it."""


def retry(ledger: Ledger, job_id: int, who: str) -> Job:
    """Try again: a failed or withheld job from its correction, a skipped one from its choice of reference."""
    job = ledger.job(job_id)
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
    if not destinations:
        raise NotNow("No destination is configured (delivery.to), so there is nowhere to send it.")
    why = reason(Code.RELEASED_BY_PERSON, who)
    ledger.start_delivery(job.id, destinations, expected=JobState.WITHHELD, why=why, who=who)
    return ledger.job(job_id)


def withhold(ledger: Ledger, job_id: int, who: str) -> Job:
    """Keep a result from being sent, or from being sent further."""
    job = ledger.job(job_id)
    if job.state not in (JobState.CORRECTED, JobState.SENDING):
        raise NotNow(f"Job {job.id} is {job.state}; only corrected and sending jobs can be withheld.")
    ledger.change_job(job.id, JobState.WITHHELD, reason(Code.WITHHELD_BY_PERSON, who), who=who)
    return ledger.job(job_id)
