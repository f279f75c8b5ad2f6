"""Shifts along phase encode: splines applied one after the other, evaluated anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from correction import spline
from correction.grid import Frame, Grid
from correction.spline import Lattice


@dataclass(frozen=True, slots=True)
class Stage:
    """One spline of shifts along the last frame axis; coefficients (nA, nB, nP), mm."""

    lattice: Lattice
    coefficients: Tensor


@dataclass(frozen=True, slots=True)
class ShiftField:
    """Splines applied one after the other: x → x + r(x), then + u(·) of the stages before.

    With J > 0 in every stage the whole has J > 0. No stages: the identity.
    """

    stages: tuple[Stage, ...] = ()

    def then(self, stage: Stage) -> ShiftField:
        """The field whose first step on x is the new, finer stage."""
        return ShiftField((*self.stages, stage))

    def on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Shift in mm and Jacobian 1 + ∂u/∂p at the grid's voxels: two (A, B, P) tensors."""
        device = self.stages[0].coefficients.device if self.stages else torch.device("cpu")
        position = grid.coordinates(2, device).float().expand(grid.shape).contiguous()
        start = position
        jacobian = torch.ones_like(position)
        for stage in reversed(self.stages):
            value, slope = _along_last(stage, grid, position)
            position = position + value
            jacobian = jacobian * (1.0 + slope)
        return position - start, jacobian

    def vectors(self, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
        """Displacement (3, A, B, P) in frame mm and Jacobian (A, B, P); the Field protocol."""
        shift, jacobian = self.on(grid)
        return torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift]), jacobian

    def at(self, points_mm: Tensor) -> Tensor:
        """Shift (N,) at (N, 3) frame points."""
        moved = points_mm.clone()
        for stage in reversed(self.stages):
            taps = spline.point_taps(stage.lattice, moved)
            moved[:, 2] += spline.at_points(stage.coefficients, taps)
        return moved[:, 2] - points_mm[:, 2]


def _along_last(stage: Stage, grid: Grid, position_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of a stage at positions (A, B, P) along the last axis, on the grid in the others."""
    device = position_mm.device
    a, b = (stage.lattice.axis_matrix(grid.coordinates(axis, device), axis) for axis in (0, 1))
    rows = torch.einsum("ai,bj,ijp->abp", a, b, stage.coefficients)  # splines along p on every line
    flat = position_mm.reshape(-1)
    values = []
    for derivative in (0, 1):
        first, weights = stage.lattice.taps(flat, 2, derivative)
        line = torch.arange(rows.shape[0] * rows.shape[1], device=device).repeat_interleave(grid.shape[2])
        start = line * rows.shape[2] + first
        taps = rows.reshape(-1)[start[:, None] + torch.arange(4, device=device)]
        values.append((taps * weights.float()).sum(1).reshape(position_mm.shape))
    return values[0], values[1]
