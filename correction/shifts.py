"""A shift along phase encode, evaluated anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from correction import spline
from correction.grid import Frame, Grid
from correction.spline import Lattice


@dataclass(frozen=True, slots=True)
class ShiftField:
    """One spline of shifts along the last frame axis; coefficients (nA, nB, nP), mm."""

    lattice: Lattice
    coefficients: Tensor

    def on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Shift in mm and Jacobian 1 + ∂u/∂p at the grid's voxels: two (A, B, P) tensors."""
        device = str(self.coefficients.device)
        shift, slope = (
            spline.evaluate(
                self.coefficients, spline.grid_matrices(self.lattice, grid, (0, 0, order), device)
            )
            for order in (0, 1)
        )
        return shift, 1.0 + slope

    def vectors(self, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
        """Displacement (3, A, B, P) in frame mm and Jacobian (A, B, P); the Field protocol."""
        shift, jacobian = self.on(grid)
        return torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift]), jacobian

    def at(self, points_mm: Tensor) -> Tensor:
        """Shift (N,) at (N, 3) frame points."""
        return spline.at_points(self.coefficients, spline.point_taps(self.lattice, points_mm))


class Unmoved:
    """The identity."""

    def vectors(self, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
        """Zero displacement (3, A, B, P) and a Jacobian of one; the Field protocol."""
        return torch.zeros(3, *grid.shape), torch.ones(grid.shape)
