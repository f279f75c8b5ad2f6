from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AssociationSocket

from dicom_node import sockets
from dicom_node.sockets import PromptSocket, acknowledge_at_once, set_options, tune


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        yield here, there


@pytest.fixture
def reader(pair: tuple[socket.socket, socket.socket]) -> Any:
    """A PromptSocket around the first end, with as much association as it needs; `seen`: its events."""
    seen: list[str] = []
    events = SimpleNamespace(put=seen.append)
    association = SimpleNamespace(dul=SimpleNamespace(event_queue=events), get_handlers=lambda event: [])
    pair[0].settimeout(2.0)
    wrapped: Any = PromptSocket(association, client_socket=pair[0])
    wrapped.seen = seen
    return wrapped


def test_both_directions_get_every_option(pair: tuple[socket.socket, socket.socket]) -> None:
    raw = pair[0]
    set_options(raw, 7.0)
    assert raw.gettimeout() == 7.0
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_options_that_this_system_lacks_are_left_out(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    monkeypatch.setattr(sockets, "_QUICKACK", None)
    set_options(pair[0])
    acknowledge_at_once(pair[0])
    assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_closed_socket_is_no_reason_to_fail(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    acknowledge_at_once(pair[0])


def test_recv_joins_what_comes_in_pieces(reader: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    content = bytes(range(256)) * 40

    def send() -> None:
        for start in range(0, len(content), 1000):
            pair[1].sendall(content[start : start + 1000])
            time.sleep(0.002)

    thread = threading.Thread(target=send)
    thread.start()
    received = reader.recv(len(content))
    thread.join()
    assert isinstance(received, bytearray)  # pynetdicom extends it
    assert received == content


def test_recv_leaves_what_was_not_asked_for(reader: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"header" + b"rest")
    assert reader.recv(6) == b"header"
    assert reader.recv(4) == b"rest"


def test_recv_is_short_when_the_peer_closes(reader: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"half")
    pair[1].close()
    received = reader.recv(8)
    assert received == b"half"
    received.extend(b"no view holds the buffer any more")


def test_recv_gives_up_on_a_peer_that_stalls(reader: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].settimeout(0.1)
    pair[1].sendall(b"half")
    with pytest.raises(TimeoutError):
        reader.recv(8)


def test_recv_gives_up_on_a_peer_that_dribbles(
    reader: Any, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SLOWEST_BYTES_PER_S", 10**9)
    pair[0].settimeout(0.3)
    stop = threading.Event()

    def dribble() -> None:
        while not stop.wait(0.05):
            pair[1].send(b".")

    thread = threading.Thread(target=dribble)
    thread.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        reader.recv(100_000)
    stop.set()
    thread.join()
    assert time.monotonic() - began < 1.0


def test_recv_allocates_nothing_for_a_length_that_no_pdu_has(reader: Any) -> None:
    with pytest.raises(OSError, match="longer than any PDU"):
        reader.recv(0xFFFFFFFF)


def test_send_delivers_everything(reader: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    content = bytes(3_000_000)
    received = bytearray()

    def drain() -> None:
        while len(received) < len(content):
            received.extend(pair[1].recv(65536))

    thread = threading.Thread(target=drain)
    thread.start()
    reader.send(content)
    thread.join(5)
    assert received == content
    assert reader.seen == ["Evt5"]


def test_a_failed_send_becomes_the_event_that_closes_the_association(
    reader: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].close()
    reader.send(b"x")
    assert reader.seen == ["Evt5", "Evt17"]


def test_the_handler_puts_the_shim_in_place_on_both_sides_of_an_association() -> None:
    kinds: dict[str, type] = {}
    delays: dict[str, int] = {}

    def look(event: evt.Event, side: str) -> None:
        tune(event)
        wrapped = event.assoc.dul.socket
        kinds[side] = type(wrapped)
        delays[side] = wrapped.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    entity = AE()
    entity.add_supported_context(Verification)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_CONN_OPEN, look, ["acceptor"])]
    )
    assert server is not None
    try:
        association = AE().associate(
            "127.0.0.1",
            server.server_address[1],
            [build_context(Verification)],
            evt_handlers=[(evt.EVT_CONN_OPEN, look, ["requestor"])],
        )
        assert association.is_established
        association.release()
    finally:
        server.shutdown()
    assert kinds == {"acceptor": PromptSocket, "requestor": PromptSocket}
    assert all(delays.values())


def test_a_socket_class_that_we_do_not_know_is_left_as_it_is(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    class Other(AssociationSocket):  # type: ignore[misc]
        pass

    association = SimpleNamespace(dul=SimpleNamespace(event_queue=SimpleNamespace(put=lambda event: None)))
    association.dul.socket = Other(association, client_socket=pair[0])
    tune(SimpleNamespace(assoc=association))  # type: ignore[arg-type]
    assert type(association.dul.socket) is Other
    assert pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    association.dul.socket = None
    tune(SimpleNamespace(assoc=association))  # type: ignore[arg-type]
