"""Disk and ledger brought to agreement when the node starts.

Disk is the truth for bytes. A ledger that was deleted, damaged or restored from a backup knows less than
the disk: instances that it lacks are counted in as if they had just arrived, results that it lacks are
remembered as found. A disk that lost files (restored itself, or a failing device) knows less than the
ledger: their rows go, so that the same instance sent again is stored again. Where both agree, which is
nearly always, this is one look at each file name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from dicom_node.compute import read_outcome
from dicom_node.intake import read_file
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.received import Unidentifiable
from dicom_node.records import InstanceRecord
from dicom_node.spool import Spool, instance_path
from rules.reasons import Code, reason

BATCH = 500  # instances of one transaction
FROM_DISK = "from-disk"  # the association of instances that were counted in from disk
UNKNOWN_JOB = 0  # the job of UIDs that were issued before the ledger was lost

Progress = Callable[[int, int], None]
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What had to be done: instances counted in, instances lost, unusable files, results found."""

    adopted: int = 0
    lost: int = 0
    unusable: int = 0
    found_results: int = 0

    @property
    def agreed(self) -> bool:
        """Whether disk and ledger said the same."""
        return self == Agreement()


# -------------------------------------------------------------------- a ledger that can be opened


def open_ledger(path: Path, spool: Spool) -> Ledger:
    """The ledger at `path`; one that SQLite finds damaged is put aside, and an empty one takes its place.

    Raises schema.LedgerFromTheFuture, and sqlite3.OperationalError when the disk does not let it be read.
    """
    if path.exists() and not _is_sound(path):
        spool.set_aside(path)
        for ending in ("-wal", "-shm"):  # of the damaged one: with another file they would damage that too
            beside = path.with_name(path.name + ending)
            if beside.exists():
                spool.set_aside(beside)
        log.error("the ledger is damaged and was put aside; it is built again from disk")
    return Ledger(path)


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as database:
            return bool(database.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return False
        raise


# -------------------------------------------------------------------- agreement


def agree(ledger: Ledger, spool: Spool, progress: Progress = lambda done, of: None) -> Agreement:
    """Count in what the ledger lacks, forget what the disk lacks. May run beside the listener.

    progress: called with (instances counted in, instances to count in) after each batch.
    """
    on_disk = dict(spool.instance_files())  # first: what arrives meanwhile is then in the ledger only
    rows = {row["path"]: row["size"] for row in ledger.rows("SELECT path, size FROM instances")}
    doomed = {row["path"] for row in ledger.rows("SELECT path FROM doomed")}
    gone = [path for path in rows if path not in on_disk and not (spool.root / path).exists()]
    damaged = sorted(path for path, size in on_disk.items() if rows.get(path, size) != size)
    for path in damaged:
        spool.quarantine_instance(path, "its size is not that which the ledger has")
    _forget(ledger, [*gone, *damaged])
    missing = [path for path in on_disk if path not in rows and path not in doomed]
    adopted, unusable = _adopt(ledger, spool, missing, progress)
    agreement = Agreement(
        adopted=adopted,
        lost=len(gone),
        unusable=unusable + len(damaged),
        found_results=_find_results(ledger, spool, doomed),
    )
    _tell(agreement)
    return agreement


def _tell(agreement: Agreement) -> None:
    if agreement.adopted:
        log.warning(
            "instances on disk that the ledger did not know were counted in", instances=agreement.adopted
        )
    if agreement.lost:
        log.error("instances are gone from the disk", instances=agreement.lost)
    if agreement.unusable:
        log.error("stored instances cannot be used and lie in quarantine", instances=agreement.unusable)
    if agreement.found_results:
        log.warning("results on disk that the ledger did not know were found", count=agreement.found_results)


def _adopt(ledger: Ledger, spool: Spool, paths: Sequence[str], progress: Progress) -> tuple[int, int]:
    """Count in these files in the order of their arrival; how many, and how many are of no use."""
    in_order = sorted(paths, key=lambda path: (spool.root / path).stat().st_mtime)
    adopted = unusable = 0
    for first in range(0, len(in_order), BATCH):
        batch = []
        for path in in_order[first : first + BATCH]:
            try:
                batch.append(_record_of(spool.root, path, ledger.now()))
            except Unidentifiable as error:
                spool.quarantine_instance(path, str(error))
                unusable += 1
        adopted += _record(ledger, batch)
        progress(min(first + BATCH, len(in_order)), len(in_order))
    return adopted, unusable


def _record_of(root: Path, relative: str, now: float) -> InstanceRecord:
    """The row of a stored file, as the listener would have written it. Raises Unidentifiable."""
    path = root / relative
    found = read_file(path)
    revision = int(path.name.split(".")[1])
    if instance_path(found.identity.sop_uid, revision).as_posix() != relative:
        raise Unidentifiable("its name is not that of its SOP Instance UID")
    return InstanceRecord(
        sop_uid=found.identity.sop_uid,
        revision=revision,
        study_uid=found.identity.study_uid,
        series_uid=found.identity.series_uid,
        sop_class_uid=found.identity.sop_class_uid,
        transfer_syntax_uid=found.transfer_syntax_uid,
        sha256=found.sha256,
        path=relative,
        size=found.size,
        association_id=FROM_DISK,
        received_at=min(path.stat().st_mtime, now),
    )


def _record(ledger: Ledger, batch: Sequence[InstanceRecord]) -> int:
    """Record what is not recorded yet: the listener may have been faster."""
    try:
        ledger.record_instances(batch)
        return len(batch)
    except sqlite3.IntegrityError:
        pass
    done = 0
    for record in batch:
        with suppress(sqlite3.IntegrityError):
            ledger.record_instance(record)
            done += 1
    return done


def _forget(ledger: Ledger, paths: Sequence[str]) -> None:
    """Drop the rows of files that are gone; a series without any files left is gone too."""
    if not paths:
        return
    with ledger.transaction() as db:
        lost: dict[str, int] = {}
        for path in paths:
            for row in db.execute("SELECT series_uid FROM instances WHERE path = ?", (path,)):
                lost[row["series_uid"]] = lost.get(row["series_uid"], 0) + 1
            db.execute("DELETE FROM instances WHERE path = ?", (path,))
        for series_uid, count in lost.items():
            why = reason(Code.UNREADABLE, f"{count} of them were no longer on disk")
            (row,) = db.execute("SELECT state FROM series WHERE series_uid = ?", (series_uid,)).fetchall()
            ledger.event(db, f"series/{series_uid}", row["state"], row["state"], why)
            db.execute(
                "UPDATE series SET deleted = ? WHERE series_uid = ? "
                "AND NOT EXISTS (SELECT 1 FROM instances WHERE series_uid = series.series_uid)",
                (ledger.now(), series_uid),
            )


# -------------------------------------------------------------------- results


def _find_results(ledger: Ledger, spool: Spool, doomed: set[str]) -> int:
    """Remember results that no job names: their UIDs are ours, and their deliveries are not known."""
    known = {row["result"] for row in ledger.rows("SELECT result FROM jobs WHERE result IS NOT NULL")}
    known |= {row["name"] for row in ledger.rows("SELECT name FROM found_results")}
    found = [name for name in spool.result_names() if name not in known and f"results/{name}" not in doomed]
    for name in found:
        try:
            outcome = read_outcome(spool.result_dir(name))
        except (OSError, ValueError, TypeError, KeyError):
            outcome = None  # of another version; a job that needs it makes its own
        if outcome is not None:
            issued = (outcome.output_series_uid, *outcome.series_uids, *outcome.sop_uids)
            ledger.issue_uids(UNKNOWN_JOB, issued)
        with ledger.transaction() as db:
            db.execute("INSERT OR IGNORE INTO found_results VALUES (?, ?)", (name, ledger.now()))
    return len(found)
