"""What is deleted, and when: studies whose results have arrived, after a while; others after a longer while.

Two steps, so that a crash between them loses nothing and leaves nothing behind: one transaction in the
ledger checks once more that the study may go, says so and takes its rows out; the disk follows, as often as
it takes. An instance that arrives again in between is refused for the moment (the trigger of the ledger's
`doomed` table), because the file that it would be counted for is about to go.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.spool import Spool
from dicom_node.states import DELIVERED_JOBS, MOVING_JOBS, JobState
from rules.reasons import Code, Reason, reason

DAY_S = 86400.0
EVERY_S = 600.0  # how often the node looks
STUDIES_AT_ONCE = 100
FILES_AT_ONCE = 500
# How long the path of a deleted file stays barred: an association that found the file still there, just
# before it went, has then long recorded it, in vain, or given up.
BARRED_S = 600.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """keep_days: after everything arrived (and was committed, where asked). keep_unsent_days: otherwise."""

    keep_days: float
    keep_unsent_days: float


@dataclass(frozen=True, slots=True)
class DeletedStudy:
    """A study that left the ledger; its files follow."""

    study_uid: str
    instances: int
    jobs: int
    sent: bool


def retain(ledger: Ledger, spool: Spool, policy: RetentionPolicy) -> list[DeletedStudy]:
    """Delete what may go now; what an earlier run could not finish first."""
    finish_deletions(ledger, spool)
    deleted = []
    for study_uid in _candidates(ledger, policy):
        study = _take_out(ledger, study_uid, policy)
        if study is not None:
            deleted.append(study)
            finish_deletions(ledger, spool)
            log.info(
                "study deleted", study=study.study_uid, instances=study.instances, jobs=study.jobs,
                state="sent" if study.sent else "unsent",
            )  # fmt: skip
    _take_out_orphans(ledger, policy)
    finish_deletions(ledger, spool)
    _lift_bars(ledger)
    return deleted


def finish_deletions(ledger: Ledger, spool: Spool) -> int:
    """Delete the files of studies that have left the ledger; how many. Doing it again does nothing more."""
    done = 0
    while paths := [
        row["path"]
        for row in ledger.rows("SELECT path FROM doomed WHERE gone IS NULL LIMIT ?", (FILES_AT_ONCE,))
    ]:
        spool.remove(paths)
        with ledger.transaction() as db:
            now = ledger.now()
            db.executemany("UPDATE doomed SET gone = ? WHERE path = ?", [(now, path) for path in paths])
        done += len(paths)
    return done


def _take_out_orphans(ledger: Ledger, policy: RetentionPolicy) -> None:
    """Results that were found on disk after the ledger was lost, and that no job has asked for since."""
    with ledger.transaction() as db:
        now = ledger.now()
        names = [
            row["name"]
            for row in db.execute(
                "SELECT name FROM found_results WHERE at < ? "
                "AND name NOT IN (SELECT result FROM jobs WHERE result IS NOT NULL)",
                (now - policy.keep_unsent_days * DAY_S,),
            )
        ]
        db.executemany(
            "INSERT OR REPLACE INTO doomed VALUES (?, ?, NULL)", [(f"results/{name}", now) for name in names]
        )
        db.executemany("DELETE FROM found_results WHERE name = ?", [(name,) for name in names])


def _lift_bars(ledger: Ledger) -> None:
    with ledger.transaction() as db:
        db.execute("DELETE FROM doomed WHERE gone < ?", (ledger.now() - BARRED_S,))


def _candidates(ledger: Ledger, policy: RetentionPolicy) -> Iterator[str]:
    """Studies that are old enough by their last instance, oldest first; whether they may, is seen later."""
    newest = ledger.now() - DAY_S * min(policy.keep_days, policy.keep_unsent_days)
    after: tuple[float, str] = (-1.0, "")
    while True:
        page = ledger.rows(
            "SELECT study_uid, last_at FROM studies WHERE deleted IS NULL AND last_at <= ? "
            "AND (last_at, study_uid) > (?, ?) ORDER BY last_at, study_uid LIMIT ?",
            (newest, *after, STUDIES_AT_ONCE),
        )
        for row in page:
            yield row["study_uid"]
        if len(page) < STUDIES_AT_ONCE:
            return
        after = (page[-1]["last_at"], page[-1]["study_uid"])


# -------------------------------------------------------------------- within one transaction


def _take_out(ledger: Ledger, study_uid: str, policy: RetentionPolicy) -> DeletedStudy | None:
    """Take a study out of the ledger if it may go; None when it may not."""
    with ledger.transaction() as db:
        kept_since = _kept_since(db, study_uid)
        if kept_since is None:
            return None
        last_at, sent = kept_since
        days = policy.keep_days if sent else policy.keep_unsent_days
        if ledger.now() - last_at < days * DAY_S:
            return None
        why = reason(Code.DELETED, f"{'sent and ' if sent else ''}older than {days:g} days")
        return _doom(ledger, db, study_uid, sent, why)


def _kept_since(db: sqlite3.Connection, study_uid: str) -> tuple[float, bool] | None:
    """(when something last happened to a study, whether its results have arrived); None: it must stay."""
    study = db.execute("SELECT * FROM studies WHERE study_uid = ?", (study_uid,)).fetchone()
    if study is None or study["deleted"] is not None or not study["settled"]:
        return None
    if _growing(db, study_uid) or _is_reference_in_progress(db, study_uid):
        return None
    jobs = db.execute(
        "SELECT state, changed FROM jobs WHERE study_uid = ? AND deleted IS NULL", (study_uid,)
    ).fetchall()
    states = {JobState(job["state"]) for job in jobs}
    if states & MOVING_JOBS or _awaits_promise(db, study_uid) or _owes_a_note(db, study_uid):
        return None
    last_at = max([study["last_at"], *(job["changed"] for job in jobs)])
    # what was skipped beside what was sent (a by-product, mostly) has nothing that could still arrive
    sent = bool(states & DELIVERED_JOBS) and not states & {JobState.FAILED, JobState.WITHHELD}
    return last_at, sent


def _growing(db: sqlite3.Connection, study_uid: str) -> bool:
    found = db.execute(
        "SELECT 1 FROM series WHERE study_uid = ? AND deleted IS NULL AND state = 'receiving'", (study_uid,)
    ).fetchone()
    return found is not None


def _is_reference_in_progress(db: sqlite3.Connection, study_uid: str) -> bool:
    """Whether a correction that is in progress, of any study, needs a series of this one."""
    moving = sorted(MOVING_JOBS)
    found = db.execute(
        "SELECT 1 FROM jobs JOIN series ON series.series_uid = jobs.reference_series_uid "
        f"WHERE series.study_uid = ? AND jobs.state IN ({', '.join('?' * len(moving))})",
        (study_uid, *moving),
    ).fetchone()
    return found is not None


def _awaits_promise(db: sqlite3.Connection, study_uid: str) -> bool:
    """Whether a destination has not yet promised to keep what it was sent."""
    found = db.execute(
        "SELECT 1 FROM deliveries d JOIN jobs j ON j.id = d.job_id "
        "WHERE j.study_uid = ? AND j.state = 'sent' AND d.commitment = 1 AND d.state <> 'committed'",
        (study_uid,),
    ).fetchone()
    return found is not None


def _owes_a_note(db: sqlite3.Connection, study_uid: str) -> bool:
    """Whether a destination must still be told of a withdrawal: the note is made from the files."""
    found = db.execute(
        "SELECT 1 FROM withdrawals w JOIN jobs j ON j.id = w.job_id "
        "WHERE j.study_uid = ? AND w.state IN ('pending', 'sending')",
        (study_uid,),
    ).fetchone()
    return found is not None


def _doom(ledger: Ledger, db: sqlite3.Connection, study_uid: str, sent: bool, why: Reason) -> DeletedStudy:
    now = ledger.now()
    jobs = db.execute(
        "SELECT id, state, result FROM jobs WHERE study_uid = ? AND deleted IS NULL", (study_uid,)
    ).fetchall()
    paths = [
        row["path"] for row in db.execute("SELECT path FROM instances WHERE study_uid = ?", (study_uid,))
    ]
    results = {f"results/{job['result']}" for job in jobs if job["result"]}
    db.executemany(
        "INSERT OR REPLACE INTO doomed VALUES (?, ?, NULL)",
        [(path, now) for path in (*paths, *sorted(results))],
    )
    series = "(SELECT series_uid FROM series WHERE study_uid = ?)"
    db.execute(f"DELETE FROM series_associations WHERE series_uid IN {series}", (study_uid,))
    db.execute("DELETE FROM instances WHERE study_uid = ?", (study_uid,))
    db.execute("UPDATE series SET deleted = ?, facts = NULL WHERE study_uid = ?", (now, study_uid))
    db.execute("UPDATE studies SET deleted = ? WHERE study_uid = ?", (now, study_uid))
    db.execute("UPDATE jobs SET deleted = ? WHERE study_uid = ? AND deleted IS NULL", (now, study_uid))
    for job in jobs:
        # what was delivered of it is forgotten with it: sent again by the scanner, it is sent on again
        for table in ("delivered_instances", "commitments"):
            db.execute(f"DELETE FROM {table} WHERE job_id = ?", (job["id"],))
        ledger.event(db, f"job/{job['id']}", job["state"], job["state"], why)
    ledger.event(db, f"study/{study_uid}", None, None, why)
    return DeletedStudy(study_uid, len(paths), len(jobs), sent)
