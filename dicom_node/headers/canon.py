"""Canon and Toshiba, classic and enhanced (DICOM.md §3.2)."""

from __future__ import annotations

import re

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.public import Diffusion, Plane, PublicReader, settle

_CREATORS = ("CANON_MEC_MR3", "TOSHIBA_MEC_MR3")
_B_IN_COMMENT = re.compile(r"\bb=(\d+(?:\.\d+)?)")


class CanonReader(PublicReader):
    """b = 0 images carry no b-value at all; releases before 6.1 write the others as a comment."""

    def diffusion(self, header: Header, plane: Plane | None) -> Diffusion:
        public = super().diffusion(header, plane)
        comment = _B_IN_COMMENT.search(header.text(tags.IMAGE_COMMENTS))
        if public.b_value is not None or comment is None:
            return public
        # the comment's direction is in the frame of the image, and its conversion is not validated
        return settle(float(comment.group(1)), None, "", "Canon ImageComments (0020,4000)")

    def gradient_nonlinearity(self, header: Header, image_type: tuple[str, ...]) -> str:
        if "GDC" not in image_type:
            return super().gradient_nonlinearity(header, image_type)
        three_d = any("3D" in header.private_text(0x700D, creator, 0x20).upper() for creator in _CREATORS)
        return "DIS3D" if three_d else "DIS2D"
