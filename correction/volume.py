"""A volume: a tensor and where it lies in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from correction.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Volume:
    """Scalar image on a regular grid.

    data: (Z, Y, X) float tensor, any intensity unit.
    affine: (4, 4) float64, maps the voxel index (x, y, z, 1) to patient LPS millimetres at the voxel centre.

    Raises ShapeError when the data are not three-dimensional or the affine is not an invertible 4 × 4.
    """

    data: Tensor
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ShapeError(f"Volume data must be (Z, Y, X), not {tuple(self.data.shape)}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ShapeError("Volume affine must be an invertible 4 × 4 matrix")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        z, y, x = self.data.shape
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge along x, y, z in millimetres."""
        sx, sy, sz = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(sx), float(sy), float(sz)

    @property
    def axes(self) -> npt.NDArray[np.float64]:
        """(3, 3): columns are the unit vectors of x, y, z in patient LPS."""
        return np.asarray(self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0))

    def with_data(self, data: Tensor) -> Volume:
        """The same grid with other voxels; raises ShapeError when the shapes differ."""
        if data.shape != self.data.shape:
            raise ShapeError(f"with_data() got {tuple(data.shape)} for a grid of {self.shape}")
        return Volume(data, self.affine)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> Volume:
        """A float32 copy of `array` (Z, Y, X) on the CPU."""
        return cls(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), affine)
