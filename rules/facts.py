"""What the header of a series says, as frozen values: the vocabulary between headers and rules.

Lengths are millimetres and points are patient LPS. `None` and empty tuples mean "the header does not
say"; nothing here is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

Vec3 = tuple[float, float, float]


class Vendor(StrEnum):
    """Who built the scanner, by prefix of Manufacturer (0008,0070)."""

    SIEMENS = "siemens"
    GE = "ge"
    PHILIPS = "philips"
    CANON = "canon"
    UIH = "uih"
    HITACHI = "hitachi"
    OTHER = "other"


class Directionality(StrEnum):
    """DiffusionDirectionality (0018,9075) of one volume; UNKNOWN when nothing in the header tells."""

    DIRECTIONAL = "DIRECTIONAL"
    BMATRIX = "BMATRIX"
    ISOTROPIC = "ISOTROPIC"
    NONE = "NONE"
    UNKNOWN = ""


class PhaseAxis(StrEnum):
    """InPlanePhaseEncodingDirection (0018,1312): ROW is along the rows of the image (increasing column
    index, the first three numbers of ImageOrientationPatient), COLUMN is along its columns."""

    ROW = "ROW"
    COLUMN = "COLUMN"


@dataclass(frozen=True, slots=True)
class PhaseEncoding:
    """Phase-encode axis and polarity, in terms of the stored pixel matrix.

    `increasing`: True when phase encoding runs along the increasing pixel index of the axis (Siemens
    PhaseEncodingDirectionPositive = 1), False against it, None when the header does not say.
    `source` names the attribute that said so.
    """

    axis: PhaseAxis
    increasing: bool | None
    source: str

    @property
    def voxel_axis(self) -> str:
        """`i` or `j` of the stored matrix (i: column index, j: row index), `-` when decreasing."""
        letter = "i" if self.axis is PhaseAxis.ROW else "j"
        return letter + ("-" if self.increasing is False else "")

    @property
    def bids(self) -> str:
        """PhaseEncodingDirection as dcm2niix writes it: NIfTI rows run against DICOM rows, so j flips."""
        if self.axis is PhaseAxis.ROW:
            return "i-" if self.increasing is False else "i"
        return "j-" if self.increasing is True else "j"


@dataclass(frozen=True, slots=True)
class Box:
    """The oriented box that a stack of slices fills, to the outer faces of its voxels."""

    centre: Vec3
    axes: tuple[Vec3, Vec3, Vec3]  # unit vectors: along a row, along a column, along the stack (row × column)
    extent_mm: Vec3  # full edge lengths along those axes


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series as its headers describe it, read once."""

    # identity
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str | None = None
    patient_key: str = ""  # PatientID and IssuerOfPatientID; compared, never logged or shown
    mixed_patients: bool = False  # its own images do not agree on the patient
    series_number: int | None = None
    modality: str = ""
    sop_class_uid: str = ""
    instances: int = 0
    unreadable: int = 0  # files that are, or may be, of this series and could not be read

    # text, for people and as the last resort of a rule
    description: str = ""
    protocol_name: str = ""
    sequence_name: str = ""

    # equipment and session
    vendor: Vendor = Vendor.OTHER
    manufacturer: str = ""
    model: str = ""
    software: str = ""
    station: str = ""  # DeviceSerialNumber, else StationName
    acquired: datetime | None = None  # first acquisition time of the series
    acquisition_number: int | None = None
    patient_position: str = ""
    body_part: str = ""  # BodyPartExamined (0018,0015), upper case

    # kind of image
    image_type: tuple[str, ...] = ()  # upper case, with the tokens of vendor image-type text appended
    scanning_sequence: tuple[str, ...] = ()
    sequence_variant: tuple[str, ...] = ()
    scan_options: tuple[str, ...] = ()
    acquisition_type: str = ""  # 2D | 3D
    echo_planar: bool | None = None
    epi_factor: int | None = None
    echo_times_ms: tuple[float, ...] = ()  # the distinct ones, ascending
    repetition_time_ms: float | None = None
    inversion_time_ms: float | None = None
    contrast_agent: bool = False
    fat_suppressed: bool = False
    angio: bool = False
    colour: bool = False  # three samples a pixel
    complex_components: tuple[str, ...] = ()  # of MAGNITUDE, PHASE, REAL, IMAGINARY; empty: unknown
    anisotropy_map: bool = False  # DiffusionAnisotropyType present
    rescale_type: str = ""
    gradient_nonlinearity: str = ""  # ND | DIS2D | DIS3D; empty: unknown
    prescan_normalised: bool | None = None
    own_output: str = ""  # the evidence that this node made it; empty: none

    # geometry
    rows: int = 0
    columns: int = 0
    slices: int = 0  # distinct positions in one volume
    orientations: int = 0  # distinct slice normals
    voxel_mm: Vec3 | None = None  # column spacing, row spacing, slice step
    box: Box | None = None
    mosaic_tiles: int = 0  # slices in one mosaic picture; 0: no mosaic
    geometry_problem: str = ""  # why volumes cannot be built from this series; empty: they can
    incomplete: bool = False  # the geometry problem is that slices are missing: they may still arrive

    # diffusion, one entry a volume in acquisition order
    b_values: tuple[float | None, ...] = ()  # s/mm²; None: this volume carries none
    b_source: str = ""  # the attribute that gave them
    directionalities: tuple[Directionality, ...] = ()

    # distortion
    phase_encoding: PhaseEncoding | None = None
    total_readout_s: float | None = None  # FSL definition: effective echo spacing × (reconstructed lines − 1)
    readout_estimated: bool = False
