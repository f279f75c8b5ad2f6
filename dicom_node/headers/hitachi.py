"""Hitachi and Fujifilm: public elements only."""

from __future__ import annotations

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.public import PublicReader


class HitachiReader(PublicReader):
    """Nothing private is needed."""

    def echo_planar(self, header: Header) -> bool | None:
        """Old releases call a diffusion EPI just SE: with a b-value, SE proves nothing."""
        told = super().echo_planar(header)
        return None if told is False and header.number(tags.DIFFUSION_B_VALUE) else told
