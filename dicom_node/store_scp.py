"""C-STORE requests straight off the connection, piece by piece, without pynetdicom's queues and copies.

pynetdicom 3.0.4 takes each PDU through two threads that poll every millisecond, copies a data set five
times and holds it in memory. Here the thread that reads the connection hands every fragment of a data set
to a sink as it lies in the buffer, and sends the answer itself. Association negotiation, release, abort,
timeouts and every other message stay with pynetdicom. PS3.7 §9.1.1 and §9.3.1, PS3.8 §9.3.5 and Annex E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.dimse import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    C_STORE_RQ,
    C_STORE_RSP,
    COMMAND,
    COMMAND_DATA_SET_TYPE,
    COMMAND_FIELD,
    ERROR_COMMENT,
    LAST,
    MESSAGE_ID,
    MESSAGE_ID_RESPONDED_TO,
    NO_DATA_SET,
    P_DATA_TF,
    STATUS,
    Malformed,
    command_elements,
    command_set,
    fragments,
    number,
    pdus,
    text,
    uid_value,
    us_value,
)
from dicom_node.sockets import PromptSocket, close_for_both
from dicom_node.statuses import Answer
from dicom_node.uids import is_acceptable, normalise

MAX_COMMAND_BYTES = 64 * 1024  # a command set has a few hundred
MAX_OUTSTANDING = (
    4  # requests for pynetdicom; without an asynchronous window, which we never grant, it is one
)
LINGER_S = 0.05  # how long the next request is waited for without polling


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE request, its UIDs as they came, and the presentation context that it came under."""

    message_id: int
    sop_class_uid: str
    sop_uid: str
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """What a C-STORE is answered: a status, and an ErrorComment of at most 64 characters."""

    status: Answer
    comment: str = ""


class Sink(Protocol):
    """One instance while it arrives."""

    def write(self, piece: memoryview) -> bool:
        """Take the next bytes of the data set; valid during the call only. False: it grows beyond sense."""

    def finish(self) -> StoreAnswer:
        """The data set is complete: the answer. Raises nothing."""

    def discard(self) -> None:
        """It will never be complete."""


