"""Tells destinations to reject what was withdrawn, by a note for each (IHE IOCM).

The note is made when it is sent, from the images that this destination has: a delivery that was under way
when somebody withdrew the job may have brought more. The same images give the same note, so that sending it
again changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from dicom_node import __version__
from dicom_node.association import Peer
from dicom_node.attempts import DAY_S, REFUSED_ATTEMPTS, Store, retry_delay_s, why_not_complete
from dicom_node.companions.rejection import rejection
from dicom_node.derive.instance_file import write_instance
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState
from dicom_node.withdrawal import Withdrawal
from rules.reasons import Code, Reason, reason

log = get_logger(__name__)


def delivered_files(ledger: Ledger, spool: Spool, job_id: int, destination: str) -> list[Path]:
    """The images of a job that a destination has and that are still here, of every result it was sent."""
    rows = ledger.rows(
        "SELECT file FROM delivered_instances WHERE job_id = ? AND destination = ? ORDER BY file",
        (job_id, destination),
    )
    named = (str(row["file"]).split("/", 1) for row in rows)
    files = [spool.result_dir(result) / "derived" / name for result, name in named]
    return [path for path in files if path.is_file()]


class RejectionNotes:
    """Sends one destination the notes that it is owed."""

    def __init__(
        self,
        name: str,
        peer: Peer,
        ledger: Ledger,
        spool: Spool,
        *,
        give_up_s: float,
        clock: Callable[[], float],
        send: Store,
    ) -> None:
        self._name = name
        self._peer = peer
        self._ledger = ledger
        self._spool = spool
        self._give_up_s = give_up_s
        self._clock = clock
        self._send = send
        self._random = random.Random()

    def send_one(self) -> bool:
        """Make one attempt to send the note that is due; False when none is."""
        rows = self._ledger.rows(
            "SELECT * FROM withdrawals WHERE destination = ? AND state = 'pending' AND next_attempt_at <= ? "
            "ORDER BY next_attempt_at, job_id LIMIT 1",
            (self._name, self._clock()),
        )
        if not rows:
            return False
        owed = Withdrawal.from_row(rows[0])
        files = delivered_files(self._ledger, self._spool, owed.job_id, self._name)
        bound = log.bind(job=owed.job_id, destination=self._name, attempts=owed.attempts + 1)
        if not files:  # nothing of it ever arrived there
            self._settle(owed, DeliveryState.SENT, None)
            return True
        why = self._attempt(owed, files)
        if why is None:
            self._settle(owed, DeliveryState.SENT, None)
            bound.info("withdrawal sent", instances=len(files))
        else:
            self._again_or_failed(owed, why)
            bound.warning("withdrawal not sent", reason=why.code)
        return True

    def _attempt(self, owed: Withdrawal, files: list[Path]) -> Reason | None:
        """Send the note; None when it arrived, else why it did not."""
        note = rejection(files, __version__, datetime.fromtimestamp(owed.since, UTC))
        self._ledger.issue_uids(owed.job_id, (str(note.SeriesInstanceUID), str(note.SOPInstanceUID)))
        folder = self._spool.work_dir(f"withdrawal-{owed.job_id}")
        try:
            path = folder / "00001.dcm"
            write_instance(note, path)
            result = self._send(self._peer, [path], lambda _status: None)
        finally:
            self._spool.discard(folder)
        return None if result.complete else why_not_complete(result)

    def _again_or_failed(self, owed: Withdrawal, why: Reason) -> None:
        attempts, now = owed.attempts + 1, self._clock()
        delay_s = retry_delay_s(attempts, self._random.uniform(-1, 1))
        if why.code is Code.REFUSED and attempts >= REFUSED_ATTEMPTS:
            self._settle(owed, DeliveryState.FAILED, why)
        elif now + delay_s > owed.since + self._give_up_s:
            given_up = reason(Code.GAVE_UP, f"{self._give_up_s / DAY_S:g} days; last: {why.text}")
            self._settle(owed, DeliveryState.FAILED, given_up)
        else:
            self._settle(owed, DeliveryState.PENDING, why, next_attempt_at=now + delay_s)

    def _settle(
        self, owed: Withdrawal, to: DeliveryState, why: Reason | None, next_attempt_at: float | None = None
    ) -> None:
        key = (owed.job_id, owed.destination)
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE withdrawals SET state = ?, attempts = ?, next_attempt_at = ?, reason_code = ?, "
                "reason_text = ? WHERE job_id = ? AND destination = ?",
                (
                    to,
                    owed.attempts + 1,
                    owed.next_attempt_at if next_attempt_at is None else next_attempt_at,
                    why.code if why else None,
                    why.text if why else None,
                    *key,
                ),
            )
            self._ledger.event(db, f"withdrawal/{owed.job_id}/{owed.destination}", owed.state, to, why)
