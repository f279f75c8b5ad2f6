"""C-ECHO and C-STORE as SCU: one association, and what became of each instance.

Nothing here raises for what a network or a peer does; it is told in the result, in words, and with the
one thing a sender must know: which instances arrived. PS3.4 Annex A and B; how a status is treated is a
table in `statuses`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification

from dicom_node.association import Peer, Problem, broken, connected
from dicom_node.dimse import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    C_STORE_RQ,
    COMMAND,
    COMMAND_DATA_SET_TYPE,
    COMMAND_FIELD,
    DATA_SET,
    MESSAGE_ID,
    PRIORITY,
    command_set,
    pdus,
    uid_value,
    us_value,
)
from dicom_node.file_meta import NotDicom, read_file_meta
from dicom_node.statuses import Outcome, treat

MAX_CONTEXTS = 128  # PS3.8 §9.3.2.2: odd identifiers 1…255
CONVERTIBLE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)


# -------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class EchoResult:
    """What a peer said to C-ECHO."""

    seconds: float
    problem: Problem | None = None

    @property
    def answered(self) -> bool:
        """Whether it answered with Success."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What became of one instance. `status` is None when the peer gave none."""

    path: Path
    sop_uid: str
    outcome: Outcome
    status: int | None
    text: str


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of a series. Files without a status were not tried; they and the transient ones remain."""

    statuses: tuple[StoreStatus, ...]
    not_tried: tuple[Path, ...] = ()
    problem: Problem | None = None

    @property
    def complete(self) -> bool:
        """Whether every instance arrived."""
        return not self.not_tried and all(status.outcome.arrived for status in self.statuses)

    @property
    def refused(self) -> tuple[StoreStatus, ...]:
        """The instances that the peer will not take however often they are sent."""
        return tuple(status for status in self.statuses if status.outcome is Outcome.PERMANENT)


OnStatus = Callable[[StoreStatus], None]


# -------------------------------------------------------------------- verbs


def echo(peer: Peer) -> EchoResult:
    """Ask `peer` whether it is there (C-ECHO)."""
    began = time.monotonic()
    with connected(peer, [build_context(Verification)]) as (association, problem):
        if association is not None:
            request = C_ECHO()
            request.MessageID = 1
            request.AffectedSOPClassUID = Verification
            status = _exchange(association, request, association.accepted_contexts[0].context_id)
            if status is None:
                problem = Problem(f"{peer} did not answer C-ECHO", transient=True)
            elif status != 0x0000:
                problem = Problem(f"{peer} answered C-ECHO with status 0x{status:04X}", transient=True)
    return EchoResult(time.monotonic() - began, problem)


def store(peer: Peer, files: Sequence[Path], on_status: OnStatus | None = None) -> StoreResult:
    """Send `files` over one association, in order; `on_status` hears of each as soon as it is known.

    Stops early when the peer is out of resources or the association breaks: the rest is `not_tried`, to
    be sent later with the same UIDs.
    """
    tell = on_status or (lambda status: None)
    statuses: list[StoreStatus] = []

    def note(status: StoreStatus) -> None:
        statuses.append(status)
        tell(status)

    outgoing: list[_Outgoing] = []
    for path in files:
        try:
            outgoing.append(_Outgoing.read(path))
        except _Unsendable as error:
            note(StoreStatus(path, "", Outcome.PERMANENT, None, str(error)))
    if not outgoing:
        return StoreResult(tuple(statuses))
    sent = 0
    with connected(peer, _contexts(outgoing)) as (association, problem):
        if association is not None:
            for item in outgoing:
                status, problem = _store_one(association, peer, item, message_id=sent % 0xFFFF + 1)
                note(status)
                sent += 1
                if problem is not None:
                    break
    return StoreResult(tuple(statuses), tuple(item.path for item in outgoing[sent:]), problem)


# -------------------------------------------------------------------- one instance


class _Unsendable(Exception):
    """A file that cannot be sent; the message says why."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A file as its file meta describes it."""

    path: Path
    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    offset: int  # of the data set, behind the file meta

    @classmethod
    def read(cls, path: Path) -> _Outgoing:
        """Reads the file meta only; raises _Unsendable."""
        try:
            meta = read_file_meta(path)
        except OSError as error:
            raise _Unsendable(f"{path} cannot be read: {error.strerror or error}") from error
        except NotDicom as error:
            raise _Unsendable(f"{path} is not a DICOM file") from error
        if not (meta.sop_class_uid and meta.sop_uid and meta.transfer_syntax_uid):
            raise _Unsendable(f"{path} is not a DICOM file")
        return cls(path, meta.sop_class_uid, meta.sop_uid, meta.transfer_syntax_uid, meta.offset)


def identify(path: Path) -> tuple[str, str]:
    """(SOP Class UID, SOP Instance UID) of a DICOM file. Raises OSError when it cannot be read as one."""
    try:
        item = _Outgoing.read(path)
    except _Unsendable as error:
        raise OSError(str(error)) from error
    return item.sop_class_uid, item.sop_uid


