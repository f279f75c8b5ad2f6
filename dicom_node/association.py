"""An association that we open: whom we call, for how long we wait, and in words why there is none.

PS3.8 §7 and §9.3. Nothing here raises for what a network or a peer does.
"""

from __future__ import annotations

import queue
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from dicom_node.calling import CallingDul, CallingSocket
from dicom_node.sockets import TlsSettings, client_context, tune
from dicom_node.statuses import REJECTIONS
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

MAX_PDU_BYTES = 131072


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long we wait for a peer, in seconds."""

    connect_s: float = 10.0
    acse_s: float = 30.0  # for its answer to an association request, a release
    dimse_s: float = 120.0  # for its answer to one instance
    network_s: float = 60.0  # of silence on an open association, and within a PDU


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that we call."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    timeouts: Timeouts = field(default_factory=Timeouts)
    tls: TlsSettings | None = None

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an association did not do its work: one sentence, and whether trying again later can help."""

    text: str
    transient: bool


@contextmanager
def connected(peer: Peer, contexts: list[PresentationContext]) -> Iterator[tuple[Any | None, Problem | None]]:
    """An established association and None, or None and why there is none; released at the end."""
    association, problem = _associate(peer, contexts)
    try:
        yield association, problem
    finally:
        if association is not None and association.is_established:
            if broken(association):
                association.kill()
            else:
                association.release()


def _associate(peer: Peer, contexts: list[PresentationContext]) -> tuple[Any | None, Problem | None]:
    began = time.monotonic()
    try:
        entity = _Entity(ae_title=peer.calling_ae_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.connection_timeout = peer.timeouts.connect_s
        entity.acse_timeout = peer.timeouts.acse_s
        entity.dimse_timeout = peer.timeouts.dimse_s
        entity.network_timeout = peer.timeouts.network_s
        association = entity.associate(
            peer.host,
            peer.port,
            contexts,
            ae_title=peer.ae_title,
            max_pdu=MAX_PDU_BYTES,
            tls_args=(client_context(peer.tls), peer.host) if peer.tls else None,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, tune, [peer.timeouts.network_s]),
                (evt.EVT_CONN_OPEN, _hear_at_once),
                (evt.EVT_ESTABLISHED, _hold_reactor),
            ],
        )
    except socket.gaierror as error:
        return None, Problem(f"{peer}: the host name cannot be resolved: {error.strerror}", transient=True)
    except OSError as error:
        return None, Problem(f"{peer} cannot be called: {error}", transient=True)
    except ValueError as error:
        return None, Problem(f"{peer} cannot be called: {error}", transient=False)
    if association.is_established:
        return association, None
    return None, _why_not(association, peer, contexts, time.monotonic() - began)


def _unheard_answer(association: Any) -> Any | None:
    """An answer that came, with the end of the connection, before pynetdicom looked whether it is connected.

    A fast peer that refuses does that in one call of twelve.
    """
    with suppress(queue.Empty):
        primitive = association.dul.to_user_queue.get_nowait()
        return primitive if isinstance(primitive, A_ASSOCIATE) else None
    return None


def _why_not(association: Any, peer: Peer, contexts: list[PresentationContext], waited_s: float) -> Problem:
    """Why an association was not established, in words."""
    failure = getattr(association.dul.socket, "failure", None)
    if failure is not None:
        return Problem(f"{peer} cannot be reached: {_network_words(failure, peer)}", transient=True)
    answer = association.acceptor.primitive or _unheard_answer(association)
    if answer is not None and answer.result in (0x01, 0x02):  # rejected, for good or for now
        words = REJECTIONS.get((answer.result_source, answer.diagnostic), "its reason is not in the standard")
        words = words.format(calling=peer.calling_ae_title, called=peer.ae_title)
        return Problem(f"{peer} rejected the association: {words}", transient=answer.result == 0x02)
    if answer is not None and answer.result == 0x00 and not association.accepted_contexts:
        names = ", ".join(sorted({UID(context.abstract_syntax).name for context in contexts}))
        return Problem(f"{peer} accepts none of what was offered: {names}", transient=False)
    if waited_s < peer.timeouts.acse_s:
        return Problem(f"{peer} closed the connection instead of answering", transient=True)
    return Problem(f"{peer} did not answer within {peer.timeouts.acse_s:g} s", transient=True)


def _network_words(failure: OSError, peer: Peer) -> str:
    if isinstance(failure, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(failure, TimeoutError):
        return f"no answer within {peer.timeouts.connect_s:g} s"
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not acceptable ({failure.verify_message})"
    if isinstance(failure, ssl.SSLError):
        return f"no TLS connection ({failure.reason or failure})"
    return failure.strerror or str(failure)


def broken(association: Any) -> bool:
    """Whether the peer aborted, or the connection is gone."""
    return bool(association.acse.is_aborted()) or not association.dul.is_alive()


class _Entity(AE):  # type: ignore[misc]  # pynetdicom has no types
    def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> CallingSocket:
        calling = CallingSocket(assoc, address=address)
        calling.tls_args = tls_args
        return calling


def _hold_reactor(event: Event) -> None:
    """Keep pynetdicom's reactor thread from running on this association until it is released or aborted.

    Its loop looks for requests of the peer and, when it wakes at the wrong moment, takes the response
    that we wait for and drops it: seen once in about 1500 instances with a fast peer. Pausing it for each
    message, as send_c_store does, leaves that window open; held from before its start it never takes one.
    """
    event.assoc._reactor_checkpoint.clear()


def _hear_at_once(event: Event) -> None:
    """The connection is open: let its thread wait for answers instead of polling."""
    event.assoc.dul.__class__ = CallingDul
