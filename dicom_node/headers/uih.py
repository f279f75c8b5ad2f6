"""United Imaging (UIH): grids of slices marked VFRAME, private group 0065."""

from __future__ import annotations

import math

from dicom_node.headers import tags
from dicom_node.headers.elements import Header, Layer
from dicom_node.headers.problems import GeometryProblem
from dicom_node.headers.public import Diffusion, Picture, Plane, PublicReader, Readout, Tiling, settle, three
from dicom_node.headers.space import combine
from rules.facts import Vec3

IMAGE = "Image Private Header"
MR = "SIEMENS MR HEADER"


class UihReader(PublicReader):
    """The public gradient holds the unrotated direction, so the private one is read first."""

    def diffusion(self, header: Header, plane: Plane | None) -> Diffusion:
        b_value, source = header.private_number(0x0065, IMAGE, 0x09, "FD"), "UIH (0065,1009)"
        if b_value is None:
            b_value, source = header.number(tags.DIFFUSION_B_VALUE), "DiffusionBValue (0018,9087)"
        in_image = three(header.private_numbers(0x0065, IMAGE, 0x37, "FD"))
        vector = None
        if in_image is not None and plane is not None:
            along_row, along_column, through = in_image
            vector = combine((along_row, plane.row), (along_column, plane.column), (through, plane.normal))
        return settle(b_value, vector, header.text(tags.DIFFUSION_DIRECTIONALITY), source)

    def polarity(self, header: Header) -> tuple[bool | None, str]:
        flipped = header.private_number(0x0065, IMAGE, 0x58, "IS")
        return (None, "") if flipped is None else (flipped == 0, "UIH (0065,1058)")

    def readout(self, header: Header, lines: int) -> Readout | None:
        """From the bandwidth where it is written; else the duration of one slice's readout, an estimate."""
        hertz = header.private_number(0x0019, MR, 0x28, "FD")
        if hertz and lines > 1:
            return Readout((lines - 1) / (hertz * lines))
        slices = header.private_items(0x0065, IMAGE, 0x51)
        milliseconds = Header([Layer(slices[0])]).number(tags.ACQUISITION_DURATION) if slices else None
        return Readout(milliseconds / 1000, estimated=True) if milliseconds else None

    def tiling(
        self,
        header: Header,
        image_type: tuple[str, ...],
        plane: Plane | None,
        picture: Picture = lambda: None,
    ) -> Tiling | None:
        if "VFRAME" not in image_type:
            return None
        slices = header.private_items(0x0065, IMAGE, 0x51)
        count = len(slices)
        rows, columns = header.integer(tags.ROWS) or 0, header.integer(tags.COLUMNS) or 0
        positions: list[Vec3] = []
        for item in slices:
            position = three(Header([Layer(item)]).numbers(tags.IMAGE_POSITION_PATIENT))
            if position is not None:
                positions.append(position)
        if not count or len(positions) != count:
            raise GeometryProblem("The grid of slices does not say where they lie: (0065,1051) is missing.")
        across = math.ceil(math.sqrt(count))
        down = math.ceil(count / across)
        if rows % down or columns % across:
            raise GeometryProblem(f"A grid of {columns} × {rows} cannot hold {across} × {down} equal tiles.")
        return Tiling(rows // down, columns // across, across, tuple(positions))