def _contexts(outgoing: Sequence[_Outgoing]) -> list[PresentationContext]:
    """One context for each SOP class and syntax: the files' own, and the two every peer should take.

    A context with several syntaxes would let the peer choose, and it may choose the one that costs the
    private elements their VR.
    """
    wanted: dict[tuple[str, str], None] = {}
    for item in outgoing:
        wanted[item.sop_class_uid, item.transfer_syntax_uid] = None
    for item in outgoing:
        wanted[item.sop_class_uid, str(ExplicitVRLittleEndian)] = None
        wanted[item.sop_class_uid, str(ImplicitVRLittleEndian)] = None
    return [build_context(UID(cls), UID(syntax)) for cls, syntax in list(wanted)[:MAX_CONTEXTS]]


def _store_one(
    association: Any, peer: Peer, item: _Outgoing, message_id: int
) -> tuple[StoreStatus, Problem | None]:
    """Send one instance; a Problem ends the association."""

    def became(
        outcome: Outcome, text: str, code: int | None = None, *, ends: bool = False
    ) -> tuple[StoreStatus, Problem | None]:
        status = StoreStatus(item.path, item.sop_uid, outcome, code, text)
        return status, Problem(text, transient=True) if ends else None

    contexts = {
        context.transfer_syntax[0]: context
        for context in association.accepted_contexts
        if context.abstract_syntax == item.sop_class_uid
    }
    if not contexts:
        return became(Outcome.PERMANENT, f"{peer} does not accept {UID(item.sop_class_uid).name}")
    try:
        syntax, content = _encoded(item, set(contexts))
    except _Unsendable as error:
        return became(Outcome.PERMANENT, f"{peer}: {error}")
    code = _send(association, contexts[syntax].context_id, item, message_id, content)
    if code is None:
        # it may have the instance or not; sending it again changes nothing there
        if broken(association):
            return became(Outcome.TRANSIENT, f"{peer} broke the association off", ends=True)
        association.abort()
        waited = f"{peer.timeouts.dimse_s:g} s"
        return became(Outcome.TRANSIENT, f"{peer} did not answer within {waited}", ends=True)
    treatment = treat(code)
    text = f"{peer} answered 0x{code:04X}: {treatment.meaning}"
    return became(treatment.outcome, text, code, ends=treatment.outcome is Outcome.TRANSIENT)


def _encoded(item: _Outgoing, accepted: set[UID]) -> tuple[UID, bytes]:
    """The data set in one of the accepted syntaxes: as it is in the file where possible, never transcoded."""
    own = UID(item.transfer_syntax_uid)
    try:
        if own in accepted:
            with item.path.open("rb") as file:
                file.seek(item.offset)
                return own, file.read()
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            if syntax in accepted and own in CONVERTIBLE:
                content = encode(dcmread(item.path), syntax.is_implicit_VR, syntax.is_little_endian)
                if content is not None:
                    return syntax, content
    except OSError as error:
        raise _Unsendable(f"{item.path} cannot be read: {error.strerror or error}") from error
    name = UID(item.sop_class_uid).name
    raise _Unsendable(f"{name} as {own.name} is not accepted, and this file cannot be converted")


# -------------------------------------------------------------------- on the wire


def _send(association: Any, context_id: int, item: _Outgoing, message_id: int, content: bytes) -> int | None:
    """Send one C-STORE request and wait for its status; None when there was no (valid) answer in time.

    Written straight to the connection: by way of pynetdicom's queues each PDU waits for a polling loop.
    Not under TLS, where one thread must not write while another reads.
    """
    if isinstance(association.dul.socket.socket, ssl.SSLSocket):
        request = C_STORE()
        request.MessageID = message_id
        request.AffectedSOPClassUID = item.sop_class_uid
        request.AffectedSOPInstanceUID = item.sop_uid
        request.Priority = 0x0000  # medium
        request.DataSet = BytesIO(content)
        return _exchange(association, request, context_id)
    command = command_set(
        {
            AFFECTED_SOP_CLASS_UID: uid_value(item.sop_class_uid),
            COMMAND_FIELD: us_value(C_STORE_RQ),
            MESSAGE_ID: us_value(message_id),
            PRIORITY: us_value(0),  # medium
            COMMAND_DATA_SET_TYPE: us_value(DATA_SET),
            AFFECTED_SOP_INSTANCE_UID: uid_value(item.sop_uid),
        }
    )
    max_pdu = association.acceptor.maximum_length
    data = pdus(context_id, 0, content, max_pdu)
    # the command and the first piece of the data set in one write: apart, they wait for each other's
    # acknowledgement (Nagle)
    first = b"".join((*pdus(context_id, COMMAND, command, max_pdu), next(data)))
    if not association.dul.send_now(chain([first], data)):
        association.dimse.get_msg(block=True)  # until its thread has noticed too
        return None
    return _status(association, C_STORE)


def _exchange(association: Any, request: C_STORE | C_ECHO, context_id: int) -> int | None:
    """Send a request by way of pynetdicom and wait for its status; None when there was none in time."""
    association.dimse.send_msg(request, context_id)
    return _status(association, type(request))


def _status(association: Any, kind: type[C_STORE | C_ECHO]) -> int | None:
    _context_id, response = association.dimse.get_msg(block=True)
    if not isinstance(response, kind) or not response.is_valid_response:
        return None
    return int(response.Status)
