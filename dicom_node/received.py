"""What the listener accepts, and the little that it reads of an instance: its UIDs.

Policy (PS3.4 Annex B leaves it to the SCP): permissive in what is stored, strict in what is processed.
Scanners give up a whole "send to node" job when one context is refused, so every storage class is taken;
what cannot be used is kept and left alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts, StoragePresentationContexts
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_acceptable, normalise

# In our order of preference: with Implicit VR first (pynetdicom's default) private elements lose their VR.
UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99")
LOSSLESS = (
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.5",
)
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

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
    syntax = UID(transfer_syntax_uid)
    if transfer_syntax_uid == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, _INFLATE_LIMIT_BYTES)
        except zlib.error as error:
            raise Unidentifiable("the deflated data set cannot be inflated") from error
    found: dict[str, str] = {}

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
        for tag, name in _IDENTITY.items():
            if tag in head:
                found[name] = normalise(str(head[tag].value or ""))
    except Exception as error:  # pydicom raises anything on hostile bytes, RecursionError included
        raise Unidentifiable("the data set cannot be parsed") from error
    identity = Identity(*(found.get(name, "") for name in ("class", "instance", "study", "series")))
    for uid in (identity.sop_class_uid, identity.sop_uid, identity.study_uid, identity.series_uid):
        if not is_acceptable(uid):
            raise Unidentifiable("a UID of the data set is missing or is none")
    return identity


def file_header(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, calling_ae: str) -> bytes:
    """Preamble and file meta information (PS3.10 §7.1) for bytes received under these UIDs."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = calling_ae
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = False
    write_file_meta_info(buffer, meta)
    return b"\0" * 128 + b"DICM" + bytes(buffer.getvalue())
