"""Taking back what was sent: in the ledger, who is owed a note that rejects a job's images (IOCM)."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Self

from dicom_node.ledger import Ledger
from dicom_node.ledger_core import JOB_COLUMNS
from dicom_node.log import get_logger
from dicom_node.records import Job
from dicom_node.states import DeliveryState, JobState
from rules.reasons import Code, Reason, reason

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A rejection note that one destination is owed: `pending`, then `sent` or `failed`."""

    job_id: int
    destination: str
    state: DeliveryState
    attempts: int
    next_attempt_at: float
    since: float
    reason_code: str | None
    reason_text: str | None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """From a row that has (at least) these columns."""
        columns = {field.name: row[field.name] for field in fields(cls)}
        return cls(**(columns | {"state": DeliveryState(row["state"])}))


def start_withdrawal(
    ledger: Ledger, job_id: int, configured: Collection[str], why: Reason, who: str
) -> tuple[str, ...]:
    """Nothing more of the job is sent, and each destination that has some of it is owed a note; those.

    `configured`: destinations that are still known; the others can never be told. Raises IllegalChange when
    the job has meanwhile moved to a state that cannot be withdrawn.
    """
    with ledger.transaction() as db:
        row = db.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        job = Job.from_row(row)
        # one whose delivery is under way may have some of it before the note is due
        rows = db.execute(
            "SELECT destination FROM deliveries WHERE job_id = ? ORDER BY destination", (job.id,)
        ).fetchall()
        names = tuple(row["destination"] for row in rows)
        if job.state is JobState.SUPERSEDED:
            ledger.event(db, f"job/{job.id}", job.state, job.state, why, who=who)
        else:
            ledger.move_job(db, job, JobState.WITHHELD, why, who=who)
        now = ledger.now()
        for name in names:
            gone = None if name in configured else reason(Code.DESTINATION_GONE, name)
            db.execute(
                "INSERT OR REPLACE INTO withdrawals(job_id, destination, state, attempts, next_attempt_at, "
                "since, reason_code, reason_text) VALUES (?, ?, ?, 0, ?, ?, ?, ?)",
                (
                    job.id,
                    name,
                    DeliveryState.FAILED if gone else DeliveryState.PENDING,
                    now,
                    now,
                    gone.code if gone else None,
                    gone.text if gone else None,
                ),
            )
        return names


def withdrawals_of(ledger: Ledger, job_id: int) -> list[Withdrawal]:
    """What each destination is to be told of a job; empty while nobody withdrew it."""
    rows = ledger.rows("SELECT * FROM withdrawals WHERE job_id = ? ORDER BY destination", (job_id,))
    return [Withdrawal.from_row(row) for row in rows]
