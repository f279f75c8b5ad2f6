"""One instance on its way from the connection into the spool and the ledger: check, write, record, answer.

It is answered with Success only when its file, the file's place and its ledger row are durable. The data
set goes to disk as it comes; nothing here decodes it, and no more of it is parsed than the four UIDs that
it needs. The statuses are in `statuses`.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.commits import Commits
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.received import Identity, Unidentifiable, file_header, is_storage_class, read_identity
from dicom_node.records import InstanceRecord
from dicom_node.spool import Occupied, Part, Spool, SpoolError
from dicom_node.statuses import Answer
from dicom_node.store_scp import StoreAnswer, StoreRequest
from dicom_node.uids import is_acceptable, normalise

_log = get_logger(__name__)

HEAD_BYTES = 64 << 10  # of the data set, kept in memory: in nearly every instance the UIDs lie in there
LONG_HEAD_BYTES = 16 << 20  # read back from the file where they do not, e.g. behind large private groups
ROOM_EVERY_BYTES = 16 << 20  # how often a large instance looks at the free space again
UID_LOCKS = 256

COMMENTS = {  # ErrorComment (0000,0902): at most 64 characters, no patient data
    Answer.SUCCESS: "",
    Answer.PROCESSING_FAILURE: "unexpected error in the node; please send again",
    Answer.INVALID_SOP_INSTANCE: "Affected SOP Instance UID is missing or not a UID",
    Answer.OUT_OF_RESOURCES: "no room to store safely at present; please send again later",
    Answer.MISMATCH: "SOP class or instance of data set and command differ",
    Answer.CANNOT_UNDERSTAND: "SOP, Study or Series Instance UID missing or unreadable",
}


@dataclass(slots=True)
class Visit:
    """One association, while it lasts."""

    calling_ae: str
    address: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    recorded: bool = False  # in the ledger: from its first instance on, so that echoes leave no rows
    answers: Counter[str] = field(default_factory=Counter)


class Arrivals:
    """Where instances arrive: the spool, the ledger, and what keeps two of the same apart."""

    def __init__(
        self, spool: Spool, ledger: Ledger, max_instance_bytes: int, clock: Callable[[], float]
    ) -> None:
        self.spool = spool
        self.ledger = ledger
        self.max_instance_bytes = max_instance_bytes
        self.clock = clock
        self.commits = Commits(spool, ledger)
        self._uid_locks = tuple(threading.Lock() for _ in range(UID_LOCKS))

    def uid_lock(self, sop_uid: str) -> threading.Lock:
        """Held while an instance is compared and recorded: it may arrive on two associations at once."""
        return self._uid_locks[hash(sop_uid) % UID_LOCKS]

    def begin(self, visit: Visit, request: StoreRequest) -> Arrival:
        """The sink for one instance."""
        return Arrival(self, visit, request)


class Arrival:
    """A sink (`store_scp.Sink`) that stores one instance."""

    def __init__(self, arrivals: Arrivals, visit: Visit, request: StoreRequest) -> None:
        self._arrivals = arrivals
        self._visit = visit
        self._request = request
        self._sop_class_uid = normalise(request.sop_class_uid)
        self._sop_uid = normalise(request.sop_uid)
        self._bytes = 0  # of the data set
        self._room_asked_at = 0
        self._sha256 = hashlib.sha256()
        self._head = bytearray()
        self._header_bytes = 0
        self._part: Part | None = None
        self._refusal: Answer | None = None  # settled before the end: what still comes is passed over
        self._guarded(self._open)

    # ---------------------------------------------------------------- the sink

    def write(self, piece: memoryview) -> bool:
        """The next bytes of the data set, to disk; False when they are more than an instance may have."""
        self._bytes += len(piece)
        if self._bytes > self._arrivals.max_instance_bytes:
            _log.warning("connection closed: its peer would fill the disk", kind="instance")
            return False
        if self._refusal is None:
            self._guarded(lambda: self._write(piece))
        return True

    def finish(self) -> StoreAnswer:
        """Check, store, record; the answer."""
        if self._refusal is None:
            self._guarded(self._keep)
        answer = self._refusal or Answer.SUCCESS
        self.discard()
        self._visit.answers[answer.name.lower()] += 1
        return StoreAnswer(answer, COMMENTS[answer])

    def discard(self) -> None:
        """Leave no file behind, unless it has its place."""
        if self._part is not None:
            self._part.discard()

    def _guarded(self, step: Callable[[], Answer | None]) -> None:
        """Run one step; whatever goes wrong becomes the answer."""
        try:
            self._refusal = step()
        except (SpoolError, sqlite3.Error):
            _log.exception("an instance could not be stored")
            self._refusal = Answer.OUT_OF_RESOURCES
        except Exception:
            _log.exception("storing failed")
            self._refusal = Answer.PROCESSING_FAILURE
        if self._refusal is not None:
            self.discard()

    # ---------------------------------------------------------------- its steps

    def _open(self) -> Answer | None:
        if not is_acceptable(self._sop_uid):
            return Answer.INVALID_SOP_INSTANCE
        if not self._arrivals.spool.has_room():
            return Answer.OUT_OF_RESOURCES
        header = file_header(
            self._sop_class_uid, self._sop_uid, self._request.transfer_syntax, self._visit.calling_ae
        )
        self._part = self._arrivals.spool.open_part()
        self._part.write(header)
        self._header_bytes = len(header)
        return None

    def _write(self, piece: memoryview) -> Answer | None:
        assert self._part is not None
        if self._bytes - self._room_asked_at > ROOM_EVERY_BYTES:
            self._room_asked_at = self._bytes
            if not self._arrivals.spool.has_room():
                return Answer.OUT_OF_RESOURCES
        if len(self._head) < HEAD_BYTES:
            self._head += piece[: HEAD_BYTES - len(self._head)]
        self._sha256.update(piece)
        self._part.write(piece)
        return None

    def _keep(self) -> Answer | None:
        request = self._request
        if not self._arrivals.spool.has_room():
            return Answer.OUT_OF_RESOURCES
        if self._sop_class_uid != request.abstract_syntax or not is_storage_class(self._sop_class_uid):
            return self._quarantine(Answer.MISMATCH, "SOP class is not that of its context")
        try:
            identity = self._identity()
        except Unidentifiable as error:
            return self._quarantine(Answer.CANNOT_UNDERSTAND, str(error))
        if (identity.sop_class_uid, identity.sop_uid) != (self._sop_class_uid, self._sop_uid):
            return self._quarantine(Answer.MISMATCH, "SOP UIDs of data set and command differ")
        with self._arrivals.uid_lock(self._sop_uid):
            self._record(identity)
        return None

    def _identity(self) -> Identity:
        assert self._part is not None
        syntax = self._request.transfer_syntax
        try:
            return read_identity(bytes(self._head), syntax)
        except Unidentifiable:
            if self._bytes <= HEAD_BYTES:
                raise
        return read_identity(self._part.read_back(self._header_bytes, LONG_HEAD_BYTES), syntax)

    def _quarantine(self, answer: Answer, why: str) -> Answer:
        assert self._part is not None
        self._arrivals.spool.quarantine(self._part, why)
        _log.warning("an instance was refused and put into quarantine", answer=answer.name.lower())
        return answer

    def _record(self, identity: Identity) -> None:
        """Place and record the instance, unless its newest revision has the same bytes."""
        assert self._part is not None
        spool, ledger, visit = self._arrivals.spool, self._arrivals.ledger, self._visit
        sha256 = self._sha256.hexdigest()
        known = ledger.instance(identity.sop_uid)
        if known is not None and known.sha256 == sha256 and (spool.root / known.path).exists():
            ledger.record_repeat(identity.sop_uid)
            return
        if not visit.recorded:
            ledger.association_opened(visit.id, visit.calling_ae, visit.address)
            visit.recorded = True
        self._part.sync()
        path, revision = self._place(known.revision + 1 if known else 1)
        self._arrivals.commits.commit(
            InstanceRecord(
                sop_uid=identity.sop_uid,
                revision=revision,
                study_uid=identity.study_uid,
                series_uid=identity.series_uid,
                sop_class_uid=identity.sop_class_uid,
                transfer_syntax_uid=self._request.transfer_syntax,
                sha256=sha256,
                path=path.as_posix(),
                size=self._header_bytes + self._bytes,
                association_id=visit.id,
                received_at=self._arrivals.clock(),
            )
        )

    def _place(self, revision: int) -> tuple[Path, int]:
        """The first revision from this one on that is free on disk; the ledger may know fewer."""
        assert self._part is not None
        while True:
            try:
                return self._arrivals.spool.place(self._part, self._sop_uid, revision), revision
            except Occupied:
                revision += 1
