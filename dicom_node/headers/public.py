"""What the public elements say; the vendors' readers start from this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.space import unit
from rules.facts import Directionality, PhaseAxis, PhaseEncoding, Vec3

NO_DIFFUSION_BELOW = 1.0  # s/mm²: scanners number their b = 0 volumes 0, 0.001, 0.002 …
TRACE_ABOVE = 50.0  # s/mm²: a zero vector below this is a b = 0 with its imaging gradients (UIH: 1.25)
_AXES = {"ROW": PhaseAxis.ROW, "COL": PhaseAxis.COLUMN, "COLUMN": PhaseAxis.COLUMN}


@dataclass(frozen=True, slots=True)
class Plane:
    """Orientation of one slice in patient LPS: unit vectors along a row and a column, and their product."""

    row: Vec3
    column: Vec3
    normal: Vec3


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Diffusion weighting of one slice; `direction` is a unit vector in patient LPS."""

    b_value: float | None = None  # s/mm²
    direction: Vec3 | None = None
    directionality: Directionality = Directionality.UNKNOWN
    source: str = ""  # the attribute that gave b_value


@dataclass(frozen=True, slots=True)
class Readout:
    """Total readout time as FSL defines it: effective echo spacing × (reconstructed lines − 1)."""

    seconds: float
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the slices of one mosaic picture lie: tiles row by row, in slice order."""

    rows: int  # of one tile
    columns: int
    tiles_across: int
    positions_mm: tuple[Vec3, ...]  # centre of the first voxel of each slice


Picture = Callable[[], npt.NDArray[np.generic] | None]  # (rows, columns); None: only a decoder can tell


class PublicReader:
    """Quantities that vendors keep in different places. Each method answers from the public elements."""

    def diffusion(self, header: Header, plane: Plane | None) -> Diffusion:
        """b-value and direction of one slice or frame."""
        return settle(
            b_value=header.number(tags.DIFFUSION_B_VALUE),
            vector=three(header.numbers(tags.DIFFUSION_GRADIENT_ORIENTATION)),
            named=header.text(tags.DIFFUSION_DIRECTIONALITY),
            source="DiffusionBValue (0018,9087)",
        )

    def phase_encoding(self, header: Header) -> PhaseEncoding | None:
        """Phase-encode axis, and polarity where the vendor writes it."""
        axis = _AXES.get(header.text(tags.IN_PLANE_PHASE_ENCODING_DIRECTION).upper())
        if axis is None:
            return None
        increasing, source = self.polarity(header)
        return PhaseEncoding(axis, increasing, source or "InPlanePhaseEncodingDirection (0018,1312)")

    def polarity(self, header: Header) -> tuple[bool | None, str]:
        """Whether phase encoding runs along the increasing index, and the attribute that says so."""
        return None, ""

    def readout(self, header: Header, lines: int) -> Readout | None:
        """Total readout time of an EPI with `lines` reconstructed phase-encode lines."""
        return None

    def echo_planar(self, header: Header) -> bool | None:
        """Whether the image was read out by EPI; None when nothing tells."""
        sequence = header.tokens(tags.SCANNING_SEQUENCE)
        named = header.text(tags.ECHO_PLANAR_PULSE_SEQUENCE).upper()
        if "EP" in sequence or named == "YES":
            return True
        return False if sequence or named == "NO" else None

    def epi_factor(self, header: Header) -> int | None:
        """Gradient echoes in one readout train."""
        return header.integer(tags.GRADIENT_ECHO_TRAIN_LENGTH) or None

    def sequence_name(self, header: Header) -> str:
        """The pulse sequence as the scanner calls it."""
        return header.text(tags.SEQUENCE_NAME) or header.text(tags.PULSE_SEQUENCE_NAME)

    def extra_image_type(self, header: Header) -> tuple[str, ...]:
        """Image-type tokens that the vendor keeps outside ImageType, upper case."""
        return ()

    def component(self, header: Header, image_type: tuple[str, ...]) -> str:
        """MAGNITUDE, PHASE, REAL, IMAGINARY, or nothing."""
        named = header.text(tags.COMPLEX_IMAGE_COMPONENT).upper()
        if named in _COMPONENTS:
            return named
        for token in image_type[2:]:
            if token in _COMPONENT_TOKENS:
                return _COMPONENT_TOKENS[token]
        return ""

    def fat_suppressed(self, header: Header) -> bool:
        """Spectrally selective suppression of fat."""
        options = {option.removesuffix("_GEMS") for option in header.tokens(tags.SCAN_OPTIONS)}
        selective = header.text(tags.SPECTRALLY_SELECTED_SUPPRESSION).upper()
        return selective in {"FAT", "FAT_AND_WATER"} or bool(options & _FAT_SATURATION)

    def gradient_nonlinearity(self, header: Header, image_type: tuple[str, ...]) -> str:
        """ND (not corrected), DIS2D, DIS3D, or nothing."""
        return next((token for token in ("DIS3D", "DIS2D", "ND") if token in image_type), "")

    def prescan_normalised(self, header: Header, image_type: tuple[str, ...]) -> bool | None:
        """Whether the receive profile was divided out."""
        return True if "NORM" in image_type else None

    def volume_order(self, header: Header) -> tuple[float, ...]:
        """The vendor's own index of the volume that this slice belongs to."""
        return ()

    def tiling(
        self,
        header: Header,
        image_type: tuple[str, ...],
        plane: Plane | None,
        picture: Picture = lambda: None,
    ) -> Tiling | None:
        """The layout of a mosaic; None for an ordinary picture.

        picture: reads the stored values, for a header that lost the number of slices.
        Raises GeometryProblem when it is a mosaic whose layout is not in the header.
        """
        return None


_FAT_SATURATION = {"FS", "SFS", "SPIR", "SPAIR", "FATSAT", "FAT_SAT"}
_COMPONENTS = {"MAGNITUDE", "PHASE", "REAL", "IMAGINARY"}
_COMPONENT_TOKENS = {
    "M": "MAGNITUDE",
    "P": "PHASE",
    "R": "REAL",
    "I": "IMAGINARY",
    "MAGNITUDE": "MAGNITUDE",
    "PHASE": "PHASE",
    "PHASE MAP": "PHASE",
    "REAL": "REAL",
    "IMAGINARY": "IMAGINARY",
}


def three(values: tuple[float, ...]) -> Vec3 | None:
    """Exactly three numbers, or None."""
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def settle(b_value: float | None, vector: Vec3 | None, named: str, source: str) -> Diffusion:
    """One answer from what an image says about its diffusion weighting.

    vector: gradient in patient LPS, any length; zero for an isotropic image.
    named: DiffusionDirectionality as the vendor writes it.
    A weighting too small to see has no direction, whatever vector stands beside it (Philips writes one).
    """
    known = {item.value: item for item in Directionality if item.value}
    directionality = known.get(named.strip().upper(), Directionality.UNKNOWN)
    direction = None if vector is None else unit(vector)
    if b_value is None:
        return Diffusion(None, None, directionality, "")
    if b_value < NO_DIFFUSION_BELOW:
        return Diffusion(b_value, None, Directionality.NONE, source)
    if directionality in (Directionality.ISOTROPIC, Directionality.NONE):
        direction = None
    elif directionality is Directionality.UNKNOWN and vector is not None:
        without = Directionality.ISOTROPIC if b_value > TRACE_ABOVE else Directionality.NONE
        directionality = Directionality.DIRECTIONAL if direction else without
    return Diffusion(b_value, direction, directionality, source)
