"""Storage commitment as SCU (PS3.4 Annex J): ask an archive to promise that it keeps what it was sent.

The request is an N-ACTION; the promise comes later as an N-EVENT-REPORT, on the same association or on one
that the archive opens to our listener. We ask for promises and give none: the listener refuses the N-ACTION
of others, because whoever gets a promise may delete their images, and this node is no archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from dicom_node.association import Peer, Problem, connected
from dicom_node.uids import is_acceptable, normalise

REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 table J.3-1
ALL_COMMITTED, SOME_FAILED = 1, 2  # Event Type IDs, PS3.4 table J.3-4
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

# how we answer an N-EVENT-REPORT, PS3.7 §10.1.1.1.8, and the N-ACTION of somebody who wants a promise
SUCCESS, NO_SUCH_EVENT, INVALID_ARGUMENT, PROCESSING_FAILURE = 0x0000, 0x0113, 0x0115, 0x0110
NOT_AUTHORISED = 0x0124

NO_REASON_GIVEN = 0x0110  # processing failure: of an instance that failed without a failure reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What an archive says of one transaction: SOPInstanceUIDs, the failed ones with their reasons.

    whole: it promised everything that was asked (event type 1), whatever it lists.
    """

    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, int] = field(default_factory=dict)
    whole: bool = False


class Unintelligible(Exception):
    """An N-EVENT-REPORT that does not say what it is about."""


# {TransactionUID: {SOPInstanceUID: SOPClassUID}}
Requests = Mapping[str, Mapping[str, str]]
OnAnswer = Callable[[Answer], bool]  # makes it durable; False: we never asked this


# -------------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of requests: how many were accepted, how many answered at once, or why none was."""

    accepted: int = 0
    answered: int = 0
    problem: Problem | None = None


def ask(peer: Peer, requests: Requests, on_answer: OnAnswer, *, wait_s: float) -> Asked:
    """Send each request over one association, and wait up to `wait_s` for the promises to come on it.

    A promise that does not come is no problem: it may come later, to the listener.
    """
    accepted = answered = 0
    context = build_context(StorageCommitmentPushModel, SYNTAXES)
    with connected(peer, [context]) as (association, problem):
        if association is None:
            return Asked(problem=problem)
        talk = _Talk(association, on_answer)
        for number, (transaction_uid, instances) in enumerate(requests.items(), start=1):
            status = talk.request(number, _action_information(transaction_uid, instances))
            if status != SUCCESS:
                said = "did not answer" if status is None else f"answered 0x{status:04X} to"
                return Asked(accepted, talk.answered, Problem(f"{peer} {said} storage commitment", True))
            accepted += 1
        talk.listen(len(requests), time.monotonic() + wait_s)
        answered = talk.answered
    return Asked(accepted, answered)


class _Talk:
    """One association on which we ask and may be answered."""

    def __init__(self, association: Any, on_answer: OnAnswer) -> None:
        self._association = association
        self._context = association.accepted_contexts[0]
        self._on_answer = on_answer
        self.answered = 0
        # pynetdicom 3.0.4 serves a report in a thread of its own, which leaves the association in a state in
        # which its release waits forever; here it queues with the other messages
        association._serve_request = self._queue

    def _queue(self, message: Any, context_id: int) -> None:
        self._association.dimse.msg_queue.put((context_id, message))

    def request(self, message_id: int, information: Dataset) -> int | None:
        """Send one N-ACTION; its status, None when there was no answer in time."""
        request = N_ACTION()
        request.MessageID = message_id
        request.RequestedSOPClassUID = StorageCommitmentPushModel
        request.RequestedSOPInstanceUID = StorageCommitmentPushModelInstance
        request.ActionTypeID = REQUEST_COMMITMENT
        syntax = self._context.transfer_syntax[0]
        content = encode(information, syntax.is_implicit_VR, syntax.is_little_endian)
        if content is None:
            raise ValueError("a storage commitment request cannot be encoded")
        request.ActionInformation = BytesIO(content)
        self._association.dimse.send_msg(request, self._context.context_id)
        while True:
            _context_id, message = self._association.dimse.get_msg(block=True)
            if isinstance(message, N_EVENT_REPORT) and message.is_valid_request:
                self._report(message)  # of an earlier request: it need not wait for our turn
            elif isinstance(message, N_ACTION) and message.is_valid_response:
                return int(message.Status)
            else:
                return None

    def listen(self, expected: int, deadline: float) -> None:
        """Take reports until `expected` came, or `deadline` (monotonic) has passed."""
        usual_s = self._association.dimse_timeout
        while self.answered < expected and (left_s := deadline - time.monotonic()) > 0:
            self._association.dimse_timeout = left_s
            _context_id, message = self._association.dimse.get_msg(block=True)
            if not (isinstance(message, N_EVENT_REPORT) and message.is_valid_request):
                break
            self._report(message)
        self._association.dimse_timeout = usual_s

    def _report(self, message: N_EVENT_REPORT) -> None:
        response = N_EVENT_REPORT()
        response.MessageIDBeingRespondedTo = message.MessageID
        response.AffectedSOPClassUID = message.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        response.EventTypeID = message.EventTypeID
        response.Status = receive_report(message, self._context.transfer_syntax[0], self._on_answer)
        if response.Status == SUCCESS:
            self.answered += 1
        self._association.dimse.send_msg(response, self._context.context_id)


def _action_information(transaction_uid: str, instances: Mapping[str, str]) -> Dataset:
    """PS3.4 table J.3-2."""
    information = Dataset()
    information.TransactionUID = UID(transaction_uid)
    items = []
    for sop_uid, sop_class_uid in instances.items():
        item = Dataset()
        item.ReferencedSOPClassUID = UID(sop_class_uid)
        item.ReferencedSOPInstanceUID = UID(sop_uid)
        items.append(item)
    information.ReferencedSOPSequence = Items(items)
    return information


# -------------------------------------------------------------------- being answered


def receive_report(message: N_EVENT_REPORT, syntax: UID, on_answer: OnAnswer) -> int:
    """Read an N-EVENT-REPORT and make it durable; the status to answer with, only then."""
    if message.EventTypeID not in (ALL_COMMITTED, SOME_FAILED):
        return NO_SUCH_EVENT
    try:
        answer = read_answer(message, syntax)
    except Unintelligible:
        return INVALID_ARGUMENT
    return SUCCESS if on_answer(answer) else INVALID_ARGUMENT


def read_answer(message: N_EVENT_REPORT, syntax: UID) -> Answer:
    """PS3.4 table J.3-5. Raises Unintelligible."""
    try:
        raw = message.EventInformation
        information = decode(raw, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        transaction_uid = normalise(str(information.TransactionUID))
        committed = tuple(
            normalise(str(item.ReferencedSOPInstanceUID))
            for item in information.get("ReferencedSOPSequence") or ()
        )
        failed = {
            normalise(str(item.ReferencedSOPInstanceUID)): int(item.get("FailureReason", NO_REASON_GIVEN))
            for item in information.get("FailedSOPSequence") or ()
        }
    except Exception as error:  # pydicom raises anything on hostile bytes
        raise Unintelligible("the event information cannot be read") from error
    if not is_acceptable(transaction_uid):
        raise Unintelligible("the event names no transaction")
    return Answer(
        transaction_uid, committed, failed, whole=message.EventTypeID == ALL_COMMITTED and not failed
    )
