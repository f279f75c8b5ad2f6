"""Jobs as one JSON document: the same for `dicom-node jobs --json` and for `/api/jobs`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from dicom_node.ledger import Ledger
from dicom_node.records import Delivery, Event, Job, SeriesRow
from dicom_node.states import JobState
from dicom_node.withdrawal import Withdrawal, withdrawals_of

PAGE = 100


def jobs_document(
    ledger: Ledger, states: Iterable[JobState] = (), *, after: int = 0, limit: int = PAGE
) -> dict[str, Any]:
    """A page of jobs; `next` is the `after` of the following page, or None."""
    jobs = ledger.jobs(states, after=after, limit=limit)
    return {
        "jobs": jobs_in_words(ledger, jobs),
        "next": jobs[-1].id if len(jobs) == limit else None,
    }


def jobs_in_words(ledger: Ledger, jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """These jobs with their deliveries."""
    return [_job(job, ledger.deliveries(job.id)) for job in jobs]


def job_document(ledger: Ledger, job_id: int) -> dict[str, Any]:
    """One job with its choice of reference, figures and events. Raises UnknownJob."""
    job = ledger.job(job_id)
    return _job(job, ledger.deliveries(job.id)) | {
        "study_uid": job.study_uid,
        "revision": job.revision,
        "choice": _choice(job.choice) if job.choice else None,
        "figures": json.loads(job.figures) if job.figures else None,
        "output_series_uid": job.output_series_uid,
        "withdrawals": [_withdrawal(one) for one in withdrawals_of(ledger, job.id)],
        "events": [_event(event) for event in ledger.events(f"job/{job.id}")],
    }


def series_document(rows: Iterable[SeriesRow]) -> list[dict[str, Any]]:
    """Received series with what the rules took them for."""
    return [
        {
            "series_uid": row.series_uid,
            "study_uid": row.study_uid,
            "series_number": json.loads(row.facts).get("series_number") if row.facts else None,
            "state": row.state,
            "revision": row.revision,
            "class": row.series_class,
            "why": row.class_reason,
            "first": _time(row.first_at),
            "last": _time(row.last_at),
        }
        for row in rows
    ]


def _job(job: Job, deliveries: Iterable[Delivery]) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "reason": {"code": job.reason_code, "text": job.reason_text} if job.reason_code else None,
        "series_uid": job.series_uid,
        "series_number": job.series_number,
        "reference_series_uid": job.reference_series_uid,
        "verdict": job.verdict,
        "attempts": job.attempts,
        "created": _time(job.created),
        "changed": _time(job.changed),
        "deliveries": [
            {
                "destination": delivery.destination,
                "state": delivery.state,
                "attempts": delivery.attempts,
                "next_attempt_at": _time(delivery.next_attempt_at),
                "reason": {"code": delivery.reason_code, "text": delivery.reason_text}
                if delivery.reason_code
                else None,
            }
            for delivery in deliveries
        ],
    }


def _choice(choice: str) -> list[dict[str, Any]]:
    """The candidates with their sentences; not their descriptions, into which some sites type names."""
    told = ("series_uid", "series_number", "accepted", "why")
    return [{key: candidate.get(key) for key in told} for candidate in json.loads(choice)]


def _withdrawal(withdrawal: Withdrawal) -> dict[str, Any]:
    return {
        "destination": withdrawal.destination,
        "state": withdrawal.state,
        "attempts": withdrawal.attempts,
        "next_attempt_at": _time(withdrawal.next_attempt_at),
        "reason": {"code": withdrawal.reason_code, "text": withdrawal.reason_text}
        if withdrawal.reason_code
        else None,
    }


def _event(event: Event) -> dict[str, Any]:
    return {
        "at": _time(event.at),
        "from": event.was,
        "to": event.became,
        "reason": {"code": event.code, "text": event.text} if event.code else None,
        "who": event.who,
        "figures": json.loads(event.figures) if event.figures else None,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
