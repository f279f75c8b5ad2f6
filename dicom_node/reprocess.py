"""An archive's files through the same path as a scanner's images: into the spool and the ledger, from a disk.

Works with and without the running node, which takes up what it finds. Resumable: what is stored already is
passed over, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dicom_node.intake import CHUNK_BYTES, FileInstance, read_file
from dicom_node.ledger import Ledger
from dicom_node.received import Unidentifiable, file_header
from dicom_node.records import InstanceRecord
from dicom_node.spool import NoRoom, Occupied, Part, Spool

CALLING_AE = "REPROCESS"  # where the file meta of a received instance names the scanner

Progress = Callable[[int, int], None]


class WrongUser(Exception):
    """The files of the spool belong to the service's user; those of another it could not read."""


@dataclass(frozen=True, slots=True)
class Reprocessed:
    """How many files were taken, were here already, and are no DICOM instances."""

    taken: int = 0
    known: int = 0
    unusable: int = 0


def reprocess(
    ledger: Ledger, spool: Spool, files: Sequence[Path], progress: Progress = lambda done, of: None
) -> Reprocessed:
    """Store and record `files`. Raises WrongUser; NoRoom when the disk is full: run it again later."""
    owner = spool.root.stat().st_uid
    if os.geteuid() != owner:
        raise WrongUser(
            f"{spool.root} belongs to user {owner}; run this as that user (sudo -u dicom-node …), or the "
            "service could not read what you add."
        )
    taken = known = unusable = 0
    association = uuid.uuid4().hex
    # while it is open, no series counts as complete because its next file lies far away
    ledger.association_opened(association, CALLING_AE, "local")
    aborted = True
    try:
        for number, path in enumerate(files, start=1):
            try:
                if _take(ledger, spool, read_file(path), association):
                    taken += 1
                else:
                    known += 1
            except Unidentifiable:
                unusable += 1
            progress(number, len(files))
        aborted = False
    finally:
        ledger.association_closed(association, aborted)
    return Reprocessed(taken, known, unusable)


def _take(ledger: Ledger, spool: Spool, found: FileInstance, association: str) -> bool:
    """Store one instance; False when its newest revision has the same bytes."""
    identity = found.identity
    latest = ledger.instance(identity.sop_uid)
    if latest is not None and latest.sha256 == found.sha256:
        return False
    if not spool.has_room(found.size):
        raise NoRoom("The disk is full (storage.min_free_bytes). What was taken stays; run this again later.")
    header = file_header(identity.sop_class_uid, identity.sop_uid, found.transfer_syntax_uid, CALLING_AE)
    part = spool.open_part()
    try:
        _copy(found, header, part)
        place, revision = _place(spool, part, identity.sop_uid, latest.revision + 1 if latest else 1)
    except BaseException:
        part.discard()
        raise
    spool.settle([place])
    ledger.record_instance(
        InstanceRecord(
            sop_uid=identity.sop_uid,
            revision=revision,
            study_uid=identity.study_uid,
            series_uid=identity.series_uid,
            sop_class_uid=identity.sop_class_uid,
            transfer_syntax_uid=found.transfer_syntax_uid,
            sha256=found.sha256,
            path=place.as_posix(),
            size=part.size,
            association_id=association,
            received_at=ledger.now(),
        )
    )
    return True


def _copy(found: FileInstance, header: bytes, part: Part) -> None:
    part.write(header)
    with found.path.open("rb") as file:
        file.seek(found.offset)
        while chunk := file.read(CHUNK_BYTES):
            part.write(chunk)
    part.sync()


def _place(spool: Spool, part: Part, sop_uid: str, revision: int) -> tuple[Path, int]:
    """The first revision from this one on that is free on disk."""
    while True:
        with suppress(Occupied):
            return spool.place(part, sop_uid, revision), revision
        revision += 1
