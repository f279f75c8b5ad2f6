"""Corrected volumes on the voxels of the reference, with one interpolation of the measured values."""

from __future__ import annotations

import math
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
    the new grid. The field is interpolated and the distorted volume read once, by cubic B-spline held between
    the voxels around, as `correction.apply.warp` does: a corrected volume resampled would be blurred twice,
    and linear interpolation takes a fifth of the signal of a small lesion. The result lies on disk in
    `scratch`, in a file without a name: many volumes on a fine grid are more than a worker's memory.
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
        voxels[index] = _read(volume, source.affine, new, transform)
        if factor is not None:
            voxels[index] *= factor
    return voxels


def _read(volume: Array, affine: Affine, new: sitk.Image, transform: sitk.Transform) -> Array:
    """`volume` at the points of `new`; 0 outside of its outer voxel faces."""
    value, least, most = (
        sitk.GetArrayFromImage(sitk.Resample(image, new, transform, how, math.nan))
        for image, how in (
            (_placed(volume, affine), sitk.sitkBSpline),
            (_cells(volume, affine, np.minimum), sitk.sitkNearestNeighbor),
            (_cells(volume, affine, np.maximum), sitk.sitkNearestNeighbor),
        )
    )
    held: Array = np.nan_to_num(np.clip(value, least, most), nan=0.0)
    return held


def _cells(volume: Array, affine: Affine, extreme: np.ufunc) -> sitk.Image:
    """The least or greatest of the eight voxels at the corners of each cell between voxel centres.

    Cells begin half a voxel before the first centre and end half a voxel behind the last one.
    """
    cells = np.pad(volume, 1, mode="edge")
    for axis in range(3):
        ends = np.moveaxis(cells, axis, 0)
        cells = np.moveaxis(extreme(ends[:-1], ends[1:]), 0, axis)
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ (0.5, 0.5, 0.5)
    return _placed(cells, moved)


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
