"""DIMSE messages as bytes: command sets (PS3.7 §6.3.1) and the PDUs that carry them (PS3.8 §9.3.5, Annex E).

Only what C-STORE needs, because it is needed for every instance: pynetdicom and pydicom take milliseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

P_DATA_TF = 0x04
C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
NO_DATA_SET = 0x0101
COMMAND, LAST = 0x01, 0x02  # bits of the message control header, PS3.8 Annex E.2

# command elements, group 0000
AFFECTED_SOP_CLASS_UID = 0x0002
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_RESPONDED_TO = 0x0120
COMMAND_DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
AFFECTED_SOP_INSTANCE_UID = 0x1000

PRIORITY = 0x0700
DATA_SET = 0x0000  # a data set follows; any value but NO_DATA_SET
DEFAULT_PDU_BYTES = 128 << 10  # for a peer that takes any size


class Malformed(Exception):
    """The peer breaks the protocol."""


def fragments(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(context, control header, fragment) of each item of a P-DATA-TF's body; raises Malformed."""
    at = 0
    while at < len(body):
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        if end < at + 6 or end > len(body):
            raise Malformed("an item that is longer than its PDU, or too short")
        yield body[at + 4], body[at + 5], body[at + 6 : end]
        at = end


def command_elements(command: bytes) -> dict[int, bytes]:
    """Element number → value of a command set (group 0000, Implicit VR Little Endian); raises Malformed."""
    elements = {}
    at = 0
    while at < len(command):
        if at + 8 > len(command):
            raise Malformed("a command that is cut short")
        group, element, length = struct.unpack_from("<HHL", command, at)
        at += 8
        if group != 0x0000 or at + length > len(command):
            raise Malformed("a command that is none")
        elements[element] = command[at : at + length]
        at += length
    return elements


def number(elements: dict[int, bytes], element: int) -> int:
    """The value of a US element; raises Malformed when it is missing."""
    value = elements.get(element, b"")
    if len(value) != 2:
        raise Malformed("a command without a number that it must have")
    return int.from_bytes(value, "little")


def text(elements: dict[int, bytes], element: int) -> str:
    """The value of a UI element as it came, '' when there is none; bytes beyond ASCII make it no UID."""
    return elements.get(element, b"").decode("ascii", "replace")


def command_set(elements: dict[int, bytes]) -> bytes:
    """Encoded command elements in order of their numbers, with their group length."""
    body = b"".join(
        struct.pack("<HHL", 0, element, len(value)) + value for element, value in sorted(elements.items())
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def us_value(value: int) -> bytes:
    """A value of VR US."""
    return value.to_bytes(2, "little")


def uid_value(uid: str) -> bytes:
    """A value of VR UI, padded to even length."""
    encoded = uid.encode("ascii", "replace")
    return encoded + b"\0" * (len(encoded) % 2)


def pdus(context_id: int, kind: int, content: bytes, max_pdu: int | None) -> Iterator[bytes]:
    """P-DATA-TF PDUs, one item each, none larger than the peer takes (None or 0: any size).

    kind: COMMAND or 0 for a data set; the last fragment is marked as such.
    """
    room = max((max_pdu or DEFAULT_PDU_BYTES) - 6, 2)  # an item has six bytes of its own
    view = memoryview(content)
    for at in range(0, max(len(view), 1), room):
        piece = view[at : at + room]
        control = kind | (LAST if at + room >= len(view) else 0)
        length = len(piece)
        yield struct.pack(">BBLLBB", P_DATA_TF, 0, length + 6, length + 2, context_id, control) + bytes(piece)
