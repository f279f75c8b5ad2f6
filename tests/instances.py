"""Small MR instances for tests of the network, made from numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom.dsutils import encode


def mr_dataset(
    *,
    sop_uid: str | None = None,
    study_uid: str = "1.2.826.0.1.3680043.10.1",
    series_uid: str = "1.2.826.0.1.3680043.10.1.1",
    number: int = 1,
    size: int = 16,
    syntax: UID = ExplicitVRLittleEndian,
) -> Dataset:
    """One classic MR slice, size × size, its file meta for `syntax`."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = sop_uid or generate_uid()
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.Modality = "MR"
    dataset.PatientName = "Phantom^Head"
    dataset.PatientID = "PHANTOM"
    dataset.InstanceNumber = number
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    pixels = np.random.default_rng(number).integers(0, 4096, (size, size), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def encoded(dataset: Dataset) -> bytes:
    """The data set as it goes over the network: without preamble and file meta."""
    syntax = dataset.file_meta.TransferSyntaxUID
    content = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    assert content is not None
    return content


def write_series(folder: Path, count: int, *, size: int = 16, series_uid: str | None = None) -> list[Path]:
    """`count` slices of one series as files; their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    series_uid = series_uid or generate_uid()
    paths = []
    for number in range(1, count + 1):
        path = folder / f"{number:05d}.dcm"
        mr_dataset(series_uid=series_uid, number=number, size=size).save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
