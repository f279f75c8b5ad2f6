"""File meta information (PS3.10 §7.1) of a stored DICOM file: what it is, and where its data set begins.

Read by stepping over its few elements: pydicom takes a third of a millisecond for it, a quarter of the time
that sending an image takes. What is not laid out as it should be, pydicom reads.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from pynetdicom.dsutils import split_dataset

from dicom_node.uids import normalise

HEAD_BYTES = 2048  # a file meta group has a few hundred; private ones are left to pydicom
_FIRST = 132  # behind preamble and prefix
_LONG_VRS = (b"OB", b"UN", b"OW", b"UT", b"SQ")


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The UIDs of a file, '' where it has none. offset: of its data set, in bytes."""

    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    offset: int


class NotDicom(Exception):
    """The file has no file meta information."""


def read_file_meta(path: Path) -> FileMeta:
    """Of the file at `path`. Raises NotDicom, and OSError when it cannot be read."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return _stepped(head) or _parsed(path)


def _stepped(head: bytes) -> FileMeta | None:
    """None where the group is not as PS3.10 has it, or longer than `head`."""
    if head[128:_FIRST] != b"DICM" or len(head) < _FIRST + 12:
        return None
    group, element, vr, size, length = struct.unpack_from("<HH2sHL", head, _FIRST)
    at = _FIRST + 12
    end = at + length
    if (group, element, vr, size) != (0x0002, 0x0000, b"UL", 4) or end + 2 > len(head):
        return None
    if head[end : end + 2] == b"\x02\x00":  # the group goes on: its length is wrong
        return None
    found: dict[int, str] = {}
    while at + 8 <= end:
        group, element, vr, size = struct.unpack_from("<HH2sH", head, at)
        at += 8
        if group != 0x0002:
            return None
        if vr in _LONG_VRS:
            if at + 4 > end:
                return None
            (size,) = struct.unpack_from("<L", head, at)
            at += 4
        found[element] = head[at : at + size].decode("ascii", "replace")
        at += size
    if at != end:
        return None
    return FileMeta(
        normalise(found.get(0x0002, "")),
        normalise(found.get(0x0003, "")),
        normalise(found.get(0x0010, "")),
        found.get(0x0016, "").strip(),
        end,
    )


def _parsed(path: Path) -> FileMeta:
    try:
        meta, offset = split_dataset(path)
        return FileMeta(
            normalise(str(meta.get("MediaStorageSOPClassUID", ""))),
            normalise(str(meta.get("MediaStorageSOPInstanceUID", ""))),
            normalise(str(meta.get("TransferSyntaxUID", ""))),
            str(meta.get("SourceApplicationEntityTitle", "")).strip(),
            int(offset),
        )
    except OSError:
        raise
    except Exception as error:  # pydicom raises anything on what is no DICOM file
        raise NotDicom("it is not a DICOM file") from error
