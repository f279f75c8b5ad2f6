"""From the spool to the destinations: one thread for each, so that a dead one delays no other.

A delivery remembers what the destination already has; an attempt sends only the rest. Attempts and the
time of the next one are in the ledger, so that a restart neither forgets nor hurries. A destination that
promises to keep what it has (storage commitment) is asked once it has everything.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pydicom.uid import generate_uid

from dicom_node import commitment
from dicom_node.association import Peer
from dicom_node.attempts import DAY_S, REFUSED_ATTEMPTS, Store, retry_delay_s, said, why_not_complete
from dicom_node.commitment import Answer, Asked, OnAnswer, Requests
from dicom_node.derive.instance_file import COMPANION
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.records import Delivery, Job
from dicom_node.rejection_notes import RejectionNotes
from dicom_node.scu import EchoResult, StoreResult, echo, identify, store
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState, JobState
from rules.reasons import Code, Reason, reason

POLL_S = 0.5
ECHO_EVERY_S = 60.0
REFUSED_COMMITMENTS = 3  # how often it may say that it lacks what it has answered with Success
INSTANCES_PER_REQUEST = 500  # some archives limit a storage commitment request
PROMISE_WAIT_S = 10.0  # for the promise to come on the association on which it was asked for
SHORT_WAIT_S = 1.0  # the same with an archive that was never seen to do so


class Ask(Protocol):
    """How a destination is asked to commit: `commitment.ask`."""

    def __call__(self, peer: Peer, requests: Requests, on_answer: OnAnswer, *, wait_s: float) -> Asked: ...


log = get_logger(__name__)


class DeliveryLoop:
    """Sends what the ledger says one destination is owed."""

    def __init__(
        self,
        name: str,
        peer: Peer,
        ledger: Ledger,
        spool: Spool,
        *,
        give_up_days: float,
        clock: Callable[[], float] = time.time,
        send: Store = store,
        ask: Callable[[Peer], EchoResult] = echo,
        commitment_timeout_s: float | None = None,
        ask_commitment: Ask = commitment.ask,
    ) -> None:
        """commitment_timeout_s: how long a promise may take before we ask again; None: we never ask."""
        self.name = name
        self._peer = peer
        self._ledger = ledger
        self._spool = spool
        self._give_up_s = give_up_days * DAY_S
        self._clock = clock
        self._send = send
        self._echo = ask
        self._commitment_timeout_s = commitment_timeout_s
        self._ask_commitment = ask_commitment
        self._promise_wait_s = PROMISE_WAIT_S
        self._random = random.Random()
        self._notes = RejectionNotes(
            name, peer, ledger, spool, give_up_s=self._give_up_s, clock=clock, send=send
        )
        self._checked_at = -ECHO_EVERY_S
        self.problem: str | None = None  # what was wrong with the destination when it was last spoken to

    def deliver_one(self) -> bool:
        """Make one attempt of the delivery that is due; False when none is."""
        delivery = self._ledger.due_delivery(self.name)
        if delivery is None:
            return False
        attempts = delivery.attempts + 1
        if delivery.state is DeliveryState.PENDING and not self._ledger.change_delivery(
            delivery, DeliveryState.SENDING, attempts=attempts
        ):
            return True
        job = self._ledger.job(delivery.job_id)
        if not (files := self._files(job)):
            why = reason(Code.RESULT_LOST)
            self._ledger.change_job(job.id, JobState.QUEUED, why, expected=JobState.SENDING)
            return True
        if delivery.refusals >= REFUSED_COMMITMENTS:
            why = reason(
                Code.NOT_COMMITTED, f"asked {delivery.refusals} times, it lacks some of them each time"
            )
            self._ledger.change_delivery(delivery, DeliveryState.FAILED, why)
            return True
        if not delivery.attempts and self._ledger.was_found(job.result or ""):
            self._ask_what_it_has(delivery, files)
        result = self._attempt(delivery, files)
        self._checked_at = time.monotonic()
        self.problem = result.problem.text if result and result.problem else None
        bound = log.bind(job=job.id, destination=self.name, attempts=attempts)
        if result is None or result.complete:
            self._sent(delivery)
            bound.info("delivery sent", instances=len(result.statuses) if result else 0)
        elif (ended := self._again_or_not(delivery, attempts, result)) is None:
            bound.warning("delivery not complete", count=_missing(result))
        elif self._has_images(delivery, files):
            # a picture or a record that an archive does not take must not keep the images from counting
            self._sent(delivery, reason(Code.COMPANION_REFUSED, said(result)))
            bound.warning("delivery sent without its companions", count=_missing(result))
        else:
            self._ledger.change_delivery(delivery, DeliveryState.FAILED, ended)
            bound.warning("delivery failed", count=_missing(result))
        return True

    def withdraw_one(self) -> bool:
        """Make one attempt of the rejection note that is due; False when none is."""
        return self._notes.send_one()

    def _files(self, job: Job) -> list[Path]:
        """The derived instances of a job's result."""
        return sorted((self._spool.result_dir(job.result or "") / "derived").glob("*.dcm"))

    def _attempt(self, delivery: Delivery, files: Sequence[Path]) -> StoreResult | None:
        """Send the instances that the destination lacks; None when it lacks none."""
        arrived = self._ledger.stored(delivery)
        owed = [path for path in files if _key(path) not in arrived]
        if not owed:
            return None
        return self._send(
            self._peer,
            owed,
            lambda status: (
                self._ledger.record_stored(delivery, _key(status.path), status.status or 0)
                if status.outcome.arrived
                else None
            ),
        )

    def _again_or_not(self, delivery: Delivery, attempts: int, result: StoreResult) -> Reason | None:
        """Set the time of the next attempt and return None, or why there will be none."""
        now = self._clock()
        why = why_not_complete(result)
        delay_s = retry_delay_s(attempts, self._random.uniform(-1, 1))
        if why.code is Code.REFUSED and attempts >= REFUSED_ATTEMPTS:
            return why
        if now + delay_s > delivery.since + self._give_up_s:
            return reason(Code.GAVE_UP, f"{self._give_up_s / DAY_S:g} days; last: {why.text}")
        self._ledger.change_delivery(delivery, DeliveryState.PENDING, why, next_attempt_at=now + delay_s)
        return None

    def _sent(self, delivery: Delivery, why: Reason | None = None) -> None:
        commits = self._commitment_timeout_s is not None
        self._ledger.change_delivery(delivery, DeliveryState.SENT, why, commitment=commits)

    def _has_images(self, delivery: Delivery, files: Sequence[Path]) -> bool:
        """Whether the destination has every image of the corrected series; companions do not count."""
        images = {_key(path) for path in files if not path.name.startswith(COMPANION)}
        return bool(images) and images <= self._ledger.stored(delivery)

    # ---------------------------------------------------------------- commitment

    def commit_one(self) -> bool:
        """Ask the destination to commit to the delivery that is due; False when none is."""
        if self._commitment_timeout_s is None:
            return False
        delivery = self._ledger.due_commitment(self.name)
        if delivery is None:
            return False
        if self._ledger.commit_when_whole(delivery):
            return True
        now = self._clock()
        patience_s = max(self._give_up_s, self._commitment_timeout_s)
        bound = log.bind(job=delivery.job_id, destination=self.name, attempts=delivery.asks + 1)
        if now > delivery.since + patience_s:
            days = f"{patience_s / DAY_S:g} days"
            why = reason(Code.NOT_COMMITTED, f"asked {delivery.asks} times, it said nothing within {days}")
            self._ledger.give_up_commitment(delivery, why)
            bound.warning("commitment given up")
            return True
        requests, files = self._requests(delivery)
        if not requests:
            self._ledger.give_up_commitment(delivery, reason(Code.RESULT_LOST))
            return True
        # before asking: the promise may come back faster than a row is written
        self._ledger.record_asked(delivery, files, again_at=now + self._commitment_timeout_s)
        asked = self._ask_commitment(self._peer, requests, self._record_answer, wait_s=self._promise_wait_s)
        if asked.problem is not None:
            why = reason(Code.NOT_COMMITTED, asked.problem.text)
            delay_s = retry_delay_s(delivery.asks + 1, self._random.uniform(-1, 1))
            self._ledger.ask_again(delivery, why, at=now + delay_s)
            bound.warning("commitment could not be asked for")
            return True
        self._promise_wait_s = PROMISE_WAIT_S if asked.answered else SHORT_WAIT_S
        bound.info("commitment asked", count=len(requests))
        return True

    def _requests(self, delivery: Delivery) -> tuple[Requests, dict[str, dict[str, str]]]:
        """What to ask, {TransactionUID: {SOPInstanceUID: SOPClassUID}}, and the files of each."""
        wanted = self._ledger.uncommitted(delivery)
        files = [path for path in self._files(self._ledger.job(delivery.job_id)) if _key(path) in wanted]
        return _in_requests(files)

    def _record_answer(self, answer: Answer) -> bool:
        committed = None if answer.whole else answer.committed
        return self._ledger.record_answer(answer.transaction_uid, committed, answer.failed)

    def _ask_what_it_has(self, delivery: Delivery, files: Sequence[Path]) -> None:
        """Of a result from before the ledger was lost: what it promises to keep is not sent again."""
        if self._commitment_timeout_s is None:
            return
        requests, names = _in_requests(files)
        answers: dict[str, Answer] = {}
        self._ask_commitment(
            self._peer,
            requests,
            lambda answer: answers.setdefault(answer.transaction_uid, answer) is not None,
            wait_s=PROMISE_WAIT_S,
        )
        for transaction_uid, answer in answers.items():
            asked = names.get(transaction_uid, {})
            for sop_uid in asked if answer.whole else answer.committed:
                if sop_uid in asked:
                    self._ledger.record_stored(delivery, asked[sop_uid], 0)

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set."""
        if self._commitment_timeout_s is None:
            self._ledger.waive_commitment(self.name)
        while not stop.is_set():
            try:
                busy = self.withdraw_one() or self.deliver_one() or self.commit_one()
            except Exception:  # the outermost loop of a worker: nothing else keeps this destination alive
                log.exception("delivery loop", destination=self.name)
                busy = False
            if not busy:
                self._check()
                stop.wait(POLL_S)

    def _check(self) -> None:
        """Ask the destination whether it is there, when nothing else has told for a while."""
        if time.monotonic() - self._checked_at >= ECHO_EVERY_S:
            answer = self._echo(self._peer)
            self._checked_at = time.monotonic()
            self.problem = answer.problem.text if answer.problem else None


def _key(path: Path) -> str:
    """An instance by its result too: a job computed again with other settings has other instances."""
    return f"{path.parent.parent.name}/{path.name}"


def _in_requests(files: Sequence[Path]) -> tuple[Requests, dict[str, dict[str, str]]]:
    """Files as storage commitment requests, and by the same TransactionUIDs {SOPInstanceUID: file}."""
    requests: dict[str, dict[str, str]] = {}
    names: dict[str, dict[str, str]] = {}
    for first in range(0, len(files), INSTANCES_PER_REQUEST):
        transaction_uid = str(generate_uid(prefix=None))
        requests[transaction_uid], names[transaction_uid] = {}, {}
        for path in files[first : first + INSTANCES_PER_REQUEST]:
            sop_class_uid, sop_uid = identify(path)
            requests[transaction_uid][sop_uid] = sop_class_uid
            names[transaction_uid][sop_uid] = _key(path)
    return requests, names


def _missing(result: StoreResult) -> int:
    return len(result.not_tried) + sum(not status.outcome.arrived for status in result.statuses)
