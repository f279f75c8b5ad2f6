"""What one file, one slice and one volume say, as frozen values.

Lengths are millimetres, points and directions are patient LPS, times are naive scanner time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_node.headers.stored import StoredPixels
from rules.facts import Directionality, SeriesFacts, Vec3

# ImageType values of maps that scanners append to a diffusion series
_MAPS = frozenset({"ADC", "ADC_UNSPECIFIED", "EADC", "EXP", "EXPONENTIAL", "FA", "RA", "VR", "MD", "TENSOR"})


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """One 2-D slice: a classic instance, a frame of a multi-frame object, or a tile of a mosaic."""

    sop_instance_uid: str
    path: Path
    frame: int | None = None  # 0-based frame of a multi-frame object
    tile: int | None = None  # 0-based tile of a mosaic, row by row

    # geometry
    rows: int = 0  # of this slice: a tile's, in a mosaic
    columns: int = 0
    position_mm: Vec3 | None = None  # centre of the first voxel
    row: Vec3 | None = None  # unit vector along increasing column index
    column: Vec3 | None = None  # unit vector along increasing row index
    spacing_mm: tuple[float, float] | None = None  # (between rows, between columns), as PixelSpacing
    thickness_mm: float | None = None

    # diffusion
    b_value: float | None = None  # s/mm²
    b_source: str = ""
    direction: Vec3 | None = None  # unit vector; None: none, unknown or not validated for this vendor
    directionality: Directionality = Directionality.UNKNOWN

    # what makes it a slice of one volume and not of another
    image_type: tuple[str, ...] = ()
    echo_time_ms: float | None = None
    component: str = ""  # MAGNITUDE | PHASE | REAL | IMAGINARY
    instance_number: int | None = None
    acquisition_number: int | None = None
    temporal_position: int | None = None
    volume_order: tuple[float, ...] = ()  # the vendor's own index of the volume
    acquired: datetime | None = None

    # stored value × slope + intercept = real-world value
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_map(self) -> bool:
        """Computed from measured images: no weighting of its own, whatever b-value it carries."""
        return not _MAPS.isdisjoint(self.image_type)

    @property
    def normal(self) -> Vec3 | None:
        """row × column: the direction in which slices are stacked."""
        if self.row is None or self.column is None:
            return None
        (a, b, c), (d, e, f) = self.row, self.column
        return (b * f - c * e, c * d - a * f, a * e - b * d)


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """Everything of one file that anyone needs later; the file's header is read only once."""

    path: Path
    sop_instance_uid: str
    transfer_syntax_uid: str
    instance_number: int | None
    series: SeriesFacts  # what this instance alone says about its series
    frames: tuple[FrameFacts, ...] = field(repr=False, default=())  # empty: not an image
    problem: str = ""  # why its slices cannot be located, one sentence
    stored: StoredPixels | None = None  # where its pixels lie; None: compressed, or an unusual form

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID (0020,000E)."""
        return self.series.series_uid

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID (0020,000D)."""
        return self.series.study_uid

    @property
    def sop_class_uid(self) -> str:
        """SOPClassUID (0008,0016)."""
        return self.series.sop_class_uid


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One 3-D stack of one b-value, direction, echo, component and repeat."""

    frames: tuple[FrameFacts, ...] = field(repr=False)  # along row × column
    b_value: float | None = None
    direction: Vec3 | None = None
    directionality: Directionality = Directionality.UNKNOWN
    echo_time_ms: float | None = None
    component: str = ""
    image_type: tuple[str, ...] = ()
    acquired: datetime | None = None  # of its earliest slice


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A series as volumes on one grid, in acquisition order."""

    volumes: tuple[VolumeFacts, ...]
    affine: npt.NDArray[np.float64]  # (4, 4): voxel (x, y, z, 1) to LPS mm, x the column, y the row index
    shape: tuple[int, int, int]  # (Z, Y, X)
