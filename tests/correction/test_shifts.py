"""A shift along phase encode: values, slopes and points agree."""

import numpy as np
import torch

from correction import Volume
from correction.grid import Frame, Grid
from correction.shifts import ShiftField, Unmoved
from correction.spline import Lattice

GRID = Grid((0.0, 0.0, 0.0), (2.0, 3.0, 1.0), (9, 8, 41))


def _field(seed: int) -> ShiftField:
    lattice = Lattice.over(GRID, 10.0)
    noise = torch.randn(lattice.shape, generator=torch.Generator().manual_seed(seed))
    return ShiftField(lattice, noise)


def test_unmoved_moves_nothing() -> None:
    frame = Frame.of(Volume(torch.ones(4, 5, 6), np.eye(4)), "j")
    vectors, jacobian = Unmoved().vectors(frame, GRID)
    assert torch.equal(vectors, torch.zeros(3, *GRID.shape))
    assert torch.equal(jacobian, torch.ones(GRID.shape))


def test_points_and_grid_agree() -> None:
    field = _field(0)
    axes = torch.meshgrid(*(GRID.coordinates(axis) for axis in range(3)), indexing="ij")
    points = torch.stack([axis.flatten() for axis in axes], dim=1)
    assert torch.allclose(field.on(GRID)[0].flatten(), field.at(points), atol=1e-5)


def test_the_jacobian_is_the_slope_of_the_shift() -> None:
    shift, jacobian = _field(2).on(GRID)
    slope = (shift[..., 2:] - shift[..., :-2]) / 2.0
    assert float((1 + slope - jacobian[..., 1:-1])[..., 3:-3].abs().max()) < 0.02
