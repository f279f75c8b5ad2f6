"""Hostile bytes: the listener lives on and answers, readers give a reason, and memory stays bounded."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hostile_files import DATA_SETS, UID, syntax_of, whole, write_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import encoded, mr_dataset
from listening import Node, Scu, starting
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.dimse import Malformed, command_elements, fragments
from dicom_node.headers import Unreadable, read_instance
from dicom_node.load import load
from dicom_node.statuses import Answer

ANSWERS = {int(answer) for answer in Answer}
SPARE_BYTES = 400 << 20  # what reading may take beyond what the process has
SECONDS_A_FILE = 20.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    for start in starting(tmp_path_factory.mktemp("fuzz")):
        yield start()


def sent(node: Node, data: bytes, uid: str = UID, syntax: str = str(ExplicitVRLittleEndian)) -> int:
    """The status of one data set, and proof that the listener serves the next one."""
    with Scu(node.port, syntaxes=[syntax]) as scu:
        status, comment = scu.send(data, uid)
        assert len(comment) <= 64
    honest = f"{UID}.{time.monotonic_ns()}"
    with Scu(node.port) as scu:
        assert scu.send(encoded(mr_dataset(sop_uid=honest)), honest)[0] == 0x0000
    return status


# -------------------------------------------------------------------- over the network


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_hostile_data_set_is_answered_and_stays_below_the_root(node: Node, name: str) -> None:
    root = node.settings.root
    outside = set(root.parent.iterdir())
    assert sent(node, DATA_SETS[name](), syntax=syntax_of(name)) in ANSWERS
    assert set(root.parent.iterdir()) == outside
    names = [path.name for path in (root / "instances").rglob("*.dcm")]
    assert all(set(one) <= set("0123456789abcdef.dcm") for one in names)


@pytest.mark.parametrize(
    "uid", ["../../x", "/etc/passwd", "1.2\0/x", "..", "%2e%2e", "1.2.3/4", "1" * 64, "1.2\\3", "é"]
)
def test_a_command_whose_uid_is_a_path_stores_nothing(node: Node, uid: str) -> None:
    before = node.rows("SELECT COUNT(*) FROM instances WHERE sop_uid NOT LIKE '1.2.826%'")
    try:
        status = sent(node, whole(), uid)
    except UnicodeEncodeError:
        pytest.skip("no SCU can send this")
    assert status == Answer.INVALID_SOP_INSTANCE
    assert node.rows("SELECT COUNT(*) FROM instances WHERE sop_uid NOT LIKE '1.2.826%'") == before


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_damaged_data_sets_are_answered_one_after_another(node: Node, draw: st.DataObject) -> None:
    syntax = draw.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    data = bytearray(encoded(mr_dataset(sop_uid=UID, syntax=syntax)))
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, 350))
        data[at : at + 1] = draw.draw(st.binary(max_size=4))
    cut = draw.draw(st.integers(0, len(data)))
    with Scu(node.port, syntaxes=[str(syntax)]) as scu:
        assert scu.send(bytes(data[:cut]))[0] in ANSWERS


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_pdu_body_is_taken_apart_or_malformed(body: bytes) -> None:
    try:
        pieces = [bytes(piece) for _, _, piece in fragments(memoryview(body))]
    except Malformed:
        return
    assert sum(map(len, pieces)) + 6 * len(pieces) == len(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_command_is_taken_apart_or_malformed(body: bytes) -> None:
    try:
        elements = command_elements(body)
    except Malformed:
        return
    assert sum(map(len, elements.values())) <= len(body)


HOSTILE_REQUESTS = {
    "an item longer than the request": struct.pack(">BBH", 0x10, 0, 0xFFFF) + b"x" * 16,
    "no items": b"",
    "an unknown item": struct.pack(">BBH", 0x99, 0, 4) + b"abcd",
    "a presentation context without syntaxes": struct.pack(">BBHBBBB", 0x20, 0, 4, 1, 0, 0, 0),
    "thousands of presentation contexts": struct.pack(">BBHBBBB", 0x20, 0, 4, 1, 0, 0, 0) * 5000,
    "user information within user information": struct.pack(">BBH", 0x50, 0, 8)
    + struct.pack(">BBHL", 0x50, 0, 4, 0),
}


@pytest.mark.parametrize("items", HOSTILE_REQUESTS.values(), ids=HOSTILE_REQUESTS.keys())
def test_a_hostile_association_request_ends_only_itself(node: Node, items: bytes) -> None:
    body = struct.pack(">HH16s16s32x", 1, 0, b"NODE".ljust(16), b"SCANNER1".ljust(16)) + items
    with socket.create_connection(("127.0.0.1", node.port)) as raw:
        raw.sendall(struct.pack(">BBL", 1, 0, len(body)) + body)
        raw.settimeout(5)
        answer = raw.recv(10)
    assert answer[:1] in (b"", b"\x02", b"\x03", b"\x07")
    assert sent(node, whole()) == 0x0000


# -------------------------------------------------------------------- from disk


def _read(path: Path) -> str:
    """What a reader makes of a file: '' or the reason why it cannot."""
    try:
        instance = read_instance(path)
        if instance.frames and not instance.problem:
            load([instance])
    except MemoryError:
        raise
    except Exception as error:
        known = isinstance(error, Unreadable) or type(error).__name__ == "GeometryProblem"
        return str(error) if known else f"! {type(error).__name__}"
    return ""


def _read_all(paths: list[Path], pipe: Connection) -> None:
    """In a process of its own: read each file under a limit on memory."""
    status = Path("/proc/self/status").read_text()
    used = int(next(line for line in status.splitlines() if line.startswith("VmSize:")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))
    for path in paths:
        try:
            pipe.send((path.name, _read(path)))
        except MemoryError:
            pipe.send((path.name, "! MemoryError"))
    pipe.send(None)


def read_under_limit(paths: list[Path]) -> dict[str, str]:
    """File name → '' or the reason; '!' before what no reader may do, such as taking all memory."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(paths, sending))
    process.start()
    sending.close()
    told: dict[str, str] = {}
    try:
        while receiving.poll(60 if not told else SECONDS_A_FILE):
            message = receiving.recv()
            if message is None:
                return told
            told[message[0]] = message[1]
        return told | {"next": "! took too long"}
    except EOFError:
        return told | {"next": f"! the process died with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def test_hostile_files_are_read_or_refused_in_words_within_their_memory(
    tmp_path: Path, data_set: Callable[[str], Path]
) -> None:
    paths = [write_file(tmp_path / f"{name.replace(' ', '-')}.dcm", name) for name in DATA_SETS]
    paths += sorted(path for path in data_set("parser-fixtures").rglob("*") if path.is_file())
    told = read_under_limit(paths)
    assert {name: words for name, words in told.items() if words.startswith("!")} == {}
    assert set(told) == {path.name for path in paths}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_a_damaged_file_is_read_or_refused_in_words(tmp_path_factory: Any, draw: st.DataObject) -> None:
    data = bytearray(whole())
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.integers(0, 400))
        data[at : at + 1] = draw.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}.dcm"
    words = _read(write_file(path, "cut in the middle", bytes(data)))
    assert not words.startswith("!")
    assert "\n" not in words
