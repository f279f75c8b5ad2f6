"""What every part of the ledger stands on: the connection, transactions, events, the one way to move a job.

Several processes open the same file: write-ahead log, `synchronous=FULL`, so a committed row survives a
power cut.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from dicom_node.records import Event, Job
from dicom_node.schema import migrate
from dicom_node.states import JOB_LEAVES, JobState
from rules.reasons import Reason

BUSY_TIMEOUT_S = 30.0


class LedgerError(Exception):
    """The ledger cannot do what was asked; the message says why."""


class UnknownJob(LedgerError):
    """There is no job with this number."""


class IllegalChange(LedgerError):
    """A change of state that the table of states does not allow."""


JOB_COLUMNS = ", ".join(field.name for field in fields(Job))


class LedgerCore:
    """A connection to the ledger, usable from several threads of a process, one at a time; and one to look
    things up while another thread commits.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._lookup_lock = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = self._connected()
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        migrate(self._db)
        self._lookup = self._connected()
        self._lookup.execute("PRAGMA query_only = ON")

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        return connection

    def close(self) -> None:
        """Close the connections; the object is not usable afterwards."""
        with self._lock, self._lookup_lock:
            self._lookup.close()
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction: the write lock comes first, so that a check holds until its commit."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite rolls back by itself on a full disk; a transaction that stayed open would fail all
                # that come after it
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._db.execute(sql, parameters).fetchall()

    def committed_rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds of what is committed, without waiting for a transaction that is going on."""
        with self._lookup_lock:
            return self._lookup.execute(sql, parameters).fetchall()

    def now(self) -> float:
        """The time by the ledger's clock, in seconds since the epoch."""
        return self._clock()

    # ---------------------------------------------------------------- jobs

    def job(self, job_id: int) -> Job:
        """One job; raises UnknownJob."""
        rows = self.rows(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise UnknownJob(f"There is no job {job_id}; `dicom-node jobs` lists those there are.")
        return Job.from_row(rows[0])

    def move_job(
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
        """Within a transaction: move `job` with its reason and columns, and note the event."""
        if to not in JOB_LEAVES[job.state]:
            raise IllegalChange(f"Job {job.id} is {job.state}; it cannot become {to}.")
        if (
            to is JobState.WAITING
        ):  # in one step with it: a crash between the two would leave it to wait forever
            db.execute("UPDATE studies SET settled = 0 WHERE study_uid = ?", (job.study_uid,))
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
        self.event(db, f"job/{job.id}", job.state, to, why, who=who, figures=figures)

    # ---------------------------------------------------------------- events

    def events(self, subject: str) -> list[Event]:
        """What happened to `job/ID`, `series/UID` or `delivery/ID/NAME`, oldest first."""
        return [
            Event.from_row(row)
            for row in self.rows("SELECT * FROM events WHERE subject = ? ORDER BY id", (subject,))
        ]

    def event(
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
        """Within a transaction: note that something happened to `subject`."""
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
