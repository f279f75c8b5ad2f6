"""Where the pixels of an uncompressed file lie, noted while its header is read: nobody parses it again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.headers import tags
from dicom_node.headers.elements import Header
from dicom_node.headers.problems import Unreadable

_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_LONG_FORM = (b"OW", b"OB")  # explicit VR: two reserved bytes, then the length in four
_UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """Uncompressed pixels: frame n begins at `offset + n × frame_bytes`, row by row."""

    offset: int
    rows: int
    columns: int
    frames: int
    dtype: str  # of numpy, such as <u2
    unused_bits: int = 0  # above BitsStored; what stands there is no part of the value

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.rows * self.columns * int(self.dtype[-1])

    def frame(self, path: Path, number: int) -> npt.NDArray[np.generic]:
        """Frame `number` of the file as stored values, (rows, columns).

        Raises OSError, and Unreadable where the file ends before it.
        """
        count = self.rows * self.columns
        values = np.fromfile(path, self.dtype, count, offset=self.offset + number * self.frame_bytes)
        if len(values) < count:
            raise Unreadable(f"{path.name} is cut short: its pixels end before the picture does.")
        if self.unused_bits:  # and give a signed number its sign
            values = np.right_shift(np.left_shift(values, self.unused_bits), self.unused_bits)
        return values.reshape(self.rows, self.columns)


def locate(file: BinaryIO, transfer_syntax_uid: str, root: Header) -> StoredPixels | None:
    """The pixels behind the header that was just read from `file`; None where a decoder has to look.

    `file` stands at the element that stopped the reading.
    """
    if transfer_syntax_uid not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        return None
    dtype = _dtype(root)
    rows, columns = root.integer(tags.ROWS) or 0, root.integer(tags.COLUMNS) or 0
    stored, high = root.integer(tags.BITS_STORED) or 0, root.integer(tags.HIGH_BIT)
    if (
        dtype is None
        or not rows
        or not columns
        or high != stored - 1
        or root.integer(tags.SAMPLES_PER_PIXEL) != 1
    ):
        return None
    start = file.tell()
    head = file.read(12)
    if len(head) < 12 or not head.startswith(_PIXEL_DATA):
        return None
    if transfer_syntax_uid == ImplicitVRLittleEndian:
        offset, (length,) = start + 8, struct.unpack_from("<I", head, 4)
    elif head[4:6] in _LONG_FORM:
        offset, (length,) = start + 12, struct.unpack_from("<I", head, 8)
    else:
        return None
    frames = root.integer(tags.NUMBER_OF_FRAMES) or 1
    unused = 8 * int(dtype[-1]) - stored
    found = StoredPixels(offset, rows, columns, frames, dtype, unused)
    complete = length != _UNDEFINED_LENGTH and length >= frames * found.frame_bytes
    return found if complete and unused >= 0 else None


def _dtype(root: Header) -> str | None:
    """numpy's name of the stored numbers; None for what is not 8 or 16 bits."""
    size = {8: 1, 16: 2}.get(root.integer(tags.BITS_ALLOCATED) or 0)
    signed = root.integer(tags.PIXEL_REPRESENTATION)
    if size is None or signed not in (0, 1):
        return None
    return f"<{'i' if signed else 'u'}{size}"
