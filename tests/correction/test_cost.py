"""The cost of a shift: its slope is that of its value, between the labels and beyond them."""

import torch

from correction import estimate, smooth
from correction.cost import CostVolume, along_phase_encode, near
from correction.grid import Grid


def _volume() -> CostVolume:
    grid = Grid((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (3, 4, 5))
    table = torch.rand(9, *grid.shape, generator=torch.Generator().manual_seed(3))
    return CostVolume(table, -4.0, 1.0, torch.ones(grid.shape), grid)


def test_the_slope_is_the_change_of_the_cost() -> None:
    volume, step_mm = _volume(), 1e-2
    shift = torch.linspace(-6.3, 6.1, 60).reshape(3, 4, 5)  # labels reach from −4 to 4
    wanted = shift.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(volume.at(wanted).sum(), wanted)
    change = (volume.at(shift + step_mm) - volume.at(shift - step_mm)) / (2 * step_mm)
    smooth = ((shift.abs() % 1.0) - 0.5).abs() < 0.45  # away from the labels, where the pieces join
    torch.testing.assert_close(slope[smooth], change[smooth], atol=2e-3, rtol=1e-3)
    assert bool(slope[shift > 5.0].gt(0).all())
    assert bool(slope[shift < -5.0].lt(0).all())


def test_at_a_label_the_cost_is_the_tables() -> None:
    volume = _volume()
    for label in range(1, 7):
        shift = torch.full(volume.grid.shape, volume.first_mm + label * volume.step_mm)
        torch.testing.assert_close(volume.at(shift), volume.cost[label])


def test_the_table_is_the_same_on_one_thread_and_on_two() -> None:
    grid = Grid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (6, 8, 20))
    generator = torch.Generator().manual_seed(1)
    fixed, moving = torch.rand(2, 12, *grid.shape, generator=generator)
    before, tables = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = along_phase_encode(fixed, moving, torch.ones(grid.shape), grid, 4.0, 0.5, 3.0, (2, 2, 2))
            tables.append(found.cost)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=1e-6)


def test_costs_near_a_steep_field_are_least_where_the_field_is_right() -> None:
    grid = Grid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (6, 8, 40))
    textures = torch.rand(12, *grid.shape, generator=torch.Generator().manual_seed(5))
    textures = smooth.gaussian(textures, [1.0, 1.0, 1.0])
    right = (4.0 * torch.sin(torch.arange(40) / 5.0)).expand(grid.shape).contiguous()  # slopes of 0.4

    def moving(shift_mm: torch.Tensor) -> torch.Tensor:
        return torch.stack([estimate.shifted(texture, shift_mm, 2.0) for texture in textures])

    guess = right + 1.0
    weight = torch.ones(grid.shape)
    table = near(moving(right), moving, guess, weight, grid, 3.0, 0.5, 2.0, (2, 2, 2))
    inner = (..., slice(5, 15))  # of 20 pooled voxels: no edge is repeated within three millimetres
    assert table.around_mm is not None
    corrected = smooth.pool(right, (2, 2, 2))
    assert float(table.at(corrected)[inner].max()) < 1e-6
    for off_mm in (-1.5, -0.5, 0.5, 1.5):
        assert bool((table.at(corrected + off_mm)[inner] > table.at(corrected)[inner] + 0.01).all())
