"""Siemens: V (VB to VE, CSA headers, mosaics) and XA (private group 0021)"""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

with warnings.catch_warnings():  # nibabel calls its DICOM readers experimental; only the CSA parser is used
    warnings.simplefilter("ignore")
    from nibabel.nicom import csareader

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.problems import GeometryProblem
from dicom_node.headers.public import Diffusion, Picture, Plane, PublicReader, Readout, Tiling, settle, three
from dicom_node.headers.space import combine, dot, unit
from rules.facts import Directionality, PhaseAxis, Vec3

MR = "SIEMENS MR HEADER"
CSA = "SIEMENS CSA HEADER"
XA_IMAGE = "SIEMENS MR SDI 02"

_B_IN_NAME = re.compile(r"\*?[a-z]+_b(\d+)(?:#\d+|t)?")
_MATRIX = re.compile(r"\d+p\*(\d+)")  # AcquisitionMatrixText: lines of phase encoding, then of readout
_EPI_SEQUENCES = ("ep2d", "ep_b", "epse", "epfid", "re_b")


class SiemensReader(PublicReader):
    """Both lines in one reader: a PACS may have stripped either's elements."""

    def diffusion(self, header: Header, plane: Plane | None) -> Diffusion:
        public = super().diffusion(header, plane)
        b_value, source = public.b_value, public.source
        if not b_value:  # public wins unless it is missing, or 0 where the private one is not
            for found, origin in (
                (header.private_number(0x0019, MR, 0x0C, "IS"), "Siemens (0019,100C)"),
                (_first(_csa_numbers(header, "B_value")), "Siemens CSA B_value"),
                (_b_of_name(header.text(tags.SEQUENCE_NAME)), "SequenceName (0018,0024)"),
            ):
                if found or (found is not None and b_value is None):
                    b_value, source = found, origin
                    break
        return settle(
            b_value=b_value,
            vector=three(header.numbers(tags.DIFFUSION_GRADIENT_ORIENTATION))
            or three(header.private_numbers(0x0019, MR, 0x0E, "FD"))
            or three(_csa_numbers(header, "DiffusionGradientDirection")),
            named=self._directionality(header),
            source=source,
        )

    def _directionality(self, header: Header) -> str:
        if "TRACEW" in header.tokens(
            tags.IMAGE_TYPE
        ):  # some releases copy one direction into the trace image
            return Directionality.ISOTROPIC.value
        return header.text(tags.DIFFUSION_DIRECTIONALITY) or header.private_text(0x0019, MR, 0x0D)

    def polarity(self, header: Header) -> tuple[bool | None, str]:
        positive = header.private_number(0x0021, XA_IMAGE, 0x1C, "IS")
        source = "Siemens XA (0021,111C)"
        if positive is None:
            positive = _first(_csa_numbers(header, "PhaseEncodingDirectionPositive"))
            source = "Siemens CSA PhaseEncodingDirectionPositive"
        return (None, "") if positive is None else (positive == 1, source)

    def readout(self, header: Header, lines: int) -> Readout | None:
        hertz = (
            header.private_number(0x0021, XA_IMAGE, 0x53, "FD")
            or header.private_number(0x0019, MR, 0x28, "FD")
            or _first(_csa_numbers(header, "BandwidthPerPixelPhaseEncode"))
        )
        return Readout((lines - 1) / (hertz * lines)) if hertz and lines > 1 else None

    def echo_planar(self, header: Header) -> bool | None:
        name = self.sequence_name(header).lower()
        if any(part in name for part in _EPI_SEQUENCES):
            return True
        return super().echo_planar(header)

    def extra_image_type(self, header: Header) -> tuple[str, ...]:
        return tuple(token.upper() for token in header.private_texts(0x0021, XA_IMAGE, 0x75))

    def prescan_normalised(self, header: Header, image_type: tuple[str, ...]) -> bool | None:
        return "NORM" in image_type if image_type else None

    def tiling(
        self,
        header: Header,
        image_type: tuple[str, ...],
        plane: Plane | None,
        picture: Picture = lambda: None,
    ) -> Tiling | None:
        count = int(header.private_number(0x0019, MR, 0x0A, "US") or 0)
        if "MOSAIC" not in image_type and count < 2:
            return None
        count = count or int(_first(_csa_numbers(header, "NumberOfImagesInMosaic")) or 0)
        count = count or self._count_in_picture(header, picture)
        origin = three(header.numbers(tags.IMAGE_POSITION_PATIENT))
        spacing = header.numbers(tags.PIXEL_SPACING)
        step_mm = header.number(tags.SPACING_BETWEEN_SLICES)
        if plane is None or origin is None or len(spacing) != 2 or not step_mm:
            raise GeometryProblem("The mosaic has no position, orientation, pixel spacing or slice distance.")
        rows, columns = header.integer(tags.ROWS) or 0, header.integer(tags.COLUMNS) or 0
        across = math.ceil(math.sqrt(count))
        if rows % across or columns % across:
            raise GeometryProblem(
                f"A mosaic of {columns} × {rows} cannot hold {across} × {across} equal tiles."
            )
        # (0020,0032) is the corner of a single slice as large as the whole mosaic
        first = combine(
            (1.0, origin),
            (spacing[1] * (columns - columns // across) / 2, plane.row),
            (spacing[0] * (rows - rows // across) / 2, plane.column),
        )
        normal = self._slice_normal(header, plane)
        positions = tuple(combine((1.0, first), (k * abs(step_mm), normal)) for k in range(count))
        return Tiling(rows // across, columns // across, across, positions)

    def _count_in_picture(self, header: Header, picture: Picture) -> int:
        """How many slices a mosaic holds whose header lost the number, as de-identification does.

        The size of a tile follows from the matrix that was acquired, AcquisitionMatrixText and
        PercentPhaseFieldOfView; the tiles behind the last slice hold nothing but zeros, which no measured
        slice does. Raises GeometryProblem where these do not agree on one square of tiles.
        """
        rows, columns = header.integer(tags.ROWS) or 0, header.integer(tags.COLUMNS) or 0
        tile = self._acquired_tile(header)
        if tile is not None and columns > tile[1] and not rows % tile[0] and not columns % tile[1]:
            down, across = rows // tile[0], columns // tile[1]
            stored = picture() if down == across else None
            count = 0 if stored is None else _last_tile_in_use(stored, tile)
            if count > (across - 1) ** 2:  # fewer slices would lie in a smaller square
                return count
        raise GeometryProblem(
            "The mosaic does not say how many slices it holds: its CSA header and (0019,100A) were removed, "
            "as de-identification does, and what is left does not prove its layout; send the original images."
        )

    def _acquired_tile(self, header: Header) -> tuple[int, int] | None:
        """(rows, columns) of one slice, from the acquired matrix; None where the header does not tell."""
        text = _MATRIX.fullmatch(header.private_text(0x0051, MR, 0x0B))
        phase_percent = header.number(tags.PERCENT_PHASE_FIELD_OF_VIEW)
        encoding = self.phase_encoding(header)
        if text is None or not phase_percent or encoding is None:
            return None
        readout = int(text.group(1))
        phase = round(readout * phase_percent / 100)
        return (phase, readout) if encoding.axis is PhaseAxis.COLUMN else (readout, phase)

    def _slice_normal(self, header: Header, plane: Plane) -> Vec3:
        """The direction in which tiles are stacked: along row × column, or against it."""
        written = three(_csa_numbers(header, "SliceNormalVector"))
        normal = None if written is None else unit(written)
        if normal is not None and abs(dot(normal, plane.normal)) > 0.99:
            sign = 1.0 if dot(normal, plane.normal) > 0 else -1.0
            return combine((sign, plane.normal))
        if abs(plane.normal[2]) > 0.7:  # transverse slices are stacked along row × column
            return plane.normal
        raise GeometryProblem(
            "The mosaic does not say in which order its slices lie: its CSA header was removed; "
            "send the original images."
        )


def _last_tile_in_use(picture: npt.NDArray[np.generic], tile: tuple[int, int]) -> int:
    """The number of tiles up to the last one that holds anything, row by row."""
    rows, columns = tile
    down, across = picture.shape[0] // rows, picture.shape[1] // columns
    filled = picture.reshape(down, rows, across, columns).any(axis=(1, 3)).ravel()
    return 1 + int(np.flatnonzero(filled)[-1]) if filled.any() else 0


def _b_of_name(sequence: str) -> float | None:
    """The b-value in names like `*ep_b1000#12` and `ep_b50t`: all that is left without private elements."""
    named = _B_IN_NAME.fullmatch(sequence.strip().lower())
    return float(named.group(1)) if named else None


def _first(values: tuple[float, ...]) -> float | None:
    return values[0] if values else None


def _csa_numbers(header: Header, name: str) -> tuple[float, ...]:
    data = header.private_bytes(0x0029, CSA, 0x10)
    return _read_csa(data).get(name, ()) if data else ()


@lru_cache(maxsize=8)
def _read_csa(data: bytes) -> Mapping[str, tuple[float, ...]]:
    """The numeric fields of a CSA image header; empty when it is damaged."""
    try:
        fields = csareader.read(data)["tags"]
    except (csareader.CSAError, struct.error, ValueError, KeyError, IndexError, UnicodeError):
        return {}
    wanted = (
        "B_value",
        "DiffusionGradientDirection",
        "PhaseEncodingDirectionPositive",
        "BandwidthPerPixelPhaseEncode",
        "NumberOfImagesInMosaic",
        "SliceNormalVector",
    )
    numbers = {}
    for name in wanted:
        items = fields.get(name, {}).get("items", [])
        if items and all(isinstance(item, int | float) for item in items):
            numbers[name] = tuple(float(item) for item in items)
    return numbers
