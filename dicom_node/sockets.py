"""What pynetdicom leaves undone at the level of sockets: latency, stalled peers, silent peers, TLS.

pynetdicom 3.0.4 sets no TCP_NODELAY, reads 4096 bytes at a time, never times out within a PDU, counts a
connection that says nothing as an association, and shakes TLS hands inside its accept loop. Everything
here is a small addition over its public classes; where they are not as we know them the socket options
still apply and the rest stays as pynetdicom does it.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import _config, evt
from pynetdicom.events import Event
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from dicom_node.log import get_logger

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
USER_TIMEOUT_S = 60
STALL_TIMEOUT_S = 60.0  # longest silence within a PDU
SLOWEST_BYTES_PER_S = 8192  # a PDU that comes slower than this is an attack, not a slow line
BUFFER_BYTES = 1 << 20
LARGEST_PDU_BYTES = 16 << 20  # we advertise far less; a length beyond is not a PDU
LARGEST_KEPT_BYTES = 2 << 20  # of memory that is kept for the next PDU
MAX_WAITING = 64  # connections that have not sent anything yet; descriptors must stay below select's 1024

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

# pynetdicom formats every PDU for its log, even when nobody reads it; and its lines quote data sets
_config.LOG_HANDLER_LEVEL = "none"
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


# -------------------------------------------------------------------- options


def set_options(raw: socket.socket, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
    """Options for either side of an association: no delay, dead peers noticed, large buffers, no stalls."""
    raw.settimeout(stall_timeout_s)
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", USER_TIMEOUT_S * 1000),
        (socket.SOL_SOCKET, "SO_RCVBUF", BUFFER_BYTES),
        (socket.SOL_SOCKET, "SO_SNDBUF", BUFFER_BYTES),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # a missing option costs speed, not correctness
                raw.setsockopt(level, option, value)
    acknowledge_at_once(raw)


def acknowledge_at_once(raw: socket.socket) -> None:
    """Send the acknowledgement that the kernel holds back, and hold none back until the next read.

    A peer with Nagle's algorithm (DCMTK as packaged, many archives) waits for it before the second half
    of each message: 40 ms per instance. The kernel forgets this option, so it is renewed again and again.
    """
    if _QUICKACK is not None:
        with suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


# -------------------------------------------------------------------- the shim


class PromptSocket(AssociationSocket):  # type: ignore[misc]  # pynetdicom has no types
    """AssociationSocket that reads a PDU into one buffer and acknowledges at once."""

    socket: Any  # socket.socket or None; set by the base class
    _unread: bytes = b""
    _buffer: bytearray = bytearray()

    def recv(self, nr_bytes: int) -> bytearray:
        """`nr_bytes` from the peer; fewer only when it closed the connection.

        Raises OSError when the peer stalls, dribbles, or announces more than a PDU can hold: pynetdicom
        then treats the connection as closed.
        """
        _refuse_nonsense(nr_bytes)
        # fresh memory costs nothing until it is written to, so a false length cannot exhaust us
        buffer = bytearray(nr_bytes)
        given = self._unread[:nr_bytes]
        self._unread = self._unread[len(given) :]
        buffer[: len(given)] = given
        with memoryview(buffer) as view:
            got = len(given) + self._fill(view[len(given) :])
        return buffer if got == nr_bytes else buffer[:got]

    def recv_into_buffer(self, nr_bytes: int) -> memoryview | None:
        """As `recv`, into memory that the next call uses again; None when the peer closed the connection."""
        _refuse_nonsense(nr_bytes)
        buffer = self._buffer
        if len(buffer) < nr_bytes:
            buffer = bytearray(nr_bytes)
            if nr_bytes <= LARGEST_KEPT_BYTES:
                self._buffer = buffer
        view = memoryview(buffer)[:nr_bytes]
        return view if self._fill(view) == nr_bytes else None

    def unread(self, content: bytes) -> None:
        """Give bytes back, to be read again by `recv`."""
        self._unread = bytes(content) + self._unread

    def wait_readable(self, seconds: float) -> bool:
        """Whether there is something to read (or the end) within `seconds`."""
        raw: socket.socket | None = self.socket
        if raw is None:
            return False
        if self._unread or (isinstance(raw, ssl.SSLSocket) and raw.pending()):
            return True
        poll = select.poll()  # select() ends at descriptor 1023
        poll.register(raw, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    @property
    def ready(self) -> bool:
        """Whether there is something to read now; pynetdicom's takes descriptors above 1023 for closed."""
        try:
            return bool(self._is_connected) and self.wait_readable(0)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def _fill(self, view: memoryview) -> int:
        """Read until `view` is full; how many bytes came before the peer closed the connection."""
        raw: socket.socket | None = self.socket
        if raw is None:
            raise OSError("the connection is closed")
        allowed_s = (raw.gettimeout() or STALL_TIMEOUT_S) + len(view) / SLOWEST_BYTES_PER_S
        deadline = time.monotonic() + allowed_s
        got = 0
        while got < len(view):
            count = raw.recv_into(view[got:])
            acknowledge_at_once(raw)
            if not count:
                break
            got += count
            if got < len(view) and time.monotonic() > deadline:
                raise TimeoutError("the peer sends too slowly")
        return got

    def send(self, bytestream: bytes) -> None:
        """All of `bytestream` to the peer; a failure becomes the event that closes the association."""
        try:
            if self.socket is None:
                raise OSError("the connection is closed")
            self.socket.sendall(bytestream)
            acknowledge_at_once(self.socket)
            evt.trigger(self.assoc, evt.EVT_DATA_SENT, {"data": bytestream})
        except Exception:  # as pynetdicom: whatever went wrong, the connection is of no more use
            self.event_queue.put("Evt17")  # PS3.8 table 9-10: transport connection closed


