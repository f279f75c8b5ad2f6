"""The ledger's deliveries: what each destination is owed, what it has, and what it has promised to keep.

Storage commitment (PS3.4 Annex J): a delivery that is `sent` and still awaits the promise has `commitment`
set. What was asked is a transaction; its answer may come on the same association, on a later one, twice,
or never.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from dicom_node.ledger_core import JOB_COLUMNS, IllegalChange, LedgerCore
from dicom_node.records import Delivery, DeliveryCount, Job
from dicom_node.states import DELIVERY_LEAVES, DeliveryState, JobState
from rules.reasons import Code, Reason, reason


class DeliveryLedger(LedgerCore):
    """The part of the ledger that the delivery loops use."""

    # ---------------------------------------------------------------- sending

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
        with self.transaction() as db:
            job = _job(db, job_id)
            if job.state is not expected:
                return False
            now = self._clock()
            self.move_job(db, job, JobState.SENDING, why, who=who)
            for destination in destinations:
                db.execute(
                    "INSERT INTO deliveries(job_id, destination, state, next_attempt_at, since) "
                    "VALUES (?, ?, ?, ?, ?) ON CONFLICT(job_id, destination) DO UPDATE SET "
                    "state = excluded.state, next_attempt_at = excluded.next_attempt_at, "
                    "since = excluded.since, commitment = 0, asks = 0, refusals = 0",
                    (job_id, destination, DeliveryState.PENDING, now, now),
                )
            return True

    def deliveries(self, job_id: int) -> list[Delivery]:
        """What each destination is owed of a job."""
        return [
            Delivery.from_row(row)
            for row in self.rows("SELECT * FROM deliveries WHERE job_id = ? ORDER BY destination", (job_id,))
        ]

    def count_deliveries(self) -> list[DeliveryCount]:
        """How many deliveries each destination has in each state."""
        return [
            DeliveryCount(row["destination"], DeliveryState(row["state"]), row["n"], row["since"])
            for row in self.rows(
                "SELECT destination, state, COUNT(*) AS n, MIN(since) AS since FROM deliveries "
                "GROUP BY destination, state"
            )
        ]

    def due_delivery(self, destination: str) -> Delivery | None:
        """The delivery that this destination should get next, of a job that is still `sending`."""
        rows = self.rows(
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
        commitment: bool = False,
    ) -> bool:
        """Move a delivery; False when its job is no longer `sending`. Raises IllegalChange.

        `commitment`: the destination will be asked to commit to what it was sent, from now on. Settles the
        job too when this was the last destination.
        """
        with self.transaction() as db:
            job = _job(db, delivery.job_id)
            if job.state is not JobState.SENDING:
                return False
            changes: dict[str, float] = {}
            if attempts is not None:
                changes["attempts"] = attempts
            if next_attempt_at is not None:
                changes["next_attempt_at"] = next_attempt_at
            if commitment:
                changes |= {"commitment": 1, "next_attempt_at": self._clock(), "since": self._clock()}
            self._move_delivery(db, delivery, to, why, changes)
            if to is DeliveryState.SENT and why is not None:  # a note that stays, whatever comes after it
                self.event(db, f"job/{job.id}", job.state, job.state, why)
            self._settle_job(db, job)
            return True

    def record_stored(self, delivery: Delivery, file: str, status: int) -> None:
        """A destination has one instance (result/file): no later attempt sends it."""
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO delivered_instances(job_id, destination, file, status) "
                "VALUES (?, ?, ?, ?)",
                (delivery.job_id, delivery.destination, file, status),
            )

    def stored(self, delivery: Delivery) -> frozenset[str]:
        """The files of a job's result that a destination already has."""
        return frozenset(
            row["file"]
            for row in self.rows(
                "SELECT file FROM delivered_instances WHERE job_id = ? AND destination = ?",
                (delivery.job_id, delivery.destination),
            )
        )

    def fail_deliveries_except(self, destinations: Iterable[str]) -> list[Delivery]:
        """End what is owed to destinations that are no longer configured; those deliveries.

        Nobody would ever send it, and its job would never end.
        """
        known = list(destinations)
        with self.transaction() as db:
            lost = [
                Delivery.from_row(row)
                for row in db.execute(
                    "SELECT d.* FROM deliveries d JOIN jobs j ON j.id = d.job_id "
                    "WHERE d.state IN ('pending', 'sending') AND j.state = 'sending' "
                    f"AND d.destination NOT IN ({', '.join('?' * len(known))})",
                    known,
                ).fetchall()
            ]
            for delivery in lost:
                why = reason(Code.DESTINATION_GONE, delivery.destination)
                self._move_delivery(db, delivery, DeliveryState.FAILED, why, {})
                self._settle_job(db, _job(db, delivery.job_id))
            return lost

    # ---------------------------------------------------------------- commitment

    def due_commitment(self, destination: str) -> Delivery | None:
        """The delivery for which this destination should be asked to commit next."""
        rows = self.rows(
            "SELECT d.* FROM deliveries d JOIN jobs j ON j.id = d.job_id WHERE d.destination = ? "
            "AND d.state = 'sent' AND d.commitment = 1 AND d.next_attempt_at <= ? "
            "AND j.state IN ('sending', 'sent') ORDER BY d.next_attempt_at, d.job_id LIMIT 1",
            (destination, self._clock()),
        )
        return Delivery.from_row(rows[0]) if rows else None

    def uncommitted(self, delivery: Delivery) -> frozenset[str]:
        """The files of the job's result that a destination has but has not committed to."""
        return frozenset(
            row["file"]
            for row in self.rows(
                f"SELECT file FROM delivered_instances i WHERE {_OF_CURRENT_RESULT} AND committed = 0",
                (delivery.job_id, delivery.destination),
            )
        )

    def record_asked(
        self, delivery: Delivery, requests: Mapping[str, Mapping[str, str]], *, again_at: float
    ) -> None:
        """Before a destination is asked: {TransactionUID: {SOPInstanceUID: file}}, and when to ask again."""
        with self.transaction() as db:
            for transaction_uid, files in requests.items():
                db.execute(
                    "INSERT INTO commitments VALUES (?, ?, ?, ?, NULL)",
                    (transaction_uid, delivery.job_id, delivery.destination, self._clock()),
                )
                db.executemany(
                    "INSERT INTO commitment_instances VALUES (?, ?, ?)",
                    [(transaction_uid, sop_uid, file) for sop_uid, file in files.items()],
                )
            db.execute(
                "UPDATE deliveries SET asks = asks + 1, next_attempt_at = ? "
                "WHERE job_id = ? AND destination = ?",
                (again_at, delivery.job_id, delivery.destination),
            )

    def ask_again(self, delivery: Delivery, why: Reason, *, at: float) -> None:
        """The request did not get through: ask again at another time."""
        with self.transaction() as db:
            db.execute(
                "UPDATE deliveries SET next_attempt_at = ?, reason_code = ?, reason_text = ? "
                "WHERE job_id = ? AND destination = ? AND state = 'sent'",
                (at, why.code, why.text, delivery.job_id, delivery.destination),
            )

    def record_answer(
        self, transaction_uid: str, committed: Iterable[str] | None, failed: Mapping[str, int]
    ) -> bool:
        """What a destination says of a transaction; False when we never asked it.

        committed: SOPInstanceUIDs, None for all that were asked. failed: those with their failure reason
        (PS3.3 C.14). What it lacks is owed again; what it does not speak of stays to be asked for. A
        repeated answer changes nothing.
        """
        with self.transaction() as db:
            row = db.execute(
                "SELECT * FROM commitments WHERE transaction_uid = ?", (transaction_uid,)
            ).fetchone()
            if row is None:
                return False
            files: dict[str, str] = {
                found["sop_uid"]: found["file"]
                for found in db.execute(
                    "SELECT sop_uid, file FROM commitment_instances WHERE transaction_uid = ?",
                    (transaction_uid,),
                )
            }
            key = (row["job_id"], row["destination"])
            lost = {files[uid]: code for uid, code in failed.items() if uid in files}
            db.executemany(
                "UPDATE delivered_instances SET committed = 1 "
                "WHERE job_id = ? AND destination = ? AND file = ?",
                [
                    (*key, files[uid])
                    for uid in (files if committed is None else committed)
                    if uid in files and uid not in failed
                ],
            )
            db.executemany(
                "DELETE FROM delivered_instances WHERE job_id = ? AND destination = ? AND file = ?",
                [(*key, file) for file in lost],
            )
            db.execute(
                "UPDATE commitments SET answered = ? WHERE transaction_uid = ?",
                (self._clock(), transaction_uid),
            )
            db.execute("DELETE FROM commitment_instances WHERE transaction_uid = ?", (transaction_uid,))
            self._follow_answer(db, key, lost)
            return True

    def _follow_answer(self, db: sqlite3.Connection, key: tuple[int, str], lost: Mapping[str, int]) -> None:
        """Within a transaction: what an answer means for the delivery and its job."""
        row = db.execute("SELECT * FROM deliveries WHERE job_id = ? AND destination = ?", key).fetchone()
        delivery, job = Delivery.from_row(row), _job(db, key[0])
        if delivery.state is not DeliveryState.SENT or job.state not in (JobState.SENDING, JobState.SENT):
            return
        if lost:
            codes = ", ".join(sorted({f"0x{code:04X}" for code in lost.values()}))
            why = reason(Code.NOT_COMMITTED, f"it lacks {len(lost)} of the images ({codes})")
            changes = {
                "refusals": delivery.refusals + 1,
                "attempts": 0,
                "next_attempt_at": self._clock(),
                "since": self._clock(),
            }
            self._move_delivery(db, delivery, DeliveryState.PENDING, why, changes)
            if job.state is JobState.SENT:
                self.move_job(db, job, JobState.SENDING, why)
            return
        self._commit_when_whole(db, delivery, job)

    def commit_when_whole(self, delivery: Delivery) -> bool:
        """`sent → committed` when the destination has promised everything; whether it has."""
        with self.transaction() as db:
            return self._commit_when_whole(db, delivery, _job(db, delivery.job_id))

    def _commit_when_whole(self, db: sqlite3.Connection, delivery: Delivery, job: Job) -> bool:
        (left,) = db.execute(
            f"SELECT COUNT(*) FROM delivered_instances i WHERE {_OF_CURRENT_RESULT} AND committed = 0",
            (delivery.job_id, delivery.destination),
        ).fetchone()
        if not left:
            self._move_delivery(db, delivery, DeliveryState.COMMITTED, None, {})
            self._settle_job(db, job)
        return not left

    def give_up_commitment(self, delivery: Delivery, why: Reason) -> None:
        """A destination never said that it stores for good: the delivery failed, and a person must look."""
        with self.transaction() as db:
            self._move_delivery(db, delivery, DeliveryState.FAILED, why, {})
            self._settle_job(db, _job(db, delivery.job_id))

    def waive_commitment(self, destination: str) -> None:
        """A destination that is no longer asked to commit owes no promise for what it was sent."""
        with self.transaction() as db:
            db.execute(
                "UPDATE deliveries SET commitment = 0 "
                "WHERE destination = ? AND commitment = 1 AND state = 'sent'",
                (destination,),
            )

    # ---------------------------------------------------------------- within a transaction

    def _move_delivery(
        self,
        db: sqlite3.Connection,
        delivery: Delivery,
        to: DeliveryState,
        why: Reason | None,
        changes: Mapping[str, float],
    ) -> None:
        key = (delivery.job_id, delivery.destination)
        row = db.execute("SELECT state FROM deliveries WHERE job_id = ? AND destination = ?", key).fetchone()
        was = DeliveryState(row["state"])
        if to is not was and to not in DELIVERY_LEAVES[was]:
            raise IllegalChange(
                f"The delivery of job {delivery.job_id} to {delivery.destination} is {was}, not to be {to}."
            )
        columns = {
            **changes,
            "state": to,
            "reason_code": why.code if why else None,
            "reason_text": why.text if why else None,
        }
        db.execute(
            f"UPDATE deliveries SET {', '.join(f'{name} = ?' for name in columns)} "
            "WHERE job_id = ? AND destination = ?",
            (*columns.values(), *key),
        )
        self.event(db, f"delivery/{delivery.job_id}/{delivery.destination}", was, to, why)

    def _settle_job(self, db: sqlite3.Connection, job: Job) -> None:
        """A job follows its deliveries once nothing is owed: `sent`, `committed`, or `failed`.

        `failed` when one destination will never have it; `committed` when each that should has promised.
        """
        owed = [
            Delivery.from_row(row)
            for row in db.execute("SELECT * FROM deliveries WHERE job_id = ?", (job.id,))
        ]
        states = {delivery.state for delivery in owed}
        if states & {DeliveryState.PENDING, DeliveryState.SENDING}:
            return
        lost = next((delivery for delivery in owed if delivery.state is DeliveryState.FAILED), None)
        if lost is not None:
            why = Reason(Code(lost.reason_code or Code.REFUSED), lost.reason_text or "")
            self.move_job(db, job, JobState.FAILED, why)
            return
        if job.state is JobState.SENDING:
            self.move_job(db, job, JobState.SENT, None)
            job = _job(db, job.id)
        promised = DeliveryState.COMMITTED in states
        if promised and all(d.state is DeliveryState.COMMITTED for d in owed if d.commitment):
            self.move_job(db, job, JobState.COMMITTED, None)


# a delivered file is named by its result too: a job computed again with other settings has others
_OF_CURRENT_RESULT = (
    "i.job_id = ? AND i.destination = ? AND i.file LIKE "
    "(SELECT j.result || '/%' FROM jobs j WHERE j.id = i.job_id)"
)


def _job(db: sqlite3.Connection, job_id: int) -> Job:
    return Job.from_row(db.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone())
