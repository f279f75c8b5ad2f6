"""Shifts one after the other: values, slopes and points agree."""

import torch

from correction.grid import Grid
from correction.shifts import ShiftField, Stage
from correction.spline import Lattice

GRID = Grid((0.0, 0.0, 0.0), (2.0, 3.0, 1.0), (9, 8, 41))


def _stage(seed: int) -> Stage:
    lattice = Lattice.over(GRID, 10.0)
    noise = torch.randn(lattice.shape, generator=torch.Generator().manual_seed(seed))
    return Stage(lattice, noise)


def test_no_stage_moves_nothing() -> None:
    shift, jacobian = ShiftField().on(GRID)
    assert float(shift.abs().max()) == 0.0
    assert torch.equal(jacobian, torch.ones(GRID.shape))


def test_the_last_stage_acts_first() -> None:
    coarse, fine = _stage(0), _stage(1)
    field = ShiftField((coarse,)).then(fine)
    axes = torch.meshgrid(*(GRID.coordinates(axis) for axis in range(3)), indexing="ij")
    points = torch.stack([axis.flatten() for axis in axes], dim=1)
    first = ShiftField((fine,)).at(points)
    moved = points.clone()
    moved[:, 2] += first
    expected = first + ShiftField((coarse,)).at(moved)
    assert torch.allclose(field.at(points), expected, atol=1e-4)
    assert torch.allclose(field.on(GRID)[0].flatten().double(), expected.double(), atol=1e-3)


def test_the_jacobian_is_the_slope_of_the_whole() -> None:
    field = ShiftField((_stage(2),)).then(_stage(3))
    shift, jacobian = field.on(GRID)
    slope = (shift[..., 2:] - shift[..., :-2]) / 2.0
    assert float((1 + slope - jacobian[..., 1:-1])[..., 3:-3].abs().max()) < 0.02
