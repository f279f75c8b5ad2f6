"""NIfTI in and out: the one place that knows RAS and the row flip.

Inside the program a volume has the order of the stored DICOM matrix and an affine to patient LPS. A NIfTI
file has an affine to RAS; the files we write from DICOM run their rows backwards, as dcm2niix does, so that
BIDS axis letters and signs mean the same in both.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from torch import Tensor

from dicom_node.load import B0_UP_TO, SAME_SHELL_WITHIN

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
INTENT_VECTOR = 1007  # NIFTI_INTENT_VECTOR: what ITK and ANTs expect of a displacement field


_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    ImageDataError,
)


class NiftiProblem(Exception):
    """A NIfTI file or b-value file that cannot be used; the message names it and the way out."""


@dataclass(frozen=True, slots=True)
class NiftiImage:
    """A NIfTI image as volumes. voxels: (V, Z, Y, X) float32; affine: (x, y, z) index → patient LPS mm."""

    voxels: Array
    affine: Affine


def read_nifti(path: Path) -> NiftiImage:
    """A 3-D or 4-D NIfTI file in its own voxel order. Raises NiftiProblem."""
    try:
        image = nibabel.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise NiftiProblem(f"{path} is not a readable NIfTI file ({type(error).__name__}).") from error
    if data.ndim == 5 and data.shape[3] == 1:
        data = data[:, :, :, 0, :]
    if data.ndim == 3:
        data = data[..., np.newaxis]
    if data.ndim != 4 or min(data.shape) < 1:
        raise NiftiProblem(f"{path} has the shape {image.shape}; a 3-D or 4-D image is needed.")
    return NiftiImage(np.ascontiguousarray(data.transpose(3, 2, 1, 0)), LPS_FROM_RAS @ image.affine)


def read_b_values(path: Path, volumes: int) -> tuple[float, ...]:
    """The numbers of a .bval file, one for each volume. Raises NiftiProblem."""
    try:
        values = tuple(float(word) for word in path.read_text(encoding="ascii").split())
    except (OSError, ValueError) as error:
        raise NiftiProblem(
            f"{path} is not a b-value file: numbers divided by blanks are expected."
        ) from error
    if len(values) != volumes:
        raise NiftiProblem(f"{path} has {len(values)} b-values, but the image has {volumes} volumes.")
    return values


def lowest_shell(b_values: tuple[float, ...]) -> tuple[int, ...]:
    """Indices of the volumes to register: every b = 0, else the lowest shell, as `load` tells them."""
    lowest = min(b_values)
    limit = B0_UP_TO if lowest <= B0_UP_TO else lowest + SAME_SHELL_WITHIN
    return tuple(index for index, b in enumerate(b_values) if b <= limit)


def write_volumes(path: Path, voxels: Array, affine: Affine, *, flip_rows: bool) -> None:
    """Write (V, Z, Y, X) voxels as float32 NIfTI; one volume becomes a 3-D file."""
    data, ras = _oriented(voxels, affine, flip_rows)
    array = data.transpose(3, 2, 1, 0)
    _save(nibabel.Nifti1Image(array[..., 0] if array.shape[3] == 1 else array, ras), path)


def write_displacement(path: Path, displacement_mm: Tensor, affine: Affine, *, flip_rows: bool) -> None:
    """Write a field (3, Z, Y, X), LPS mm, as ITK and ANTs read it: (X, Y, Z, 1, 3) with the vector intent."""
    data, ras = _oriented(displacement_mm.detach().cpu().numpy().astype(np.float32), affine, flip_rows)
    image = nibabel.Nifti1Image(data.transpose(3, 2, 1, 0)[:, :, :, np.newaxis, :], ras)
    image.header.set_intent(INTENT_VECTOR)
    _save(image, path)


def _oriented(data: Array, affine: Affine, flip_rows: bool) -> tuple[Array, Affine]:
    if not flip_rows:
        return data, LPS_FROM_RAS @ affine
    flip = np.eye(4)
    flip[1, 1], flip[1, 3] = -1.0, data.shape[2] - 1
    return data[:, :, ::-1, :], LPS_FROM_RAS @ affine @ flip


def _save(image: nibabel.Nifti1Image, path: Path) -> None:
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    nibabel.save(image, path)
