"""Canon and Toshiba, classic and enhanced."""

from __future__ import annotations

import re

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.public import Diffusion, Plane, PublicReader, settle, three
from dicom_node.headers.space import combine, norm
from rules.facts import PhaseAxis, Vec3

_CREATORS = ("CANON_MEC_MR3", "TOSHIBA_MEC_MR3")
_NUMBER = r"([+-]?\d+(?:\.\d+)?)"
_COMMENT = re.compile(rf"\bb={_NUMBER}(?:\({_NUMBER},{_NUMBER},{_NUMBER}\))?")


class CanonReader(PublicReader):
    """b = 0 images carry no b-value at all; releases before 6.1 write the direction as a comment."""

    def diffusion(self, header: Header, plane: Plane | None) -> Diffusion:
        public = super().diffusion(header, plane)
        comment = _COMMENT.search(header.text(tags.IMAGE_COMMENTS))
        if comment is None or three(header.numbers(tags.DIFFUSION_GRADIENT_ORIENTATION)):
            return public
        b_value, source = public.b_value, public.source
        if b_value is None:
            b_value, source = float(comment.group(1)), "Canon ImageComments (0020,4000)"
        named = header.text(tags.DIFFUSION_DIRECTIONALITY)
        return settle(b_value, self._to_patient(header, comment, plane), named, source)

    def _to_patient(self, header: Header, comment: re.Match[str], plane: Plane | None) -> Vec3 | None:
        """The gradient of `b=1000(y,x,z)`, written in the frame of the image, in patient LPS.

        Only where its conversion has been compared with dcm2niix: head first supine, transverse, phase
        encoding along columns. The overall sign, which weights nothing, is dcm2niix's.
        """
        if comment.group(2) is None:
            return None
        along_column, along_row, through = (float(comment.group(n)) for n in (2, 3, 4))
        if norm((along_column, along_row, through)) == 0:
            return (0.0, 0.0, 0.0)  # a trace image, in any frame
        encoding = self.phase_encoding(header)
        if plane is None or encoding is None or encoding.axis is not PhaseAxis.COLUMN:
            return None
        if header.text(tags.PATIENT_POSITION).upper() != "HFS" or abs(plane.normal[2]) < 0.7:
            return None
        return combine((-along_row, plane.row), (-along_column, plane.column), (through, plane.normal))

    def gradient_nonlinearity(self, header: Header, image_type: tuple[str, ...]) -> str:
        if "GDC" not in image_type:
            return super().gradient_nonlinearity(header, image_type)
        three_d = any("3D" in header.private_text(0x700D, creator, 0x20).upper() for creator in _CREATORS)
        return "DIS3D" if three_d else "DIS2D"
