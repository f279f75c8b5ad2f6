"""The ledger: what was received, what became of it, and why, in one SQLite file.

Disk is the truth for bytes, the ledger for states. Every change of state is one transaction that also
appends to `events`. Several processes open the same file: write-ahead log, `synchronous=FULL`, so a
committed row survives a power cut.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dicom_node.ledger_core import JOB_COLUMNS, IllegalChange, LedgerError, UnknownJob
from dicom_node.ledger_deliveries import DeliveryLedger
from dicom_node.records import Growth, InstanceRecord, Job, SeriesRow
from dicom_node.states import DELIVERED_JOBS, JobState, SeriesState
from rules.reasons import Code, Reason, reason

__all__ = ["IllegalChange", "Ledger", "LedgerError", "UnknownJob", "path_below"]


HOUR_S = 3600.0  # nothing is put off for longer than this


def path_below(root: Path) -> Path:
    """Where the ledger lies below the storage root."""
    return root / "ledger.sqlite"


_INSTANCE_COLUMNS = tuple(field.name for field in fields(InstanceRecord))
_INSERT_INSTANCE = "INSERT INTO instances({}) VALUES ({})".format(
    ", ".join(_INSTANCE_COLUMNS), ", ".join("?" * len(_INSTANCE_COLUMNS))
)


class Ledger(DeliveryLedger):
    """One connection to the ledger; usable from several threads of a process, one at a time."""

    # ---------------------------------------------------------------- receiving

    def association_opened(self, association_id: str, calling_ae: str, address: str) -> None:
        """A peer opened an association."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO associations(id, calling_ae, address, opened) VALUES (?, ?, ?, ?)",
                (association_id, calling_ae, address, self._clock()),
            )

    def association_closed(self, association_id: str, aborted: bool) -> None:
        """A peer released its association, or it was aborted."""
        with self.transaction() as db:
            db.execute(
                "UPDATE associations SET closed = ?, aborted = ? WHERE id = ? AND closed IS NULL",
                (self._clock(), int(aborted), association_id),
            )

    def close_orphaned_associations(self) -> None:
        """When the listener starts, every association of its predecessor is over."""
        with self.transaction() as db:
            db.execute(
                "UPDATE associations SET closed = ?, aborted = 1 WHERE closed IS NULL", (self._clock(),)
            )

    def instance(self, sop_uid: str) -> InstanceRecord | None:
        """The newest revision of an instance, or None when it never arrived."""
        rows = self.committed_rows(
            "SELECT * FROM instances WHERE sop_uid = ? ORDER BY revision DESC LIMIT 1", (sop_uid,)
        )
        return InstanceRecord.from_row(rows[0]) if rows else None

    def record_instance(self, record: InstanceRecord) -> None:
        """As `record_instances`, for one."""
        self.record_instances([record])

    def record_instances(self, records: Sequence[InstanceRecord]) -> None:
        """New instances, or new revisions of some, are durable on disk: count them in, all or none.

        Re-opens their series when those were complete, and supersedes the jobs of those unless a PACS has
        them. Raises sqlite3.IntegrityError when a revision was recorded before.
        """
        with self.transaction() as db:
            for record in records:
                self._record(db, record)

    def _record(self, db: sqlite3.Connection, record: InstanceRecord) -> None:
        db.execute(_INSERT_INSTANCE, [getattr(record, column) for column in _INSTANCE_COLUMNS])
        db.execute(
            "INSERT OR IGNORE INTO series_associations VALUES (?, ?)",
            (record.series_uid, record.association_id),
        )
        db.execute(
            "INSERT INTO studies(study_uid, last_at) VALUES (?, ?) "
            "ON CONFLICT(study_uid) DO UPDATE SET last_at = excluded.last_at, settled = 0, deleted = NULL",
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
            self.event(db, f"series/{record.series_uid}", None, SeriesState.RECEIVING, None)
            return
        db.execute(
            "UPDATE series SET last_at = ?, deleted = NULL WHERE series_uid = ?",
            (record.received_at, record.series_uid),
        )
        if row["state"] == SeriesState.COMPLETE:
            self._reopen(db, record.series_uid, row["revision"])

    def _reopen(self, db: sqlite3.Connection, series_uid: str, revision: int) -> None:
        why = reason(Code.NEW_REVISION, f"revision {revision + 1}")
        db.execute(
            "UPDATE series SET state = ?, revision = ? WHERE series_uid = ?",
            (SeriesState.RECEIVING, revision + 1, series_uid),
        )
        self.event(db, f"series/{series_uid}", SeriesState.COMPLETE, SeriesState.RECEIVING, why)
        for row in db.execute(
            f"SELECT {JOB_COLUMNS} FROM jobs WHERE series_uid = ? AND revision = ?", (series_uid, revision)
        ).fetchall():
            job = Job.from_row(row)
            if job.state not in DELIVERED_JOBS and job.state is not JobState.SUPERSEDED:
                self.move_job(db, job, JobState.SUPERSEDED, why)

    def record_repeat(self, sop_uid: str) -> None:
        """The same bytes arrived again: counted, and nothing else changes."""
        with self.transaction() as db:
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
            for row in self.rows(
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
            for row in self.rows(
                "SELECT i.* FROM instances i WHERE i.series_uid = ? AND i.revision = "
                "(SELECT MAX(revision) FROM instances j WHERE j.sop_uid = i.sop_uid) ORDER BY i.sop_uid",
                (series_uid,),
            )
        ]

    def complete_series(self, series_uid: str, facts: str, patient: str, *, seen_last_at: float) -> bool:
        """`receiving → complete` with its facts; False when an instance arrived since `seen_last_at`."""
        with self.transaction() as db:
            changed = db.execute(
                "UPDATE series SET state = ?, facts = ?, patient = ? "
                "WHERE series_uid = ? AND state = ? AND last_at = ?",
                (SeriesState.COMPLETE, facts, patient, series_uid, SeriesState.RECEIVING, seen_last_at),
            ).rowcount
            if changed:
                self.event(db, f"series/{series_uid}", SeriesState.RECEIVING, SeriesState.COMPLETE, None)
                # studies of the same patient may have waited for this one as a reference
                db.execute(
                    "UPDATE studies SET settled = 0 WHERE study_uid IN "
                    "(SELECT study_uid FROM series WHERE patient = ? OR series_uid = ?)",
                    (patient, series_uid),
                )
            return bool(changed)

    def classify_series(self, series_uid: str, series_class: str, class_reason: str) -> None:
        """What the rules say a series is; for people, never read back for a decision."""
        with self.transaction() as db:
            db.execute(
                "UPDATE series SET series_class = ?, class_reason = ? WHERE series_uid = ?",
                (series_class, class_reason, series_uid),
            )

    def series(self, study_uid: str) -> list[SeriesRow]:
        """The series of a study whose files are here, in order of arrival."""
        return [
            SeriesRow.from_row(row)
            for row in self.rows(
                "SELECT * FROM series WHERE study_uid = ? AND deleted IS NULL ORDER BY first_at, series_uid",
                (study_uid,),
            )
        ]

    def series_of_patient(self, study_uid: str) -> list[SeriesRow]:
        """The complete series, in any study, of the patients of this study, whose files are here."""
        return [
            SeriesRow.from_row(row)
            for row in self.rows(
                "SELECT * FROM series WHERE state = 'complete' AND deleted IS NULL "
                "AND (study_uid = ? OR (patient <> '' AND patient IN "
                "(SELECT patient FROM series WHERE study_uid = ?))) ORDER BY first_at, series_uid",
                (study_uid, study_uid),
            )
        ]

    def all_series(self, *, after: str = "", limit: int = 100) -> list[SeriesRow]:
        """A page of all received series by SeriesInstanceUID."""
        return [
            SeriesRow.from_row(row)
            for row in self.rows(
                "SELECT * FROM series WHERE series_uid > ? ORDER BY series_uid LIMIT ?", (after, limit)
            )
        ]

    def latest_series(self, *, before: tuple[float, str] | None = None, limit: int = 100) -> list[SeriesRow]:
        """Received series from the newest backwards; `before`: time and UID of the last one seen."""
        return [
            SeriesRow.from_row(row)
            for row in self.rows(
                "SELECT * FROM series WHERE ? OR (last_at, series_uid) < (?, ?) "
                "ORDER BY last_at DESC, series_uid DESC LIMIT ?",
                (before is None, *(before or (0.0, "")), limit),
            )
        ]

    def unsettled_studies(self) -> list[tuple[str, float]]:
        """(StudyInstanceUID, time of its last instance) where something may still be decided."""
        return [
            (row["study_uid"], row["last_at"])
            for row in self.rows("SELECT study_uid, last_at FROM studies WHERE settled = 0 ORDER BY last_at")
        ]

    def settle_study(self, study_uid: str, seen_last_at: float) -> None:
        """Nothing is left to decide in this study until something new arrives."""
        with self.transaction() as db:
            db.execute(
                "UPDATE studies SET settled = 1 WHERE study_uid = ? AND last_at = ? AND NOT EXISTS "
                "(SELECT 1 FROM series WHERE study_uid = studies.study_uid AND state = 'receiving')",
                (study_uid, seen_last_at),
            )

    def unsettle_study(self, study_uid: str) -> None:
        """Something in this study has to be decided again."""
        with self.transaction() as db:
            db.execute("UPDATE studies SET settled = 0 WHERE study_uid = ?", (study_uid,))

    def forget_future(self) -> None:
        """After the clock was set back: what was noted for a time still far away is as if it were now.

        Otherwise a series that arrived under the wrong clock would be waited for until that time comes.
        """
        now = self._clock()
        with self.transaction() as db:
            for table, column, where, farthest_s in (
                ("series", "last_at", "state = 'receiving'", 0.0),
                ("studies", "last_at", "settled = 0", 0.0),
                ("jobs", "next_attempt_at", "state = 'queued'", 2 * HOUR_S),
                ("deliveries", "next_attempt_at", "state IN ('pending', 'sending')", 2 * HOUR_S),
            ):
                db.execute(
                    f"UPDATE {table} SET {column} = ? WHERE {where} AND {column} > ?",
                    (now, now + farthest_s),
                )

    # ---------------------------------------------------------------- jobs

    def create_job(self, row: SeriesRow, series_number: int | None) -> Job:
        """The job of this series and revision, `waiting`; the existing one when there is one."""
        with self.transaction() as db:
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
                self.event(db, f"job/{cursor.lastrowid}", None, JobState.WAITING, None)
            found = db.execute(
                f"SELECT {JOB_COLUMNS} FROM jobs WHERE series_uid = ? AND revision = ?",
                (row.series_uid, row.revision),
            ).fetchone()
            return Job.from_row(found)

    def jobs(self, states: Iterable[JobState] = (), *, after: int = 0, limit: int = 100) -> list[Job]:
        """Jobs in order of creation, those in `states` (all when empty), from after job `after`."""
        wanted = list(states)
        where = f" AND state IN ({', '.join('?' * len(wanted))})" if wanted else ""
        return [
            Job.from_row(row)
            for row in self.rows(
                f"SELECT {JOB_COLUMNS} FROM jobs WHERE id > ?{where} ORDER BY id LIMIT ?",
                (after, *wanted, limit),
            )
        ]

    def jobs_of_study(self, study_uid: str) -> list[Job]:
        """Every job of a study, of every revision."""
        return [
            Job.from_row(row)
            for row in self.rows(
                f"SELECT {JOB_COLUMNS} FROM jobs WHERE study_uid = ? ORDER BY id", (study_uid,)
            )
        ]

    def count_jobs(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {
            row["state"]: row["n"]
            for row in self.rows("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state")
        }

    def latest_jobs(
        self, states: Iterable[JobState] = (), *, before: int | None = None, limit: int = 100
    ) -> list[Job]:
        """Jobs from the newest backwards, those in `states` (all when empty), from before job `before`."""
        wanted = list(states)
        where = f" AND state IN ({', '.join('?' * len(wanted))})" if wanted else ""
        return [
            Job.from_row(row)
            for row in self.rows(
                f"SELECT {JOB_COLUMNS} FROM jobs WHERE id < ?{where} ORDER BY id DESC LIMIT ?",
                (before if before is not None else 2**62, *wanted, limit),
            )
        ]

    def count_open_associations(self) -> int:
        """How many associations that brought instances are open."""
        (row,) = self.rows("SELECT COUNT(*) AS n FROM associations WHERE closed IS NULL")
        return int(row["n"])

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
        with self.transaction() as db:
            row = db.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise UnknownJob(f"There is no job {job_id}; `dicom-node jobs` lists those there are.")
            job = Job.from_row(row)
            if expected is not None and job.state is not expected:
                return False
            self.move_job(db, job, to, why, who=who, figures=figures, **columns)
            return True

    def renew_lease(self, job_id: int, until: float) -> bool:
        """The worker that holds a job is alive; False when the job is no longer `correcting`."""
        with self.transaction() as db:
            return bool(
                db.execute(
                    "UPDATE jobs SET lease_until = ? WHERE id = ? AND state = ?",
                    (until, job_id, JobState.CORRECTING),
                ).rowcount
            )

    def issue_uids(self, job_id: int, uids: Iterable[str]) -> None:
        """Remember UIDs that this node minted, so that it recognises its own output when it comes back."""
        with self.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO issued VALUES (?, ?)", [(uid, job_id) for uid in uids])

    def was_issued(self, uid: str) -> bool:
        """Did this node mint this UID?"""
        return bool(self.rows("SELECT 1 FROM issued WHERE uid = ?", (uid,)))

    def was_found(self, result: str) -> bool:
        """Whether this result was on disk before the ledger knew of it: made before the ledger was lost."""
        return bool(self.rows("SELECT 1 FROM found_results WHERE name = ?", (result,)))
