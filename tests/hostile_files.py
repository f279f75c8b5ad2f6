"""Data sets made to break a reader, one for each class of published vulnerability of DICOM servers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from instances import encoded, mr_dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from dicom_node.received import DEFLATED, file_header

UID = "1.2.826.0.1.3680043.10.88"
DEPTH = 20_000
ITEM = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One element in Explicit VR Little Endian; `length` is what it claims, rightly or not."""
    size = len(value) if length is None else length
    group, number = tag >> 16, tag & 0xFFFF
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OV"):
        return struct.pack("<HH2sHL", group, number, vr, 0, size) + value
    return struct.pack("<HH2sH", group, number, vr, size) + value


def uids(
    sop: bytes = UID.encode(), study: bytes = b"1.2.3.4 ", series: bytes = b"1.2.3.5 "
) -> tuple[bytes, bytes]:
    """The elements that identify an instance: those of group 0008 and those of group 0020."""

    def even(value: bytes) -> bytes:
        return value + b"\0" * (len(value) % 2)

    first = element(0x00080016, b"UI", even(MRImageStorage.encode())) + element(0x00080018, b"UI", even(sop))
    return first, element(0x0020000D, b"UI", even(study)) + element(0x0020000E, b"UI", even(series))


def with_tail(tail: bytes) -> bytes:
    """A well identified data set that goes on with `tail`."""
    first, second = uids()
    return first + element(0x00080060, b"CS", b"MR") + second + tail


def geometry(rows: int, columns: int, frames: bytes) -> bytes:
    """Image attributes of any size, and two bytes of pixels."""
    return b"".join(
        (
            element(0x00280002, b"US", struct.pack("<H", 1)),
            element(0x00280004, b"CS", b"MONOCHROME2 "),
            element(0x00280008, b"IS", frames),
            element(0x00280010, b"US", struct.pack("<H", rows)),
            element(0x00280011, b"US", struct.pack("<H", columns)),
            element(0x00280100, b"US", struct.pack("<H", 16)),
            element(0x00280101, b"US", struct.pack("<H", 16)),
            element(0x00280102, b"US", struct.pack("<H", 15)),
            element(0x00280103, b"US", struct.pack("<H", 0)),
            element(0x7FE00010, b"OW", b"\0\0"),
        )
    )


def deflated(data: bytes) -> bytes:
    """A data set as Deflated Explicit VR Little Endian carries it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


BOMB_MEGABYTES = 450


@cache
def bomb() -> bytes:
    """Half a megabyte that inflates to four hundred and fifty."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [packer.compress(with_tail(element(0x7FE00010, b"OW", b"", BOMB_MEGABYTES << 20)))]
    zeros = bytes(1 << 20)
    pieces += [packer.compress(zeros) for _ in range(BOMB_MEGABYTES)]
    return b"".join((*pieces, packer.flush()))


def path_uid(uid: bytes) -> bytes:
    """A data set whose own UIDs are paths."""
    first, second = uids(uid, uid, uid)
    return first + second


def whole() -> bytes:
    """An honest instance."""
    return encoded(mr_dataset(sop_uid=UID))


# name → data set as it would come over the network; Explicit VR Little Endian unless the name says deflated
DATA_SETS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "noise": lambda: bytes(range(256)) * 16,
    "path traversal by uid": lambda: path_uid(b"../../../../etc/cron.d/x"),
    "absolute path as uid": lambda: path_uid(b"/etc/passwd"),
    "uid with a null byte": lambda: path_uid(b"1.2.3\x00/../../x"),
    "uid of percent escapes": lambda: path_uid(b"%2e%2e%2f%2e%2e%2fx"),
    "uid that is too long": lambda: path_uid(b"1." + b"2" * 5000),
    "length beyond the end": lambda: with_tail(element(0x00081030, b"UT", b"abc", 0xFFFFFFFE)),
    "length beyond the end before the uids": lambda: element(0x00080005, b"UN", b"", 0x7FFFFFF0),
    "pixel length beyond the end": lambda: with_tail(element(0x7FE00010, b"OW", b"\0\0", 0xFFFFFFF0)),
    "undefined length without an end": lambda: with_tail(element(0x00081140, b"SQ", ITEM * 3, 0xFFFFFFFF)),
    "sequences within sequences": lambda: with_tail(
        (element(0x00081140, b"SQ", b"", 0xFFFFFFFF) + ITEM) * DEPTH
    ),
    "sequences before the uids": lambda: (element(0x00081110, b"SQ", b"", 0xFFFFFFFF) + ITEM) * DEPTH,
    "a million empty items": lambda: with_tail(
        element(0x00081140, b"SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 100_000)
    ),
    "absurd rows and columns": lambda: with_tail(geometry(0xFFFF, 0xFFFF, b"1 ")),
    "absurd number of frames": lambda: with_tail(geometry(64, 64, b"2147483647")),
    "negative number of frames": lambda: with_tail(geometry(64, 64, b"-1")),
    "number of frames that is text": lambda: with_tail(geometry(64, 64, b"many")),
    "no rows": lambda: with_tail(geometry(0, 0, b"1 ")),
    "wrong vr": lambda: with_tail(
        element(0x00280010, b"SQ", b"\1\2\3\4") + element(0x00200032, b"FD", b"\xff" * 7)
    ),
    "vr that is none": lambda: with_tail(element(0x00280010, b"??", b"\1\0")),
    "numbers that are none": lambda: with_tail(
        element(0x00200032, b"DS", b"nan\\inf\\-1e9999") + element(0x00280030, b"DS", b"0\\0")
    ),
    "offset table out of range": lambda: with_tail(
        element(
            0x7FE00010,
            b"OB",
            b"\xfe\xff\x00\xe0\x08\x00\x00\x00"
            + struct.pack("<LL", 0xFFFFFFF0, 0x7FFFFFFF)
            + ITEM[:4]
            + b"\xff" * 4,
            0xFFFFFFFF,
        )
    ),
    "elements out of order": lambda: with_tail(element(0x00080018, b"UI", b"9.9.9.9 ")),
    "two names for one instance": lambda: b"".join((*uids(), *uids(b"1.2.826.9"))),
    "cut in the middle": lambda: whole()[: len(whole()) // 2],
    "cut in the uids": lambda: whole()[:60],
    "deflate bomb": bomb,
    "deflate stream that is noise": lambda: bytes(range(1, 255)) * 8,
    "deflated and cut": lambda: deflated(whole())[:200],
}


def syntax_of(name: str) -> str:
    """The transfer syntax under which a data set of DATA_SETS goes."""
    return DEFLATED if name.startswith("deflate") else str(ExplicitVRLittleEndian)


def write_file(path: Path, name: str, data: bytes | None = None) -> Path:
    """A hostile data set as the file that the listener would have stored."""
    content = DATA_SETS[name]() if data is None else data
    path.write_bytes(file_header(MRImageStorage, UID, syntax_of(name), "SCANNER1") + content)
    return path
