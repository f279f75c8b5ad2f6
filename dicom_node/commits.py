"""Group commit: instances that arrive at the same time share one transaction.

Each caller returns only when its own instance is durable, so that Success still means what it says. The
first to come commits for all who wait by then; nobody waits for company, and a single association pays
nothing for it. Folders are synced before, by each caller for itself: instances rarely share one of the 256,
and a file system does several syncs at once in the time of one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from dicom_node.ledger import Ledger
from dicom_node.records import InstanceRecord
from dicom_node.spool import Spool


@dataclass(slots=True, eq=False)
class _Entry:
    record: InstanceRecord
    done: bool = False
    error: Exception | None = None


class Commits:
    """Makes placed instances durable and records them; usable from any thread."""

    def __init__(self, spool: Spool, ledger: Ledger) -> None:
        self._spool = spool
        self._ledger = ledger
        self._waiting: list[_Entry] = []
        self._waiting_lock = threading.Lock()
        self._turn = threading.Lock()

    def commit(self, record: InstanceRecord) -> None:
        """Return when the place of this instance (`record.path`) and its row are durable.

        Raises what went wrong with this instance (SpoolError, sqlite3.Error); those that were committed
        together with it are not affected.
        """
        self._spool.settle([Path(record.path)])
        entry = _Entry(record)
        with self._waiting_lock:
            self._waiting.append(entry)
        with self._turn:
            if not entry.done:  # otherwise whoever had the turn before took it along
                with self._waiting_lock:
                    batch, self._waiting = self._waiting, []
                self._record(batch)
        if entry.error is not None:
            raise entry.error
        if not entry.done:
            raise RuntimeError("the thread that had the turn was stopped")

    def _record(self, batch: list[_Entry]) -> None:
        try:
            self._ledger.record_instances([entry.record for entry in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
            else:
                for entry in batch:  # one bad row must not fail its neighbours
                    self._record([entry])
        for entry in batch:
            entry.done = True
