"""DICOM headers and slices made from numbers, for tests of dicom_node.headers."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from dicom_node.headers import FrameFacts, InstanceFacts
from dicom_node.headers.elements import Header, Layer
from dicom_node.headers.public import Plane
from dicom_node.headers.space import cross, plane
from rules.facts import Directionality, SeriesFacts, Vec3, Vendor

SERIES_UID = "1.2.826.0.1.3680043.10.2.1"
STUDY_UID = "1.2.826.0.1.3680043.10.2"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def dataset_of(elements: Mapping[str, object] | None = None) -> Dataset:
    """A data set of public elements, by keyword."""
    made = Dataset()
    for keyword, value in (elements or {}).items():
        setattr(made, keyword, value)
    return made


def add_private(made: Dataset, group: int, creator: str, values: Mapping[int, tuple[str, object]]) -> Dataset:
    """`made` with a vendor's block: offset → (VR, value)."""
    block = made.private_block(group, creator, create=True)
    for offset, (vr, value) in values.items():
        block.add_new(offset, vr, value)
    return made


def reread(made: Dataset, implicit: bool = False) -> Dataset:
    """`made` as it comes out of a file: elements are bytes, and implicit VR forgets what they were."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    content = BytesIO()
    pydicom.dcmwrite(content, made, enforce_file_format=False)
    content.seek(0)
    return pydicom.dcmread(content, force=True)


def header(made: Dataset, implicit: bool = False) -> Header:
    """`made`, read back, as the readers see it."""
    return Header([Layer(reread(made, implicit))])


def oriented(orientation: Sequence[float] = AXIAL) -> Plane:
    """The plane of an ImageOrientationPatient."""
    axes = plane(tuple(orientation))
    assert axes
    return Plane(*axes, cross(*axes))


def mr_image(number: int = 1, **elements: object) -> Dataset:
    """A classic MR slice of 8 × 8, axial, at z = 2·number mm; `elements` by keyword replace or add."""
    made = dataset_of(
        {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": f"{SERIES_UID}.{number}",
            "StudyInstanceUID": STUDY_UID,
            "SeriesInstanceUID": SERIES_UID,
            "Modality": "MR",
            "SeriesNumber": 7,
            "InstanceNumber": number,
            "ImageType": ["ORIGINAL", "PRIMARY", "M"],
            "ImagePositionPatient": [-7.0, -7.0, 2.0 * number],
            "ImageOrientationPatient": list(AXIAL),
            "PixelSpacing": [2.0, 2.0],
            "SpacingBetweenSlices": 2.0,
            "Rows": 8,
            "Columns": 8,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            **elements,
        }
    )
    dtype = np.int16 if made.PixelRepresentation else np.uint16
    pixels = np.arange(made.Rows * made.Columns, dtype=dtype) + 100 * number
    if "PixelData" not in made:
        made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    return made


def write(folder: Path, *images: Dataset) -> list[Path]:
    """The images as files, named in reverse order: names must not matter."""
    paths = []
    for index, image in enumerate(images):
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{len(images) - index:05d}.dcm"
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def csa_header(fields: Mapping[str, Sequence[float]]) -> bytes:
    """A Siemens CSA2 header that holds numeric fields."""
    parts = [b"SV10", b"\4\3\2\1", struct.pack("<2I", len(fields), 77)]
    for name, values in fields.items():
        parts.append(struct.pack("<64si4s3i", name.encode(), len(values), b"FD", 3, len(values), 77))
        for value in values:
            text = f"{value}".encode() + b"\0"
            parts.append(struct.pack("<4i", len(text), len(text), 77, len(text)))
            parts.append(text + b"\0" * (-len(text) % 4))
    return b"".join(parts)


def stack(
    slices: int = 4,
    *,
    b_value: float | None = None,
    direction: Vec3 | None = None,
    orientation: Sequence[float] = AXIAL,
    origin: Vec3 = (0.0, 0.0, 0.0),
    step_mm: float = 3.0,
    first_number: int = 1,
    minute: int = 0,
    vendor: Vendor = Vendor.OTHER,
    **changed: object,
) -> list[InstanceFacts]:
    """One volume of classic single-slice instances along row × column."""
    lies = oriented(orientation)
    made = []
    for index in range(slices):
        x, y, z = (origin[axis] + index * step_mm * lies.normal[axis] for axis in range(3))
        number = first_number + index
        uid = f"{SERIES_UID}.{number}"
        frame = FrameFacts(
            sop_instance_uid=uid,
            path=Path(f"{number}.dcm"),
            rows=8,
            columns=10,
            position_mm=(x, y, z),
            row=lies.row,
            column=lies.column,
            spacing_mm=(1.5, 2.5),
            thickness_mm=step_mm,
            b_value=b_value,
            b_source="" if b_value is None else "DiffusionBValue (0018,9087)",
            direction=direction,
            directionality=Directionality.DIRECTIONAL if direction else Directionality.UNKNOWN,
            instance_number=number,
            acquired=datetime(2024, 1, 1, 12) + timedelta(minutes=minute, seconds=index),
        )
        facts = SeriesFacts(SERIES_UID, STUDY_UID, sop_class_uid=MRImageStorage, vendor=vendor, instances=1)
        made.append(
            InstanceFacts(
                frame.path, uid, ExplicitVRLittleEndian, number, facts, (replace(frame, **changed),)
            )
        )
    return made
