"""DICOM instances on disk: read a header, set a checked attribute, write a file that declares what it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pydicom
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

ITEM = b"\xfe\xff\x00\xe0"  # the tag of an item (PS3.5 §7.5.1)
COMPANION = "companion-"  # begins the file names of companions: behind the images, and told from them


def read_header(path: Path, only: list[str] | None = None) -> Dataset:
    """The header of a file without its pixels, or of it those keywords that are named.

    Raises OSError, pydicom.errors.InvalidDicomError.
    """
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=only)


def put(dataset: Dataset, keyword: str, value: object) -> None:
    """Set an attribute that we write ourselves; raises ValueError when the standard forbids the value."""
    _put(dataset, keyword, value, config.RAISE)


def put_given(dataset: Dataset, keyword: str, value: object) -> None:
    """Set an attribute to what the source says, unchecked: even a UID with leading zeros is repeated."""
    _put(dataset, keyword, value, config.IGNORE)


def _put(dataset: Dataset, keyword: str, value: object, validation_mode: int) -> None:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=validation_mode)


def encoded_item(item: Dataset) -> bytes:
    """An item of a sequence as it is written, Explicit VR Little Endian: for one that stands many times."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, item)
    content = bytes(buffer.getvalue())
    return ITEM + len(content).to_bytes(4, "little") + content


def put_items(dataset: Dataset, keyword: str, items: Iterable[bytes]) -> None:
    """Set a sequence from encoded items."""
    tag, value = Tag(keyword), b"".join(items)
    dataset[tag] = RawDataElement(tag, "SQ", len(value), value, 0, False, True)


def write_instance(instance: Dataset, path: Path) -> None:
    """Write a file in Explicit VR Little Endian; elements that are still raw are written as they are."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    instance.file_meta = meta
    pydicom.dcmwrite(path, instance, enforce_file_format=True)
