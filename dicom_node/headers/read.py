"""One DICOM file → InstanceFacts. The header is read once and not kept."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom.dsutils import split_dataset

from dicom_node.headers import tags
from dicom_node.headers.elements import Header, Layer
from dicom_node.headers.frames import read_frames
from dicom_node.headers.instance import InstanceFacts
from dicom_node.headers.problems import NoImage, Unreadable
from dicom_node.headers.scan import read_scan, with_readout
from dicom_node.headers.stored import locate

_BLOB_BYTES = 1 << 20  # raw data and spectra; nothing that is read here is as large
_META_BYTES = 16 << 10  # more than any file meta group
_INFLATED_BYTES = 512 << 20  # of a deflated data set, pixels included
_INFLATED_ANYWAY_BYTES = 32 << 20
_MOST_INFLATION = 200  # to one: pictures reach 20, nothing but zeros 1000
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def read_instance(path: Path) -> InstanceFacts:
    """The facts of one file; an object that is no image (SR, PR, raw data …) has no frames.

    Raises Unreadable, and nothing else, for what is no DICOM, cannot be opened, is damaged, or has no series.
    """
    try:
        with _tolerant_pydicom(), path.open("rb") as file:
            _check_inflated_size(path, file)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, defer_size=_BLOB_BYTES)
            return _facts(path, dataset, file)
    except Unreadable:
        raise
    except InvalidDicomError:
        if not path.stat().st_size:
            raise Unreadable(f"{path.name} is empty.") from None
        raise NoImage(
            f"{path.name} is not a DICOM file: it has no DICM prefix and file meta group."
        ) from None
    except OSError as error:
        if error.strerror is None:  # pydicom's, not the system's: it met the end of the file
            raise Unreadable(f"{path.name} is cut short: it ends within its header.") from error
        raise Unreadable(f"{path.name} cannot be opened: {error.strerror}.") from error
    except Exception as error:  # a hostile file may raise anything inside the parser; this is the boundary
        raise Unreadable(
            f"{path.name} is damaged: its header cannot be parsed ({type(error).__name__})."
        ) from error


def _check_inflated_size(path: Path, file: BinaryIO) -> None:
    """Raises Unreadable for a deflated file that is a bomb: pydicom inflates all of it at once."""
    head = file.read(_META_BYTES)
    file.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return
    meta, offset = split_dataset(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    file.seek(offset)
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while piece := inflater.unconsumed_tail or file.read(_META_BYTES):
        size += len(inflater.decompress(piece, _BLOB_BYTES))
        packed = file.tell() - offset
        if size > _INFLATED_BYTES or (size > _INFLATED_ANYWAY_BYTES and size > _MOST_INFLATION * packed):
            raise Unreadable(f"{path.name} inflates to more than any picture holds ({size >> 20} MiB).")
    file.seek(0)


@contextmanager
def _tolerant_pydicom() -> Iterator[None]:
    """One bad value must not lose the study."""
    lenient, mode = pydicom_config.convert_wrong_length_to_UN, pydicom_config.settings.reading_validation_mode
    pydicom_config.convert_wrong_length_to_UN = True
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom_config.convert_wrong_length_to_UN = lenient
        pydicom_config.settings.reading_validation_mode = mode


def _facts(path: Path, dataset: Dataset, file: BinaryIO) -> InstanceFacts:
    root = Header([Layer(dataset)])
    root = root.under(_groups(root, tags.ROOT_GROUPS))
    sop_class_uid = root.text(tags.SOP_CLASS_UID)
    meta = getattr(dataset, "file_meta", None)
    if sop_class_uid == _MEDIA_DIRECTORY or (
        meta and meta.get("MediaStorageSOPClassUID") == _MEDIA_DIRECTORY
    ):
        raise NoImage(f"{path.name} is a DICOMDIR, an index of other files.")
    sop_instance_uid = root.text(tags.SOP_INSTANCE_UID)
    if not (sop_class_uid and sop_instance_uid and root.text(tags.SERIES_INSTANCE_UID)):
        raise Unreadable(
            f"{path.name} is cut short, or holds no image: it names no SOP class, instance or series."
        )
    transfer_syntax_uid = str(meta.get("TransferSyntaxUID", "")) if meta else ""
    stored = locate(file, transfer_syntax_uid, root)  # before a deferred element moves the file
    shared, frames = _functional_groups(root)
    first = frames[0] if frames else shared
    scan = read_scan(first, root)
    slices, problem = read_frames(path, sop_instance_uid, scan, shared, frames, stored)
    return InstanceFacts(
        path=path,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        instance_number=root.integer(tags.INSTANCE_NUMBER),
        series=scan if problem else with_readout(scan, first, slices),
        frames=slices,
        problem=problem,
        stored=stored,
    )


def _functional_groups(root: Header) -> tuple[Header, list[Header]]:
    """The header with the shared functional groups before it, and one more specific header a frame.

    A vendor's private sequences come last: what they repeat of the public elements is less exact.
    """
    shared = root
    private: list[Dataset] = []
    for item in root.items(tags.SHARED_FUNCTIONAL_GROUPS_SEQUENCE)[:1]:
        own = Header([Layer(item)])
        shared = shared.under([*_groups(own, tags.FUNCTIONAL_GROUPS), item])
        private = _private_items(item)
    shared = Header((*shared.layers, *(Layer(item) for item in private)))
    frames = []
    for item in root.items(tags.PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE):
        own = Header([Layer(item)])
        frame = shared.under([*_groups(own, tags.FUNCTIONAL_GROUPS), item])
        frames.append(Header((*frame.layers, *(Layer(one) for one in _private_items(item)))))
    return shared, frames


def _groups(header: Header, wanted: tuple[int, ...]) -> list[Dataset]:
    """The first items of the named sequences, each with the gradient direction's nested item."""
    found = []
    for tag in wanted:
        for item in header.items(tag)[:1]:
            found.append(item)
            if tag == tags.MR_DIFFUSION_SEQUENCE:
                found.extend(Header([Layer(item)]).items(tags.DIFFUSION_GRADIENT_DIRECTION_SEQUENCE)[:1])
    return found


def _private_items(item: Dataset) -> list[Dataset]:
    """First items of a functional group's private sequences: Siemens (0021,10FE), Philips (2005,140F) …"""
    header = Header([Layer(item)])
    found: list[Dataset] = []
    for tag in item.keys():  # noqa: SIM118  # iterating a Dataset would decode every element
        if tag.is_private and tag.element > 0xFF:
            element = item.get_item(tag)
            if element is not None and element.VR in ("SQ", "UN", None):
                found.extend(header.items(tag)[:1])
    return found
