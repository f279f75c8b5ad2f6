"""The ledger: what was received, what became of it, and why, in one SQLite file.

Disk is the truth for bytes, the ledger for states. Every change of state is one transaction that also
appends to `events`. Several processes open the same file: write-ahead log, `synchronous=FULL`, so a
committed row survives a power cut.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from dicom_node.records import Delivery, Event, Growth, InstanceRecord, Job, SeriesRow
from dicom_node.schema import migrate
from dicom_node.states import (
    DELIVERED_JOBS,
    DELIVERY_LEAVES,
    JOB_LEAVES,
    DeliveryState,
    JobState,
    SeriesState,
)
from rules.reasons import Code, Reason, reason

BUSY_TIMEOUT_S = 30.0


def path_below(root: Path) -> Path:
    """Where the ledger lies below the storage root."""
    return root / "ledger.sqlite"


class LedgerError(Exception):
    """The ledger cannot do what was asked; the message says why."""


class UnknownJob(LedgerError):
    """There is no job with this number."""


class IllegalChange(LedgerError):
    """A change of state that the table of states does not allow."""


_JOB_COLUMNS = ", ".join(field.name for field in fields(Job))


class Ledger:
    """One connection to the ledger; usable from several threads of a process, one at a time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        migrate(self._db)

    def close(self) -> None:
        """Close the connection; the object is not usable afterwards."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction: the write lock comes first, so that a check holds until its commit."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, parameters).fetchall()

    # ---------------------------------------------------------------- receiving

    def association_opened(self, association_id: str, calling_ae: str, address: str) -> None:
        """A peer opened an association."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO associations(id, calling_ae, address, opened) VALUES (?, ?, ?, ?)",
                (association_id, calling_ae, address, self._clock()),
            )

    def association_closed(self, association_id: str, aborted: bool) -> None:
        """A peer released its association, or it was aborted."""
        with self._transaction() as db:
            db.execute(
                "UPDATE associations SET closed = ?, aborted = ? WHERE id = ? AND closed IS NULL",
                (self._clock(), int(aborted), association_id),
            )

    def close_orphaned_associations(self) -> None:
        """When the listener starts, every association of its predecessor is over."""
        with self._transaction() as db:
            db.execute(
                "UPDATE associations SET closed = ?, aborted = 1 WHERE closed IS NULL", (self._clock(),)
            )

    def instance(self, sop_uid: str) -> InstanceRecord | None:
        """The newest revision of an instance, or None when it never arrived."""
        rows = self._rows(
            "SELECT * FROM instances WHERE sop_uid = ? ORDER BY revision DESC LIMIT 1", (sop_uid,)
        )
        return InstanceRecord.from_row(rows[0]) if rows else None

    def record_instance(self, record: InstanceRecord) -> None:
        """A new instance, or a new revision of one, is durable on disk: count it in.

        Re-opens its series when that was complete, and supersedes that series' job unless a PACS has it.
        Raises sqlite3.IntegrityError when this revision was recorded before.
        """
        with self._transaction() as db:
            columns = [field.name for field in fields(InstanceRecord)]
            db.execute(
                f"INSERT INTO instances({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                [getattr(record, column) for column in columns],
            )
            db.execute(
                "INSERT OR IGNORE INTO series_associations VALUES (?, ?)",
                (record.series_uid, record.association_id),
            )
            db.execute(
                "INSERT INTO studies(study_uid, last_at) VALUES (?, ?) "
                "ON CONFLICT(study_uid) DO UPDATE SET last_at = excluded.last_at, settled = 0",
                (record.study_uid, record.received_at),
            )
            row = db.execute(
                "SELECT state, revision FROM series WHERE series_uid = ?", (record.series_uid,)
            ).fetchone()
            if row is None:
                db.execute(
                    "INSERT INTO series(series_uid, study_uid, state, revision, first_at, last_at) "
                    "VALUES (?, ?, ?, 1, ?, ?)",
                    (
                        record.series_uid,
                        record.study_uid,
                        SeriesState.RECEIVING,
                        record.received_at,
                        record.received_at,
                    ),
                )
                self._event(db, f"series/{record.series_uid}", None, SeriesState.RECEIVING, None)
                return
            db.execute(
                "UPDATE series SET last_at = ? WHERE series_uid = ?", (record.received_at, record.series_uid)
            )
            if row["state"] == SeriesState.COMPLETE:
                self._reopen(db, record.series_uid, row["revision"])

    def _reopen(self, db: sqlite3.Connection, series_uid: str, revision: int) -> None:
        why = reason(Code.NEW_REVISION, f"revision {revision + 1}")
        db.execute(
            "UPDATE series SET state = ?, revision = ? WHERE series_uid = ?",
            (SeriesState.RECEIVING, revision + 1, series_uid),
        )
        self._event(db, f"series/{series_uid}", SeriesState.COMPLETE, SeriesState.RECEIVING, why)
        for row in db.execute(
            f"SELECT {_JOB_COLUMNS} FROM jobs WHERE series_uid = ? AND revision = ?", (series_uid, revision)
        ).fetchall():
            job = Job.from_row(row)
            if job.state not in DELIVERED_JOBS and job.state is not JobState.SUPERSEDED:
                self._change_job(db, job, JobState.SUPERSEDED, why)

    def record_repeat(self, sop_uid: str) -> None:
        """The same bytes arrived again: counted, and nothing else changes."""
        with self._transaction() as db:
            db.execute(
                "UPDATE instances SET repeats = repeats + 1 WHERE sop_uid = ? AND revision = "
                "(SELECT MAX(revision) FROM instances WHERE sop_uid = ?)",
                (sop_uid, sop_uid),
            )

    # ---------------------------------------------------------------- series

    def growing(self) -> list[Growth]:
        """Every series that is still receiving."""
        return [
            Growth(row["series_uid"], row["study_uid"], row["last_at"], row["open"], bool(row["aborted"]))
            for row in self._rows(
                """SELECT s.series_uid, s.study_uid, s.last_at,
                     SUM(a.id IS NOT NULL AND a.closed IS NULL) AS open,
                     MAX(COALESCE(a.aborted, 0) AND a.closed >= s.last_at) AS aborted
                   FROM series s LEFT JOIN series_associations sa ON sa.series_uid = s.series_uid
                     LEFT JOIN associations a ON a.id = sa.association_id
                   WHERE s.state = 'receiving' GROUP BY s.series_uid"""
            )
        ]

    def instances_of(self, series_uid: str) -> list[InstanceRecord]:
        """The active instances of a series: the newest revision of each, by SOP Instance UID."""
        return [
            InstanceRecord.from_row(row)
            for row in self._rows(
                "SELECT i.* FROM instances i WHERE i.series_uid = ? AND i.revision = "
                "(SELECT MAX(revision) FROM instances j WHERE j.sop_uid = i.sop_uid) ORDER BY i.sop_uid",
                (series_uid,),
            )
        ]

    def complete_series(self, series_uid: str, facts: str, patient: str, *, seen_last_at: float) -> bool:
        """`receiving → complete` with its facts; False when an instance arrived since `seen_last_at`."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE series SET state = ?, facts = ?, patient = ? "
                "WHERE series_uid = ? AND state = ? AND last_at = ?",
                (SeriesState.COMPLETE, facts, patient, series_uid, SeriesState.RECEIVING, seen_last_at),
            ).rowcount
            if changed:
                self._event(db, f"series/{series_uid}", SeriesState.RECEIVING, SeriesState.COMPLETE, None)
                # studies of the same patient may have waited for this one as a reference
                db.execute(
                    "UPDATE studies SET settled = 0 WHERE study_uid IN "
                    "(SELECT study_uid FROM series WHERE patient = ? OR series_uid = ?)",
                    (patient, series_uid),
                )
            return bool(changed)

    def classify_series(self, series_uid: str, series_class: str, class_reason: str) -> None:
        """What the rules say a series is; for people, never read back for a decision."""
        with self._transaction() as db:
            db.execute(
                "UPDATE series SET series_class = ?, class_reason = ? WHERE series_uid = ?",
                (series_class, class_reason, series_uid),
            )

    def series(self, study_uid: str) -> list[SeriesRow]:
        """The series of a study, in order of arrival."""
        return [
            SeriesRow.from_row(row)
            for row in self._rows(
                "SELECT * FROM series WHERE study_uid = ? ORDER BY first_at, series_uid", (study_uid,)
            )
        ]

    def series_of_patient(self, study_uid: str) -> list[SeriesRow]:
        """The complete series, in any study, of the patients of this study."""
        return [
            SeriesRow.from_row(row)
            for row in self._rows(
                "SELECT * FROM series WHERE state = 'complete' AND (study_uid = ? OR (patient <> '' "
                "AND patient IN (SELECT patient FROM series WHERE study_uid = ?))) "
                "ORDER BY first_at, series_uid",
                (study_uid, study_uid),
            )
        ]

    def all_series(self, *, after: str = "", limit: int = 100) -> list[SeriesRow]:
        """A page of all received series by SeriesInstanceUID."""
        return [
            SeriesRow.from_row(row)
            for row in self._rows(
                "SELECT * FROM series WHERE series_uid > ? ORDER BY series_uid LIMIT ?", (after, limit)
            )
        ]

    def unsettled_studies(self) -> list[tuple[str, float]]:
        """(StudyInstanceUID, time of its last instance) where something may still be decided."""
        return [
            (row["study_uid"], row["last_at"])
            for row in self._rows("SELECT study_uid, last_at FROM studies WHERE settled = 0 ORDER BY last_at")
        ]

    def settle_study(self, study_uid: str, seen_last_at: float) -> None:
        """Nothing is left to decide in this study until something new arrives."""
        with self._transaction() as db:
            db.execute(
                "UPDATE studies SET settled = 1 WHERE study_uid = ? AND last_at = ? AND NOT EXISTS "
                "(SELECT 1 FROM series WHERE study_uid = studies.study_uid AND state = 'receiving')",
                (study_uid, seen_last_at),
            )

    def unsettle_study(self, study_uid: str) -> None:
        """Something in this study has to be decided again."""
        with self._transaction() as db:
            db.execute("UPDATE studies SET settled = 0 WHERE study_uid = ?", (study_uid,))

    # ---------------------------------------------------------------- jobs

    def create_job(self, row: SeriesRow, series_number: int | None) -> Job:
        """The job of this series and revision, `waiting`; the existing one when there is one."""
        with self._transaction() as db:
            now = self._clock()
            cursor = db.execute(
                "INSERT OR IGNORE INTO jobs(series_uid, revision, study_uid, series_number, "
                "state, created, changed) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    row.series_uid,
                    row.revision,
                    row.study_uid,
                    series_number,
                    JobState.WAITING,
                    now,
                    now,
                ),
            )
            if cursor.rowcount:
                self._event(db, f"job/{cursor.lastrowid}", None, JobState.WAITING, None)
            found = db.execute(
                f"SELECT {_JOB_COLUMNS} FROM jobs WHERE series_uid = ? AND revision = ?",
                (row.series_uid, row.revision),
            ).fetchone()
            return Job.from_row(found)

    def job(self, job_id: int) -> Job:
        """One job; raises UnknownJob."""
        rows = self._rows(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise UnknownJob(f"There is no job {job_id}; `dicom-node jobs` lists those there are.")
        return Job.from_row(rows[0])

    def jobs(self, states: Iterable[JobState] = (), *, after: int = 0, limit: int = 100) -> list[Job]:
        """Jobs in order of creation, those in `states` (all when empty), from after job `after`."""
        wanted = list(states)
        where = f" AND state IN ({', '.join('?' * len(wanted))})" if wanted else ""
        return [
            Job.from_row(row)
            for row in self._rows(
                f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id > ?{where} ORDER BY id LIMIT ?",
                (after, *wanted, limit),
            )
        ]

    def jobs_of_study(self, study_uid: str) -> list[Job]:
        """Every job of a study, of every revision."""
        return [
            Job.from_row(row)
            for row in self._rows(
                f"SELECT {_JOB_COLUMNS} FROM jobs WHERE study_uid = ? ORDER BY id", (study_uid,)
            )
        ]

    def count_jobs(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {
            row["state"]: row["n"]
            for row in self._rows("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state")
        }

    def change_job(
        self,
        job_id: int,
        to: JobState,
        why: Reason | None = None,
        *,
        expected: JobState | None = None,
        who: str | None = None,
        figures: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> bool:
        """Move a job, with its reason and any columns that belong to the change, in one transaction.

        `expected`: do nothing and return False when the job is in another state by now (it was superseded
        while a worker computed, say). Raises UnknownJob and IllegalChange.
        """
        with self._transaction() as db:
            row = db.execute(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise UnknownJob(f"There is no job {job_id}; `dicom-node jobs` lists those there are.")
            job = Job.from_row(row)
            if expected is not None and job.state is not expected:
                return False
            self._change_job(db, job, to, why, who=who, figures=figures, **columns)
            return True

    def _change_job(
        self,
        db: sqlite3.Connection,
        job: Job,
        to: JobState,
        why: Reason | None,
        *,
        who: str | None = None,
        figures: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        if to not in JOB_LEAVES[job.state]:
            raise IllegalChange(f"Job {job.id} is {job.state}; it cannot become {to}.")
        columns |= {
            "state": to,
            "changed": self._clock(),
            "reason_code": why.code if why else None,
            "reason_text": why.text if why else None,
        }
        if figures is not None:
            columns["figures"] = json.dumps(figures)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        db.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*columns.values(), job.id))
        self._event(db, f"job/{job.id}", job.state, to, why, who=who, figures=figures)

    def renew_lease(self, job_id: int, until: float) -> bool:
        """The worker that holds a job is alive; False when the job is no longer `correcting`."""
        with self._transaction() as db:
            return bool(
                db.execute(
                    "UPDATE jobs SET lease_until = ? WHERE id = ? AND state = ?",
                    (until, job_id, JobState.CORRECTING),
                ).rowcount
            )

    def issue_uids(self, job_id: int, uids: Iterable[str]) -> None:
        """Remember UIDs that this node minted, so that it recognises its own output when it comes back."""
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO issued VALUES (?, ?)", [(uid, job_id) for uid in uids])

    def was_issued(self, uid: str) -> bool:
        """Did this node mint this UID?"""
        return bool(self._rows("SELECT 1 FROM issued WHERE uid = ?", (uid,)))

    # ---------------------------------------------------------------- deliveries

    def start_delivery(
        self,
        job_id: int,
        destinations: Iterable[str],
        *,
        expected: JobState,
        why: Reason | None = None,
        who: str | None = None,
    ) -> bool:
        """The job becomes `sending` and each destination is owed it; False when it moved meanwhile.

        Also a destination that had an earlier result: what it has already of this one is not sent again.
        """
        with self._transaction() as db:
            row = db.execute(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
            job = Job.from_row(row)
            if job.state is not expected:
                return False
            now = self._clock()
            self._change_job(db, job, JobState.SENDING, why, who=who)
            for destination in destinations:
                db.execute(
                    "INSERT INTO deliveries(job_id, destination, state, next_attempt_at, since) "
                    "VALUES (?, ?, ?, ?, ?) ON CONFLICT(job_id, destination) DO UPDATE SET "
                    "state = excluded.state, next_attempt_at = excluded.next_attempt_at, "
                    "since = excluded.since",
                    (job_id, destination, DeliveryState.PENDING, now, now),
                )
            return True

    def deliveries(self, job_id: int) -> list[Delivery]:
        """What each destination is owed of a job."""
        return [
            Delivery.from_row(row)
            for row in self._rows("SELECT * FROM deliveries WHERE job_id = ? ORDER BY destination", (job_id,))
        ]

    def due_delivery(self, destination: str) -> Delivery | None:
        """The delivery that this destination should get next, of a job that is still `sending`."""
        rows = self._rows(
            "SELECT d.* FROM deliveries d JOIN jobs j ON j.id = d.job_id WHERE d.destination = ? "
            "AND d.state IN ('pending', 'sending') AND d.next_attempt_at <= ? AND j.state = 'sending' "
            "ORDER BY d.next_attempt_at, d.job_id LIMIT 1",
            (destination, self._clock()),
        )
        return Delivery.from_row(rows[0]) if rows else None

    def change_delivery(
        self,
        delivery: Delivery,
        to: DeliveryState,
        why: Reason | None = None,
        *,
        attempts: int | None = None,
        next_attempt_at: float | None = None,
    ) -> bool:
        """Move a delivery; False when its job is no longer `sending`. Raises IllegalChange.

        Settles the job too when this was the last destination: `sent` when all have it, `failed` when
        one never will.
        """
        with self._transaction() as db:
            job = Job.from_row(
                db.execute(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?", (delivery.job_id,)).fetchone()
            )
            key = (delivery.job_id, delivery.destination)
            row = db.execute("SELECT * FROM deliveries WHERE job_id = ? AND destination = ?", key).fetchone()
            was = DeliveryState(row["state"])
            if job.state is not JobState.SENDING:
                return False
            if to is not was and to not in DELIVERY_LEAVES[was]:
                raise IllegalChange(
                    f"The delivery of job {job.id} to {delivery.destination} is {was}, not to be {to}."
                )
            db.execute(
                "UPDATE deliveries SET state = ?, attempts = ?, next_attempt_at = ?, reason_code = ?, "
                "reason_text = ? WHERE job_id = ? AND destination = ?",
                (
                    to,
                    row["attempts"] if attempts is None else attempts,
                    row["next_attempt_at"] if next_attempt_at is None else next_attempt_at,
                    why.code if why else None,
                    why.text if why else None,
                    *key,
                ),
            )
            self._event(db, f"delivery/{job.id}/{delivery.destination}", was, to, why)
            owed = {
                DeliveryState(r["state"]): r
                for r in db.execute("SELECT * FROM deliveries WHERE job_id = ?", (job.id,))
            }
            if owed.keys() <= {DeliveryState.SENT, DeliveryState.COMMITTED}:
                self._change_job(db, job, JobState.SENT, None)
            elif not owed.keys() & {DeliveryState.PENDING, DeliveryState.SENDING}:
                lost = owed[DeliveryState.FAILED]
                self._change_job(
                    db, job, JobState.FAILED, Reason(Code(lost["reason_code"]), lost["reason_text"])
                )
            return True

    def record_stored(self, delivery: Delivery, file: str, status: int) -> None:
        """A destination has one instance (result/file): no later attempt sends it."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO delivered_instances VALUES (?, ?, ?, ?)",
                (delivery.job_id, delivery.destination, file, status),
            )

    def stored(self, delivery: Delivery) -> frozenset[str]:
        """The files of a job's result that a destination already has."""
        return frozenset(
            row["file"]
            for row in self._rows(
                "SELECT file FROM delivered_instances WHERE job_id = ? AND destination = ?",
                (delivery.job_id, delivery.destination),
            )
        )

    # ---------------------------------------------------------------- events

    def events(self, subject: str) -> list[Event]:
        """What happened to `job/ID`, `series/UID` or `delivery/ID/NAME`, oldest first."""
        return [
            Event.from_row(row)
            for row in self._rows("SELECT * FROM events WHERE subject = ? ORDER BY id", (subject,))
        ]

    def _event(
        self,
        db: sqlite3.Connection,
        subject: str,
        was: str | None,
        became: str | None,
        why: Reason | None,
        *,
        who: str | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        db.execute(
            "INSERT INTO events(at, subject, was, became, code, text, who, figures) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._clock(),
                subject,
                was,
                became,
                why.code if why else None,
                why.text if why else None,
                who,
                json.dumps(figures) if figures is not None else None,
            ),
        )
