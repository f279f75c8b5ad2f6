"""The ledger's tables, and how an older ledger becomes a newer one.

`PRAGMA user_version` counts the migrations that ran; each runs in one transaction with its count.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE associations (
        id TEXT PRIMARY KEY, calling_ae TEXT NOT NULL, address TEXT NOT NULL,
        opened REAL NOT NULL, closed REAL, aborted INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX associations_open ON associations(closed) WHERE closed IS NULL;

    CREATE TABLE instances (
        sop_uid TEXT NOT NULL, revision INTEGER NOT NULL,
        study_uid TEXT NOT NULL, series_uid TEXT NOT NULL,
        sop_class_uid TEXT NOT NULL, transfer_syntax_uid TEXT NOT NULL,
        sha256 TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL,
        association_id TEXT NOT NULL, received_at REAL NOT NULL, repeats INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (sop_uid, revision)) WITHOUT ROWID;
    CREATE INDEX instances_series ON instances(series_uid);

    CREATE TABLE studies (
        study_uid TEXT PRIMARY KEY, last_at REAL NOT NULL,
        settled INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE INDEX studies_unsettled ON studies(settled) WHERE settled = 0;

    CREATE TABLE series (
        series_uid TEXT PRIMARY KEY, study_uid TEXT NOT NULL, state TEXT NOT NULL,
        revision INTEGER NOT NULL, first_at REAL NOT NULL, last_at REAL NOT NULL,
        patient TEXT, facts TEXT, series_class TEXT, class_reason TEXT) WITHOUT ROWID;
    CREATE INDEX series_study ON series(study_uid);
    CREATE INDEX series_patient ON series(patient);
    CREATE INDEX series_receiving ON series(state) WHERE state = 'receiving';

    CREATE TABLE series_associations (
        series_uid TEXT NOT NULL, association_id TEXT NOT NULL,
        PRIMARY KEY (series_uid, association_id)) WITHOUT ROWID;

    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        series_uid TEXT NOT NULL, revision INTEGER NOT NULL, study_uid TEXT NOT NULL,
        series_number INTEGER,
        state TEXT NOT NULL, reason_code TEXT, reason_text TEXT,
        reference_series_uid TEXT, reference_revision INTEGER, choice TEXT, result TEXT,
        output_series_uid TEXT, verdict TEXT, figures TEXT,
        attempts INTEGER NOT NULL DEFAULT 0, next_attempt_at REAL NOT NULL DEFAULT 0,
        lease_until REAL, created REAL NOT NULL, changed REAL NOT NULL,
        UNIQUE (series_uid, revision));
    CREATE INDEX jobs_state ON jobs(state, id);
    CREATE INDEX jobs_study ON jobs(study_uid);

    CREATE TABLE deliveries (
        job_id INTEGER NOT NULL REFERENCES jobs(id), destination TEXT NOT NULL,
        state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_attempt_at REAL NOT NULL,
        since REAL NOT NULL, reason_code TEXT, reason_text TEXT,
        PRIMARY KEY (job_id, destination)) WITHOUT ROWID;
    CREATE INDEX deliveries_due ON deliveries(destination, state, next_attempt_at);

    CREATE TABLE delivered_instances (
        job_id INTEGER NOT NULL, destination TEXT NOT NULL, file TEXT NOT NULL, status INTEGER NOT NULL,
        PRIMARY KEY (job_id, destination, file)) WITHOUT ROWID;

    CREATE TABLE issued (uid TEXT PRIMARY KEY, job_id INTEGER NOT NULL) WITHOUT ROWID;

    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, subject TEXT NOT NULL,
        was TEXT, became TEXT, code TEXT, text TEXT, who TEXT, figures TEXT);
    CREATE INDEX events_subject ON events(subject, id);
    """,
    """
    -- commitment: the destination still has to say that it stores for good. asks: how often we asked;
    -- refusals: how often it said of some instance that it does not have it.
    ALTER TABLE deliveries ADD COLUMN commitment INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE deliveries ADD COLUMN asks INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE deliveries ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE delivered_instances ADD COLUMN committed INTEGER NOT NULL DEFAULT 0;

    CREATE TABLE commitments (
        transaction_uid TEXT PRIMARY KEY, job_id INTEGER NOT NULL, destination TEXT NOT NULL,
        asked REAL NOT NULL, answered REAL) WITHOUT ROWID;
    CREATE INDEX commitments_job ON commitments(job_id, destination);
    CREATE TABLE commitment_instances (
        transaction_uid TEXT NOT NULL, sop_uid TEXT NOT NULL, file TEXT NOT NULL,
        PRIMARY KEY (transaction_uid, sop_uid)) WITHOUT ROWID;

    -- deleted: when its files were
    ALTER TABLE studies ADD COLUMN deleted REAL;
    ALTER TABLE series ADD COLUMN deleted REAL;
    ALTER TABLE jobs ADD COLUMN deleted REAL;
    CREATE INDEX studies_kept ON studies(last_at) WHERE deleted IS NULL;
    CREATE INDEX instances_study ON instances(study_uid);
    CREATE INDEX jobs_reference ON jobs(reference_series_uid);

    -- files and results that are to be deleted, relative to the root; gone: when they were. An instance
    -- that arrives again while its file is being deleted must not be counted in: that file will be gone.
    CREATE TABLE doomed (path TEXT PRIMARY KEY, at REAL NOT NULL, gone REAL) WITHOUT ROWID;
    CREATE TRIGGER no_row_for_doomed_files BEFORE INSERT ON instances
        WHEN EXISTS (SELECT 1 FROM doomed WHERE path = NEW.path)
        BEGIN SELECT RAISE(ABORT, 'this file is being deleted'); END;

    -- results on disk that no job knew of when the node started: made before the ledger was lost
    CREATE TABLE found_results (name TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE jobs ADD COLUMN inputs TEXT;
    """,
    """
    CREATE TABLE withdrawals (
        job_id INTEGER NOT NULL REFERENCES jobs(id), destination TEXT NOT NULL,
        state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_attempt_at REAL NOT NULL,
        since REAL NOT NULL, reason_code TEXT, reason_text TEXT,
        PRIMARY KEY (job_id, destination)) WITHOUT ROWID;
    CREATE INDEX withdrawals_due ON withdrawals(destination, state, next_attempt_at);
    """,
)


class LedgerFromTheFuture(sqlite3.DatabaseError):
    """The ledger was written by a newer version of the program."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an open ledger to the newest schema; raises LedgerFromTheFuture."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise LedgerFromTheFuture(f"the ledger has schema {version}; this version knows {len(MIGRATIONS)}")
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN EXCLUSIVE")
    try:
        # another process may have migrated between the first look and the lock
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger, which has semicolons inside, is one."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
