"""Hand-made facts: a transversal head DWI with everything right, and an anatomical series beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from rules.facts import Box, Directionality, PhaseAxis, PhaseEncoding, SeriesFacts, Vec3, Vendor

START = datetime(2024, 5, 6, 10, 0, 0)
TRANSVERSAL: tuple[Vec3, Vec3, Vec3] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
SAGITTAL: tuple[Vec3, Vec3, Vec3] = ((0, 1, 0), (0, 0, -1), (-1, 0, 0))


def minutes(after_start: float) -> datetime:
    return START + timedelta(minutes=after_start)


def box(extent_mm: Vec3 = (216, 216, 117), axes: Any = TRANSVERSAL, centre: Vec3 = (0, 0, 0)) -> Box:
    return Box(centre, axes, extent_mm)


_DWI = SeriesFacts(
    series_uid="1.2.10",
    study_uid="1.2",
    frame_of_reference_uid="1.2.99",
    patient_key="patient-a",
    series_number=10,
    modality="MR",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
    instances=800,
    description="DWI AP",
    protocol_name="DWI AP",
    vendor=Vendor.SIEMENS,
    station="67093",
    acquired=START,
    patient_position="HFS",
    body_part="BRAIN",
    image_type=("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "ND"),
    scanning_sequence=("EP",),
    sequence_name="ep_b0",
    acquisition_type="2D",
    echo_times_ms=(68.0,),
    repetition_time_ms=3500.0,
    complex_components=("MAGNITUDE",),
    gradient_nonlinearity="ND",
    rows=72,
    columns=72,
    slices=39,
    orientations=1,
    voxel_mm=(3.0, 3.0, 3.0),
    box=box(),
    b_values=(0.0, 1000.0, 1000.0),
    b_source="DiffusionBValue",
    directionalities=(Directionality.NONE, Directionality.DIRECTIONAL, Directionality.DIRECTIONAL),
    phase_encoding=PhaseEncoding(PhaseAxis.COLUMN, True, "CSA"),
)

_T2 = replace(
    _DWI,
    series_uid="1.2.5",
    series_number=5,
    instances=40,
    description="T2 TRA",
    protocol_name="T2 TRA",
    acquired=minutes(-20),
    image_type=("ORIGINAL", "PRIMARY", "M", "DIS2D"),
    scanning_sequence=("SE",),
    sequence_name="*tse2d1_25",
    echo_times_ms=(101.0,),
    repetition_time_ms=5000.0,
    gradient_nonlinearity="DIS2D",
    rows=512,
    columns=512,
    slices=40,
    voxel_mm=(0.45, 0.45, 3.3),
    box=box((230, 230, 132)),
    b_values=(),
    b_source="",
    directionalities=(),
    phase_encoding=None,
)


def dwi(**changes: Any) -> SeriesFacts:
    return replace(_DWI, **changes)


def trace(**changes: Any) -> SeriesFacts:
    """What the scanner makes of `dwi()` and stores beside it."""
    made: dict[str, Any] = {
        "series_uid": "1.2.11",
        "series_number": 11,
        "description": "DWI AP_TRACEW",
        "image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "TRACEW", "ND"),
        "b_values": (1000.0,),
        "directionalities": (Directionality.ISOTROPIC,),
    }
    return replace(_DWI, **(made | changes))


def t2(**changes: Any) -> SeriesFacts:
    return replace(_T2, **changes)


def t1(**changes: Any) -> SeriesFacts:
    """A sagittal 3-D MPRAGE, narrower from left to right than the DWI."""
    made: dict[str, Any] = {
        "series_uid": "1.2.6",
        "series_number": 6,
        "description": "MPRAGE",
        "protocol_name": "MPRAGE",
        "scanning_sequence": ("GR", "IR"),
        "sequence_name": "*tfl3d1_16ns",
        "acquisition_type": "3D",
        "echo_times_ms": (2.4,),
        "repetition_time_ms": 1800.0,
        "inversion_time_ms": 900.0,
        "slices": 176,
        "voxel_mm": (1.0, 1.0, 1.0),
        "box": box((256, 256, 176), SAGITTAL),
    }
    return replace(_T2, **(made | changes))
