"""DICOM instances on disk: read a header, set a checked attribute, write a file that declares what it is."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


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


def write_instance(instance: Dataset, path: Path) -> None:
    """Write a file in Explicit VR Little Endian; elements that are still raw are written as they are."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    instance.file_meta = meta
    pydicom.dcmwrite(path, instance, enforce_file_format=True)
