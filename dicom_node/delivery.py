"""From the spool to the destinations: one thread for each, so that a dead one delays no other.

A delivery remembers what the destination already has; an attempt sends only the rest. Attempts and the
time of the next one are in the ledger, so that a restart neither forgets nor hurries.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.records import Delivery
from dicom_node.scu import EchoResult, OnStatus, Peer, StoreResult, echo, store
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState
from rules.reasons import Code, Reason, reason

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 3600.0
JITTER = 0.2  # of the delay, so that several nodes do not call a PACS that comes back in the same second
POLL_S = 0.5
ECHO_EVERY_S = 60.0
DAY_S = 86400.0
REFUSED_ATTEMPTS = 3  # a refusal for what an instance is may still be a PACS in a bad moment

Store = Callable[[Peer, Sequence[Path], OnStatus], StoreResult]

log = get_logger(__name__)


def retry_delay_s(attempts: int, jitter: float) -> float:
    """Seconds until the next attempt after `attempts` failed ones: 5 s doubling to 1 h.

    jitter: −1…1, spread over ±20 %.
    """
    exponent = min(max(attempts - 1, 0), 32)
    delay = float(min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0**exponent))
    return delay * (1 + JITTER * jitter)


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
    ) -> None:
        self.name = name
        self._peer = peer
        self._ledger = ledger
        self._spool = spool
        self._give_up_s = give_up_days * DAY_S
        self._clock = clock
        self._send = send
        self._echo = ask
        self._random = random.Random()
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
        result = self._attempt(delivery, job.result or "")
        self._checked_at = time.monotonic()
        self.problem = result.problem.text if result and result.problem else None
        bound = log.bind(job=job.id, destination=self.name, attempts=attempts)
        if result is None or result.complete:
            self._ledger.change_delivery(delivery, DeliveryState.SENT)
            bound.info("delivery sent", instances=len(result.statuses) if result else 0)
        else:
            self._again_or_failed(delivery, attempts, result)
            bound.warning("delivery not complete", count=_missing(result))
        return True

    def _attempt(self, delivery: Delivery, result_name: str) -> StoreResult | None:
        """Send the instances that the destination lacks; None when it lacks none."""
        arrived = self._ledger.stored(delivery)
        files = [
            path
            for path in sorted((self._spool.result_dir(result_name) / "derived").glob("*.dcm"))
            if _key(path) not in arrived
        ]
        if not files:
            return None
        return self._send(
            self._peer,
            files,
            lambda status: (
                self._ledger.record_stored(delivery, _key(status.path), status.status or 0)
                if status.outcome.arrived
                else None
            ),
        )

    def _again_or_failed(self, delivery: Delivery, attempts: int, result: StoreResult) -> None:
        now = self._clock()
        why = _why(result)
        permanent = why.code is Code.REFUSED and attempts >= REFUSED_ATTEMPTS
        delay_s = retry_delay_s(attempts, self._random.uniform(-1, 1))
        if permanent:
            self._ledger.change_delivery(delivery, DeliveryState.FAILED, why)
        elif now + delay_s > delivery.since + self._give_up_s:
            given_up = reason(Code.GAVE_UP, f"{self._give_up_s / DAY_S:g} days; last: {why.text}")
            self._ledger.change_delivery(delivery, DeliveryState.FAILED, given_up)
        else:
            self._ledger.change_delivery(delivery, DeliveryState.PENDING, why, next_attempt_at=now + delay_s)

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set."""
        while not stop.is_set():
            try:
                busy = self.deliver_one()
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


def _why(result: StoreResult) -> Reason:
    """The reason of an attempt that did not bring everything across."""
    if result.problem is not None:
        code = Code.UNREACHABLE if result.problem.transient else Code.REFUSED
        return reason(code, result.problem.text)
    return reason(Code.REFUSED, result.refused[0].text if result.refused else "it gave no status")


def _missing(result: StoreResult) -> int:
    return len(result.not_tried) + sum(not status.outcome.arrived for status in result.statuses)
