"""What the listener accepts, and the little that it reads of an instance: its UIDs.

Policy (PS3.4 Annex B leaves it to the SCP): permissive in what is stored, strict in what is processed.
Scanners give up a whole "send to node" job when one context is refused, so every storage class is taken;
what cannot be used is kept and left alone.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts, StoragePresentationContexts
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_acceptable, normalise

# In our order of preference: with Implicit VR first (pynetdicom's default) private elements lose their VR.
IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = ("1.2.840.10008.1.2.1", IMPLICIT, DEFLATED)
LOSSLESS = (
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.5",
)

# vendors' own classes, which pynetdicom does not know
PRIVATE_CLASSES = {
    "PhilipsPrivateMRSyntheticImageStorage": "1.3.46.670589.5.0.10",
    "PhilipsPrivateSpecialisedXAStorage": "1.3.46.670589.2.3.1.1",
    "PhilipsPrivateMRSpectrumStorage": "1.3.46.670589.11.0.0.12.1",
    "PhilipsPrivateMRSeriesDataStorage": "1.3.46.670589.11.0.0.12.2",
    "PhilipsPrivateMRColorImageStorage": "1.3.46.670589.11.0.0.12.3",
    "PhilipsPrivateMRExamcardStorage": "1.3.46.670589.11.0.0.12.4",
    "SiemensPrivateNonImageStorage": "1.3.12.2.1107.5.9.1",
}

_IDENTITY = {0x00080016: "class", 0x00080018: "instance", 0x0020000D: "study", 0x0020000E: "series"}
_LAST_IDENTITY_TAG = 0x0020000E
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_INFLATE_LIMIT_BYTES = 1 << 20  # the identity lies in the first few thousand bytes; a deflate bomb does not


def supported_transfer_syntaxes() -> tuple[str, ...]:
    """In our order: the uncompressed ones, and of the lossless ones those that can be decoded here."""
    decodable = tuple(uid for uid in LOSSLESS if get_decoder(UID(uid)).is_available)
    return (*UNCOMPRESSED, *decodable, BIG_ENDIAN)


def supported_storage_classes() -> tuple[str, ...]:
    """Every storage SOP class pynetdicom names, and the private ones; all are kept, few are processed."""
    standard = {
        str(context.abstract_syntax)
        for context in (*AllStoragePresentationContexts, *StoragePresentationContexts)
    }
    for keyword, uid in PRIVATE_CLASSES.items():
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, keyword, StorageServiceClass)
    for uid in standard:  # the retired ones are proposed by pynetdicom but not served
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, f"Storage_{uid.replace('.', '_')}", StorageServiceClass)
    return (*sorted(standard), *sorted(PRIVATE_CLASSES.values()))


def is_storage_class(uid: str) -> bool:
    """Whether `uid` names a class of instances that can be stored, and not another service."""
    return uid_to_service_class(uid) is StorageServiceClass


@dataclass(frozen=True, slots=True)
class Identity:
    """The UIDs that a data set gives itself; '' where it has none."""

    sop_class_uid: str
    sop_uid: str
    study_uid: str
    series_uid: str


class Unidentifiable(Exception):
    """The data set cannot be read as far as its UIDs, or they are none."""


def read_identity(data: bytes, transfer_syntax_uid: str) -> Identity:
    """The UIDs of an encoded data set, reading no further than the last of them; raises Unidentifiable."""
    if transfer_syntax_uid == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, _INFLATE_LIMIT_BYTES)
        except zlib.error as error:
            raise Unidentifiable("the deflated data set cannot be inflated") from error
    found = _walk(data, transfer_syntax_uid)
    if found is None:
        found = _parse(data, transfer_syntax_uid)
    identity = Identity(*(found.get(name, "") for name in _IDENTITY.values()))
    for uid in (identity.sop_class_uid, identity.sop_uid, identity.study_uid, identity.series_uid):
        if not is_acceptable(uid):
            raise Unidentifiable("a UID of the data set is missing or is none")
    return identity


def _walk(data: bytes, transfer_syntax_uid: str) -> dict[str, str] | None:
    """The UIDs by stepping from element to element (PS3.5 §7.1), a tenth of a full parse's time.

    None where that is not enough, e.g. for a sequence of undefined length or bytes that make no sense.
    """
    explicit = transfer_syntax_uid != IMPLICIT
    if transfer_syntax_uid == BIG_ENDIAN:
        return None
    found: dict[str, str] = {}
    at, previous = 0, -1
    while at + 8 <= len(data):
        group, element = struct.unpack_from("<HH", data, at)
        tag = group << 16 | element
        if tag > _LAST_IDENTITY_TAG:
            return found
        if tag <= previous or group < 0x0008:
            return None
        previous = tag
        if not explicit:
            (length,) = struct.unpack_from("<L", data, at + 4)
            at += 8
        elif (vr := data[at + 4 : at + 6]) in _SHORT_VRS:
            (length,) = struct.unpack_from("<H", data, at + 6)
            at += 8
        elif vr in _LONG_VRS and at + 12 <= len(data):
            (length,) = struct.unpack_from("<L", data, at + 8)
            at += 12
        else:
            return None
        if at + length > len(data):  # undefined length, which is 0xFFFFFFFF, included
            return None
        if tag in _IDENTITY:
            found[_IDENTITY[tag]] = normalise(data[at : at + length].decode("ascii", "replace"))
        at += length
    return found if at == len(data) else None


def _parse(data: bytes, transfer_syntax_uid: str) -> dict[str, str]:
    """The UIDs as pydicom finds them; raises Unidentifiable."""
    syntax = UID(transfer_syntax_uid)

    def beyond(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > _LAST_IDENTITY_TAG

    try:
        head = read_dataset(
            BytesIO(data),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=beyond,
            specific_tags=[BaseTag(tag) for tag in _IDENTITY],
        )
        return {name: normalise(str(head[tag].value or "")) for tag, name in _IDENTITY.items() if tag in head}
    except Exception as error:  # pydicom raises anything on hostile bytes, RecursionError included
        raise Unidentifiable("the data set cannot be parsed") from error


def file_header(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, calling_ae: str) -> bytes:
    """Preamble and file meta information (PS3.10 §7.1) for bytes received under these UIDs.

    Written by hand, because it is written for every instance: pydicom takes a millisecond for it.
    """
    elements = b"".join(
        (
            struct.pack("<HH2sHL", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            _meta_element(0x0002, b"UI", sop_class_uid),
            _meta_element(0x0003, b"UI", sop_uid),
            _meta_element(0x0010, b"UI", transfer_syntax_uid),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _meta_element(0x0016, b"AE", calling_ae),
        )
    )
    group_length = struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements))
    return b"\0" * 128 + b"DICM" + group_length + elements


def _meta_element(element: int, vr: bytes, value: str) -> bytes:
    """One element of group 0002, Explicit VR Little Endian, padded to even length."""
    encoded = value.encode("ascii", "replace")
    if len(encoded) % 2:
        encoded += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, element, vr, len(encoded)) + encoded
