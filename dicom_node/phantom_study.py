"""A synthetic MR study as DICOM files: a T2-weighted anatomical series and an EPI diffusion series.

For the demo and the tests. The arrays come from elsewhere (the engine's phantom); here they get the headers
that a scanner would write, without a private element, so that the node classifies, pairs, corrects and sends
them as it would any study. The patient is PHANTOM^DEMO and every UID follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from pydicom.valuerep import format_number_as_ds

from correction.volume import Volume
from dicom_node.derive.instance_file import put, write_instance
from dicom_node.derive.provenance import uid_of
from rules.facts import Vec3

STORED_MAX = 4000.0  # of the brightest voxel of a series: twelve bits, as scanners store
ADC_TISSUE, ADC_FLUID = 0.75e-3, 3.0e-3  # mm²/s at body temperature
ANISOTROPY = 0.25  # share by which the decay differs between directions in tissue
FLUID_FROM = 0.5  # of the brightest b = 0 voxels: above, a voxel counts more and more as fluid
AXES: tuple[Vec3, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
DATE = "20250101"


@dataclass(frozen=True, slots=True)
class Weighting:
    """One diffusion volume. direction: unit vector in patient LPS; None for b = 0 and for a trace image."""

    b_value: float  # s/mm²
    direction: Vec3 | None
    volume: Volume


@dataclass(frozen=True, slots=True)
class PhantomStudy:
    """What was written, by its UIDs."""

    study_uid: str
    reference_series_uid: str
    dwi_series_uid: str
    reference_files: tuple[Path, ...]
    dwi_files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Session:
    """What the instances of one phantom study have in common."""

    seed: int

    def uid(self, *parts: object) -> str:
        return uid_of("|".join(str(part) for part in ("phantom", self.seed, *parts)))

    def header(self, series_number: int, time: str) -> Dataset:
        """Patient, study, series, frame of reference and equipment."""
        dataset = Dataset()
        for keyword, value in (
            ("SpecificCharacterSet", "ISO_IR 192"),
            ("StudyDate", DATE),
            ("SeriesDate", DATE),
            ("AcquisitionDate", DATE),
            ("ContentDate", DATE),
            ("StudyTime", "100000"),
            ("SeriesTime", time),
            ("AcquisitionTime", time),
            ("ContentTime", time),
            ("AccessionNumber", f"DEMO{self.seed}"),
            ("Modality", "MR"),
            ("Manufacturer", "PHANTOM"),
            ("ManufacturerModelName", "Synthetic head"),
            ("DeviceSerialNumber", str(self.seed)),
            ("SoftwareVersions", "1"),
            ("ReferringPhysicianName", None),
            ("StudyDescription", "Synthetic head"),
            ("PatientName", "PHANTOM^DEMO"),
            ("PatientID", "DEMO-0001"),
            ("PatientBirthDate", "19700101"),
            ("PatientSex", "O"),
            ("BodyPartExamined", "HEAD"),
            ("MagneticFieldStrength", "3"),
            ("ImagedNucleus", "1H"),
            ("PatientPosition", "HFS"),
            ("StudyInstanceUID", self.uid("study")),
            ("SeriesInstanceUID", self.uid("series", series_number)),
            ("StudyID", str(self.seed)),
            ("SeriesNumber", series_number),
            ("AcquisitionNumber", 1),
            ("FrameOfReferenceUID", self.uid("frame")),
            ("PositionReferenceIndicator", None),
            ("BurnedInAnnotation", "NO"),
        ):
            put(dataset, keyword, value)
        return dataset


T2_SERIES, DWI_SERIES = 2, 3
T2 = (
    ("SeriesDescription", "T2w TSE 3D"),
    ("ProtocolName", "T2w TSE 3D"),
    ("ImageType", ["ORIGINAL", "PRIMARY", "OTHER"]),
    ("ScanningSequence", "SE"),
    ("SequenceVariant", ["SK", "SP"]),
    ("ScanOptions", None),
    ("MRAcquisitionType", "3D"),
    ("SequenceName", "tse3d"),
    ("RepetitionTime", "3200"),
    ("EchoTime", "95"),
    ("EchoTrainLength", 120),
    ("FlipAngle", "120"),
    ("InPlanePhaseEncodingDirection", "ROW"),
)
DWI = (
    ("SeriesDescription", "DWI EPI"),
    ("ProtocolName", "DWI EPI"),
    ("ImageType", ["ORIGINAL", "PRIMARY", "OTHER", "DIFFUSION"]),
    ("ScanningSequence", ["SE", "EP"]),
    ("SequenceVariant", "SK"),
    ("ScanOptions", "FS"),
    ("MRAcquisitionType", "2D"),
    ("RepetitionTime", "5400"),
    ("EchoTime", "80"),
    ("EchoTrainLength", 64),
    ("FlipAngle", "90"),
    ("InPlanePhaseEncodingDirection", "COL"),
)


def weighted(
    b0: Volume, b_values: Sequence[float] = (500.0, 1000.0), directions: Sequence[Vec3] = AXES
) -> tuple[Weighting, ...]:
    """b0 and, for each b-value and direction, what monoexponential decay leaves of it.

    A model to look at and not to measure with: fluid is told from tissue by its brightness on b = 0 alone.
    """
    brightest = float(torch.quantile(b0.data[b0.data > 0].float(), 0.99))
    fluid = ((b0.data / brightest - FLUID_FROM) / (1.0 - FLUID_FROM)).clamp(0.0, 1.0)
    volumes = [Weighting(0.0, None, b0)]
    for b_value in b_values:
        for number, direction in enumerate(directions):
            along = 1.0 + ANISOTROPY * (number - (len(directions) - 1) / 2) / max(1, len(directions) - 1)
            adc = ADC_TISSUE * along * (1.0 - fluid) + ADC_FLUID * fluid
            volumes.append(Weighting(b_value, direction, b0.with_data(b0.data * torch.exp(-b_value * adc))))
    return tuple(volumes)


def write_phantom_study(
    out: Path, reference: Volume, weightings: Sequence[Weighting], seed: int = 0
) -> PhantomStudy:
    """Write `reference` as a T2-weighted series and `weightings` as an EPI DWI series, one file a slice.

    Files go to out/2_T2w and out/3_DWI. The same arrays and seed give the same files. Raises ValueError when
    an affine is sheared, which no DICOM image can be.
    """
    session = _Session(seed)
    t2_files = _write_series(
        out / f"{T2_SERIES}_T2w", session, T2_SERIES, "100200", T2, [Weighting(0.0, None, reference)]
    )
    dwi_files = _write_series(out / f"{DWI_SERIES}_DWI", session, DWI_SERIES, "100800", DWI, weightings)
    return PhantomStudy(
        session.uid("study"),
        session.uid("series", T2_SERIES),
        session.uid("series", DWI_SERIES),
        tuple(t2_files),
        tuple(dwi_files),
    )


def _write_series(
    folder: Path,
    session: _Session,
    number: int,
    time: str,
    kind: Sequence[tuple[str, object]],
    weightings: Sequence[Weighting],
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    brightest = max(float(weighting.volume.data.max()) for weighting in weightings)
    factor = STORED_MAX / brightest if brightest > 0 else 1.0
    files: list[Path] = []
    for weighting in weightings:
        stored = np.rint(np.clip(weighting.volume.data.cpu().numpy() * factor, 0.0, 4095.0)).astype("<u2")
        for z, plane in enumerate(stored):
            instance = session.header(number, time)
            for keyword, value in kind:
                put(instance, keyword, value)
            if number == DWI_SERIES:
                _put_diffusion(instance, weighting)
            put(instance, "SOPClassUID", MRImageStorage)
            put(instance, "SOPInstanceUID", session.uid("instance", number, len(files)))
            put(instance, "InstanceNumber", len(files) + 1)
            _put_plane(instance, weighting.volume, z)
            _put_pixels(instance, plane)
            files.append(folder / f"{len(files) + 1:05d}.dcm")
            write_instance(instance, files[-1])
    return files


def _put_diffusion(instance: Dataset, weighting: Weighting) -> None:
    """The public diffusion attributes, at the root as scanners put them into classic images."""
    b_value, direction = weighting.b_value, weighting.direction
    put(instance, "SequenceName", f"ep_b{b_value:g}")
    put(instance, "DiffusionBValue", float(b_value))
    if direction is not None:
        put(instance, "DiffusionGradientOrientation", [float(component) for component in direction])
    elif b_value > 0.0:
        put(instance, "DiffusionDirectionality", "ISOTROPIC")
        return
    put(instance, "DiffusionDirectionality", "NONE" if direction is None else "DIRECTIONAL")


def _put_plane(instance: Dataset, volume: Volume, z: int) -> None:
    """Image Plane attributes of slice `z` from the affine (x, y, z index → LPS mm)."""
    axes, (dx, dy, dz) = volume.axes, volume.spacing_mm
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ValueError("write_phantom_study() needs volumes with orthogonal axes")
    position = volume.affine[:3, 3] + z * volume.affine[:3, 2]
    put(instance, "PixelSpacing", _ds(dy, dx))
    put(instance, "SliceThickness", _ds(dz)[0])
    put(instance, "SpacingBetweenSlices", _ds(dz)[0])
    put(instance, "ImageOrientationPatient", _ds(*axes[:, 0], *axes[:, 1]))
    put(instance, "ImagePositionPatient", _ds(*position))
    put(instance, "SliceLocation", _ds(float(position @ np.cross(axes[:, 0], axes[:, 1])))[0])


def _ds(*numbers: float) -> list[str]:
    return [format_number_as_ds(0.0 if math.isclose(n, 0.0, abs_tol=1e-9) else float(n)) for n in numbers]


def _put_pixels(instance: Dataset, plane: npt.NDArray[np.uint16]) -> None:
    low, high = int(plane.min()), int(plane.max())
    for keyword, value in (
        ("SamplesPerPixel", 1),
        ("PhotometricInterpretation", "MONOCHROME2"),
        ("Rows", plane.shape[0]),
        ("Columns", plane.shape[1]),
        ("BitsAllocated", 16),
        ("BitsStored", 12),
        ("HighBit", 11),
        ("PixelRepresentation", 0),
        ("WindowCenter", str(round((low + high) / 2))),
        ("WindowWidth", str(max(1, high - low))),
    ):
        put(instance, keyword, value)
    instance.add_new("PixelData", "OW", plane.tobytes())
