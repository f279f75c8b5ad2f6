"""GE, classic."""

from __future__ import annotations

import math

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.public import Diffusion, Plane, PublicReader, Readout, settle, three
from dicom_node.headers.space import combine, norm
from rules.facts import Directionality, PhaseAxis, Vec3

ACQUISITION = "GEMS_ACQU_01"
RELATION = "GEMS_RELA_01"
PARAMETERS = "GEMS_PARM_01"

_B_VALUE_OFFSET = 1_000_000_000  # GE marks computed gradients by adding it to (0043,1039)
_T2, _TRACE = 14, 19  # (0043,1030) Vas collapse flag
_TENSOR = 16  # (0021,105A) diffusion direction
_COMPONENTS = {0: "MAGNITUDE", 1: "PHASE", 2: "REAL", 3: "IMAGINARY"}


class GeReader(PublicReader):
    """b-values in a private list, gradients in the frame of the image."""

    def diffusion(self, header: Header, plane: Plane | None) -> Diffusion:
        public = super().diffusion(header, plane)
        b_value, source = public.b_value, public.source
        private = header.private_number(0x0043, PARAMETERS, 0x39, "IS")
        if private is not None and (b_value is None or (not b_value and private % _B_VALUE_OFFSET)):
            b_value, source = private % _B_VALUE_OFFSET, "GE (0043,1039)"
        vector = self._image_frame_vector(header)
        length = 0.0 if vector is None else norm(vector)
        kind = header.private_number(0x0043, PARAMETERS, 0x30, "SS")
        tensor = header.private_number(0x0021, RELATION, 0x5A, "SL") == _TENSOR
        if kind == _T2 or (tensor and kind != _TRACE and vector is not None and length < 1e-6):
            # before 29.1 the b = 0 images of a tensor scan carry the nominal b-value and no gradient
            return settle(0.0 if b_value is not None else None, None, Directionality.NONE.value, source)
        if b_value and 0.03 < length < 0.97:
            b_value = 5.0 * round(b_value * length**2 / 5.0)  # shorter gradients mean smaller b-values
        directionality = ""
        if b_value and kind == _TRACE:
            directionality = Directionality.ISOTROPIC.value
        elif b_value and length >= 0.03:
            directionality = Directionality.DIRECTIONAL.value
        return settle(b_value, self._to_patient(header, vector, plane), directionality, source)

    def _image_frame_vector(self, header: Header) -> Vec3 | None:
        """Gradient along frequency, phase and slice."""
        values = [header.private_number(0x0019, ACQUISITION, offset, "DS") for offset in (0xBB, 0xBC, 0xBD)]
        return three(tuple(value for value in values if value is not None))

    def _to_patient(self, header: Header, vector: Vec3 | None, plane: Plane | None) -> Vec3 | None:
        """The gradient in patient LPS where that conversion has been validated, else None.

        Validated against dcm2niix: head first supine, transverse, phase encoding along columns.
        """
        encoding = self.phase_encoding(header)
        if vector is None or plane is None or encoding is None or norm(vector) < 1e-6:
            return None
        if header.text(tags.PATIENT_POSITION).upper() != "HFS" or abs(plane.normal[2]) < 0.7:
            return None
        if encoding.axis is not PhaseAxis.COLUMN:
            return None
        frequency, phase, through = vector  # a gradient and its opposite weight alike: the sign is dcm2niix's
        return combine((-frequency, plane.row), (-phase, plane.column), (through, plane.normal))

    def polarity(self, header: Header) -> tuple[bool | None, str]:
        order = header.text(tags.RECTILINEAR_PHASE_ENCODE_REORDERING).upper()
        if order not in {"LINEAR", "REVERSE_LINEAR"} or not self.echo_planar(header):
            return None, ""
        return order == "REVERSE_LINEAR", "GE RectilinearPhaseEncodeReordering (0018,9034)"

    def readout(self, header: Header, lines: int) -> Readout | None:
        """(0043,102C) is the physical echo spacing, acceleration and partial Fourier undone here."""
        spacing_us = header.private_number(0x0043, PARAMETERS, 0x2C, "SS")
        acquired = _acquired_lines(header)
        inverse_acceleration = header.private_number(0x0043, PARAMETERS, 0x83, "DS") or 1.0
        if not spacing_us or acquired < 2 or lines < 2 or not 0 < inverse_acceleration <= 1:
            return None
        options = header.tokens(tags.SCAN_OPTIONS)
        block = 4 if any("PFF" in option for option in options) else 2
        played = math.ceil(acquired * inverse_acceleration / block) * block
        effective_s = (played - 1) * spacing_us * 1e-6 / (acquired - 1)
        return Readout(effective_s * (lines - 1))

    def echo_planar(self, header: Header) -> bool | None:
        if "epi" in self.sequence_name(header).lower() or "EPI_GEMS" in header.tokens(tags.SCAN_OPTIONS):
            return True
        return super().echo_planar(header)

    def sequence_name(self, header: Header) -> str:
        return (
            super().sequence_name(header)
            or header.private_text(0x0019, ACQUISITION, 0x9C)
            or header.private_text(0x0019, ACQUISITION, 0x9E)
        )

    def component(self, header: Header, image_type: tuple[str, ...]) -> str:
        code = header.private_number(0x0043, PARAMETERS, 0x2F, "SS")
        return super().component(header, image_type) or (
            "" if code is None else _COMPONENTS.get(int(code), "")
        )


def _acquired_lines(header: Header) -> int:
    """Phase-encode lines of AcquisitionMatrix (0018,1310): frequency rows\\cols\\phase rows\\cols."""
    matrix = header.numbers(tags.ACQUISITION_MATRIX)
    return int(matrix[2] or matrix[3]) if len(matrix) == 4 else 0
