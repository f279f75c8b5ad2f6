"""Corrected volumes on the voxels of the reference, with one interpolation of the measured values."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from dicom_node.derive.pixels import Array
from dicom_node.load import LoadedSeries

Affine = npt.NDArray[np.float64]


def on_reference_grid(
    source: LoadedSeries,
    displacement_mm: Array,
    modulation: Array | None,
    affine: Affine,
    shape: tuple[int, int, int],
    scratch: Path,
) -> Array:
    """The corrected volumes of `source` at the voxels of another grid: (V, *shape), 0 outside of the source.

    displacement_mm: (3, Z, Y, X) patient LPS on the source's grid, corrected(x) = distorted(x + u(x)).
    modulation: (Z, Y, X) factor on the source's grid, or None. affine, shape: (4, 4) LPS mm and (Z, Y, X) of
    the new grid. The field is interpolated and the distorted volume read once: resampling the corrected
    volume would blur it twice. The result lies on disk in `scratch`, in a file without a name: many volumes
    on a fine grid are more than a worker's memory.
    """
    new = _grid(affine, shape)
    field = _placed(np.moveaxis(displacement_mm, 0, -1).astype(np.float64), source.affine, vector=True)
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    factor = None
    if modulation is not None:
        placed = _placed(np.maximum(modulation, 0), source.affine)
        factor = sitk.GetArrayFromImage(sitk.Resample(placed, new, sitk.Transform(), sitk.sitkLinear, 1.0))
    with tempfile.TemporaryFile(dir=scratch) as file:
        voxels: Array = np.memmap(file, np.float32, "w+", shape=(len(source.voxels), *shape))
    for index, volume in enumerate(source.voxels):
        moved = sitk.Resample(_placed(volume, source.affine), new, transform, sitk.sitkLinear, 0.0)
        voxels[index] = sitk.GetArrayViewFromImage(moved)
        if factor is not None:
            voxels[index] *= factor
    return voxels


def _placed(data: npt.NDArray[np.floating], affine: Affine, *, vector: bool = False) -> sitk.Image:
    """(Z, Y, X[, 3]) data as an image in patient LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data), isVector=vector)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _grid(affine: Affine, shape: tuple[int, int, int]) -> sitk.Image:
    return _placed(np.zeros(shape, dtype=np.float32), affine)