class StoringDul(DULServiceProvider):  # type: ignore[misc]  # pynetdicom has no types
    """DULServiceProvider that serves C-STORE itself while the association is established."""

    assoc: Any
    socket: Any
    event_queue: Any
    to_provider_queue: Any

    def serve_store(
        self, open_sink: Callable[[StoreRequest], Sink], max_message_bytes: int, stall_timeout_s: float
    ) -> None:
        """Set up; called before the thread starts. `open_sink` raises nothing."""
        self._open_sink = open_sink
        self._max_message_bytes = max_message_bytes
        self._stall_timeout_s = stall_timeout_s
        self._contexts: dict[int, Any] = {}
        self._command = bytearray()
        self._request: tuple[int, StoreRequest] | None = None  # with its context's identifier
        self._sink: Sink | None = None
        self._foreign = False  # within, or waiting for the answer to, a message that pynetdicom serves

    def drop(self) -> None:
        """The association is over: what had not arrived completely is discarded."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.discard()

    # ---------------------------------------------------------------- PDUs

    def _read_pdu_data(self) -> None:
        """Called when there is something to read: read all there is, without going back to polling."""
        if self.state_machine.current_state != "Sta6" or not isinstance(self.socket, PromptSocket):
            super()._read_pdu_data()
            return
        with self._reactor_held():
            while self._read_pdu():
                self._idle_timer.restart()
                if not self._more():
                    break

    def _read_pdu(self) -> bool:
        """Read and serve one PDU; whether it was one of ours, so that another may be read."""
        try:
            header = self.socket.recv(6)
            if len(header) == 6 and header[0] == P_DATA_TF:
                body = self.socket.recv_into_buffer(int.from_bytes(header[2:], "big"))
            elif len(header) == 6:
                self.socket.unread(header)
                super()._read_pdu_data()
                return False
            else:
                body = None
        except OSError:
            body = None
        if body is None:
            self.event_queue.put("Evt17")  # PS3.8 table 9-10: transport connection closed
            return False
        try:
            for context_id, control, piece in fragments(body):
                self._take(context_id, control, piece)
        except Malformed:
            self.event_queue.put("Evt19")  # unrecognised or invalid PDU: the association is aborted
            return False
        return self.socket is not None

    def _more(self) -> bool:
        """Wait for the next PDU: whether it has come, and nothing else is to be done before."""
        if (
            self._foreign
            or self._kill_thread
            or not (self.event_queue.empty() and self.to_provider_queue.empty())
        ):
            return False
        if self.socket.wait_readable(LINGER_S):
            return True
        if self._sink is not None and not self.socket.wait_readable(self._stall_timeout_s):
            self.event_queue.put("Evt17")  # stopped in the middle of an instance
            return False
        return self._sink is not None

    @contextmanager
    def _reactor_held(self) -> Iterator[None]:
        """Keep pynetdicom's other thread from waking up a thousand times a second for nothing."""
        checkpoint = self.assoc._reactor_checkpoint
        checkpoint.clear()
        try:
            yield
        finally:
            checkpoint.set()

    # ---------------------------------------------------------------- messages

    def _take(self, context_id: int, control: int, piece: memoryview) -> None:
        """One fragment of a message."""
        if control & COMMAND:
            if self._request is not None:
                raise Malformed("a command within a data set")
            self._command += piece
            if len(self._command) > MAX_COMMAND_BYTES:
                raise Malformed("a command that never ends")
            if control & LAST:
                command, self._command = bytes(self._command), bytearray()
                self._begin(context_id, command)
        elif self._request is not None:
            if context_id != self._request[0]:
                raise Malformed("a data set under another context than its command")
            self._store(piece, bool(control & LAST))
        elif self._foreign:
            self._pass_on(context_id, control, piece)
        else:
            raise Malformed("a data set without a command")

    def _begin(self, context_id: int, command: bytes) -> None:
        elements = command_elements(command)
        if number(elements, COMMAND_FIELD) != C_STORE_RQ:
            self._foreign = True
            self._pass_on(context_id, COMMAND | LAST, command)
            return
        context = self._accepted(context_id)
        request = StoreRequest(
            number(elements, MESSAGE_ID),
            text(elements, AFFECTED_SOP_CLASS_UID),
            text(elements, AFFECTED_SOP_INSTANCE_UID),
            str(context.abstract_syntax),
            str(context.transfer_syntax[0]),
        )
        self._foreign = False
        self._request = context_id, request
        self._sink = self._open_sink(request)
        if number(elements, COMMAND_DATA_SET_TYPE) == NO_DATA_SET:
            self._store(memoryview(b""), last=True)

    def _accepted(self, context_id: int) -> Any:
        if not self._contexts:
            self._contexts = {context.context_id: context for context in self.assoc.accepted_contexts}
        if context_id not in self._contexts:
            raise Malformed("a presentation context that was not accepted")
        return self._contexts[context_id]

    def _store(self, piece: memoryview, last: bool) -> None:
        assert self._request is not None
        sink = self._sink
        if sink is None:  # dropped by another thread: the listener stops
            raise Malformed("nobody takes this instance any more")
        if not sink.write(piece):
            self.drop()
            close_for_both(self.socket.socket)
            raise Malformed("an instance that never ends")
        if last:
            answer = sink.finish()
            (context_id, request), self._request, self._sink = self._request, None, None
            max_pdu = self.assoc.requestor.maximum_length
            for pdu in pdus(context_id, COMMAND, response(request, answer), max_pdu):
                self.socket.send(pdu)

    def _pass_on(self, context_id: int, control: int, piece: bytes | memoryview) -> None:
        """A message of another service, to pynetdicom; closed when it would fill the memory."""
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[context_id, bytes([control]) + bytes(piece)]]
        dimse = self.assoc.dimse
        try:
            dimse.receive_primitive(primitive)
        except Exception as error:  # pynetdicom raises anything on hostile bytes
            raise Malformed("a message that cannot be decoded") from error
        message = dimse.message
        data_set = message.data_set if message is not None else None
        if dimse.msg_queue.qsize() > MAX_OUTSTANDING or (
            data_set is not None and data_set.tell() > self._max_message_bytes
        ):
            close_for_both(self.socket.socket)
            raise Malformed("requests that fill the memory")


def response(request: StoreRequest, answer: StoreAnswer) -> bytes:
    """The command set of a C-STORE-RSP; a UID that is none is not sent back."""
    named = {
        AFFECTED_SOP_CLASS_UID: normalise(request.sop_class_uid),
        AFFECTED_SOP_INSTANCE_UID: normalise(request.sop_uid),
    }
    comment = answer.comment + " " * (len(answer.comment) % 2)
    return command_set(
        {
            COMMAND_FIELD: us_value(C_STORE_RSP),
            MESSAGE_ID_RESPONDED_TO: us_value(request.message_id),
            COMMAND_DATA_SET_TYPE: us_value(NO_DATA_SET),
            STATUS: us_value(answer.status),
            **({ERROR_COMMENT: comment.encode("ascii")} if comment else {}),
            **{element: uid_value(uid) for element, uid in named.items() if is_acceptable(uid)},
        }
    )