def _refuse_nonsense(nr_bytes: int) -> None:
    if nr_bytes > LARGEST_PDU_BYTES:
        raise OSError("the peer announced a PDU that is longer than any PDU")


def tune(event: Event, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
    """Handler of EVT_CONN_OPEN, for both directions: set the options, and put the shim in place."""
    association_socket = event.assoc.dul.socket
    raw = getattr(association_socket, "socket", None)
    if raw is None:
        return
    set_options(raw, stall_timeout_s)
    if type(association_socket) is AssociationSocket:
        # the same object with other read and write methods; layouts that differ keep the stock ones
        with suppress(TypeError):
            association_socket.__class__ = PromptSocket


# -------------------------------------------------------------------- TLS


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Paths of PEM files. PS3.15 B.12 (BCP 195): TLS 1.2 or newer, certificates checked against `ca`.

    As server: `ca` is whom client certificates must come from, when `require_client_certificate`.
    As client: `ca` is whom the server's certificate must come from; empty means the system's authorities.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    require_client_certificate: bool = True


def server_context(tls: TlsSettings) -> ssl.SSLContext:
    """The TLS context of the listener; raises OSError or ValueError when the files do not fit."""
    if tls.certificate is None or tls.key is None:
        raise ValueError("TLS on the listener needs a certificate and its key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.require_client_certificate:
        if tls.ca is None:
            raise ValueError("require_client_certificate needs `ca`: the authority that signed them")
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: TlsSettings) -> ssl.SSLContext:
    """The TLS context towards a destination; raises OSError when the files do not fit."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


# -------------------------------------------------------------------- the server


class GuardedServer(ThreadedAssociationServer):  # type: ignore[misc]  # pynetdicom has no types
    """Accepts connections; a connection becomes an association only once its peer has spoken.

    The wait for the first bytes and the TLS handshake happen in the connection's own thread, under a
    timeout. Of the connections that were not admitted yet, only the `MAX_WAITING` youngest are kept: port
    probes, half-open handshakes and peers that never finish their request occupy neither association
    slots nor more than a few descriptors, and a real peer, which speaks at once, gets through.
    """

    request_queue_size = 128
    daemon_threads = True
    # set by the listener right after construction, before serving
    tls: ssl.SSLContext | None = None
    first_bytes_timeout_s: float = 30.0
    each_tick: Callable[[], None] | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._waiting: dict[int, socket.socket] = {}  # by id of the accepted socket, in order of arrival
        self._waiting_lock = threading.Lock()
        super().__init__(*arguments, **keywords)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept, and nothing that could block."""
        connection, address = self.socket.accept()
        return connection, address

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        """Hand the connection to a thread of its own; the longest-waiting one gives way to the newest."""
        self._forget(lambda waiting: waiting.fileno() < 0)
        with self._waiting_lock:
            self._waiting[id(request)] = request
            evicted = None
            if len(self._waiting) > MAX_WAITING:
                evicted = self._waiting.pop(next(iter(self._waiting)))
        if evicted is not None:
            close_for_both(evicted)  # wakes its thread
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:
        """Wait for the peer to speak, shake hands, and only then make it an association."""
        connection = request
        try:
            connection.settimeout(self.first_bytes_timeout_s)
            if self.tls is None:
                spoke = bool(connection.recv(1, socket.MSG_PEEK))
            else:
                connection = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                with self._waiting_lock:
                    if id(request) in self._waiting:
                        self._waiting[id(request)] = connection
                connection.do_handshake()
                spoke = True
        except OSError:  # silence, a failed handshake, or evicted
            spoke = False
        if spoke:
            super().process_request_thread(connection, client_address)
        else:
            self.shutdown_request(connection)

    def admitted(self, connection: socket.socket) -> None:
        """The listener has decided about this connection: it waits no longer and will not be evicted."""
        self._forget(lambda waiting: waiting is connection)

    def _forget(self, done: Callable[[socket.socket], bool]) -> None:
        with self._waiting_lock:
            self._waiting = {key: waiting for key, waiting in self._waiting.items() if not done(waiting)}

    def service_actions(self) -> None:
        """Called by serve_forever with each tick."""
        super().service_actions()
        if self.each_tick is not None:
            self.each_tick()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection whose association could not be built is closed; socketserver would print it."""
        get_logger(__name__).exception("a connection failed before its association began")


class SharedContexts(list[Any]):
    """Presentation contexts that all associations of a server share: negotiation only reads them.

    pynetdicom copies them for each association, which took half of the time that an association cost.
    """

    def __deepcopy__(self, _memo: dict[int, Any]) -> SharedContexts:
        return self


def close_for_both(raw: socket.socket | None) -> None:
    """End a connection from another thread than the one that reads it, which notices at once."""
    if raw is not None:
        with suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)


def wake_when_closed(event: Event) -> None:
    """Handler of EVT_CONN_CLOSE for the acceptor: a peer that left before it asked for an association.

    pynetdicom's thread would go on waiting for the request until its timeout.
    """
    if event.assoc.requestor.primitive is None:
        event.assoc.dul.to_user_queue.put(None)
