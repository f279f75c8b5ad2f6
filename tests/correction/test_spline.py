"""Cubic B-splines against scipy, numeric integration and the published bands."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from correction import spline
from correction.fit import minimise
from correction.grid import Grid
from correction.spline import Lattice

GRID = Grid((3.0, -7.0, 1.5), (2.0, 3.0, 1.25), (21, 17, 33))
LATTICE = Lattice.over(GRID, (11.0, 14.0, 9.0))


def _coefficients(seed: int = 0, lattice: Lattice = LATTICE) -> torch.Tensor:
    return torch.randn(lattice.shape, generator=torch.Generator().manual_seed(seed))


def _scipy_line(lattice: Lattice, axis: int, coefficients: np.ndarray) -> BSpline:
    """The same spline in scipy's words: knots one spacing apart, three beyond each face."""
    low, spacing = lattice.low_mm[axis], lattice.spacing_mm[axis]
    knots = low + spacing * np.arange(-3, lattice.intervals[axis] + 4)
    return BSpline(knots, coefficients, 3, extrapolate=False)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("derivative", [0, 1, 2])
def test_values_and_derivatives_along_each_axis_are_scipys(axis: int, derivative: int) -> None:
    coefficients = np.random.default_rng(axis).standard_normal(LATTICE.shape[axis])
    at = GRID.coordinates(axis)
    ours = LATTICE.axis_matrix(at, axis, derivative).double().numpy() @ coefficients
    line = _scipy_line(LATTICE, axis, coefficients)
    expected = line(at.numpy()) if derivative == 0 else line.derivative(derivative)(at.numpy())
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_scattered_points_agree_with_the_dense_grid() -> None:
    coefficients = _coefficients()
    for derivative in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        dense = spline.evaluate(coefficients, spline.grid_matrices(LATTICE, GRID, derivative))
        mesh = torch.stack(torch.meshgrid(*(GRID.coordinates(k) for k in range(3)), indexing="ij"), dim=-1)
        points = spline.at_points(coefficients, spline.point_taps(LATTICE, mesh.reshape(-1, 3), derivative))
        torch.testing.assert_close(points.reshape(GRID.shape), dense, rtol=1e-4, atol=1e-5)


def test_values_and_gradients_together_are_those_apart() -> None:
    coefficients = torch.stack([_coefficients(seed) for seed in range(3)])
    points = torch.rand(200, 3, dtype=torch.float64) * 40
    value, gradient = spline.with_gradients(coefficients, LATTICE, points)
    torch.testing.assert_close(value, spline.at_points(coefficients, spline.point_taps(LATTICE, points)))
    for axis, order in enumerate(((1, 0, 0), (0, 1, 0), (0, 0, 1))):
        slope = spline.at_points(coefficients, spline.point_taps(LATTICE, points, order))
        torch.testing.assert_close(gradient[:, :, axis].T, slope, rtol=1e-4, atol=1e-5)


def test_beyond_the_box_the_face_value_is_kept() -> None:
    coefficients = _coefficients()
    face = torch.tensor([[9.0, 5.0, LATTICE.low_mm[2] + LATTICE.intervals[2] * LATTICE.spacing_mm[2]]])
    far = face + torch.tensor([[0.0, 0.0, 50.0]])
    assert torch.allclose(
        spline.at_points(coefficients, spline.point_taps(LATTICE, face.double())),
        spline.at_points(coefficients, spline.point_taps(LATTICE, far.double())),
    )
    slope = spline.at_points(coefficients, spline.point_taps(LATTICE, far.double(), (0, 0, 1)))
    assert float(slope) == 0.0


def test_fitting_recovers_the_spline_that_made_the_values() -> None:
    coefficients = _coefficients()
    dense = spline.evaluate(coefficients, spline.grid_matrices(LATTICE, GRID))
    fitted = spline.fit(LATTICE, GRID, dense)
    again = spline.evaluate(fitted, spline.grid_matrices(LATTICE, GRID))
    assert float((again - dense).abs().max()) < 0.01


def test_bending_energy_is_the_integral_of_the_second_derivatives() -> None:
    coefficients = _coefficients(1).double()
    # midpoint rule on a grid fine enough for four digits
    sides = [n * s for n, s in zip(LATTICE.intervals, LATTICE.spacing_mm, strict=True)]
    counts = [24 * n for n in LATTICE.intervals]
    step = tuple(side / n for side, n in zip(sides, counts, strict=True))
    first = tuple(low + s / 2 for low, s in zip(LATTICE.low_mm, step, strict=True))
    fine = Grid(first, step, tuple(counts))
    total = 0.0
    for order, factor in (
        ((2, 0, 0), 1), ((0, 2, 0), 1), ((0, 0, 2), 1), ((1, 1, 0), 2), ((1, 0, 1), 2), ((0, 1, 1), 2)
    ):  # fmt: skip
        second = spline.evaluate(coefficients.float(), spline.grid_matrices(LATTICE, fine, order))
        total += factor * float((second.double() ** 2).mean())
    analytic = float(spline.Bending(LATTICE)(coefficients.float()))
    assert analytic == pytest.approx(total, rel=2e-3)


def test_linear_fields_do_not_bend() -> None:
    positions = LATTICE.control_positions().float()
    tilted = 0.3 * positions[0] - 0.1 * positions[1] + 0.2 * positions[2] + 4.0
    assert float(spline.Bending(LATTICE)(tilted)) == pytest.approx(0.0, abs=1e-6)


def test_inner_rows_of_the_gram_matrices_are_the_published_bands() -> None:
    lattice = Lattice((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (12, 12, 12))
    bands = (
        np.array([1, 120, 1191, 2416, 1191, 120, 1]) / 5040,
        np.array([-1, -24, -15, 80, -15, -24, -1]) / 120,
        np.array([1, 0, -9, 16, -9, 0, 1]) / 6,
    )
    for gram, band in zip(spline.grams(lattice, 0), bands, strict=True):
        np.testing.assert_allclose(gram[7, 4:11].numpy(), band, atol=1e-12)


def test_unfolding_keeps_the_jacobian_above_its_limit_and_leaves_a_sound_field_alone() -> None:
    steep = 40 * _coefficients(2)
    safe = spline.unfold(steep, LATTICE.spacing_mm[2], 0.1)
    slope = spline.evaluate(safe, spline.grid_matrices(LATTICE, GRID, (0, 0, 1)))
    assert float(1 + slope.min()) >= 0.1 - 1e-4
    gentle = 0.5 * _coefficients(3)
    assert torch.allclose(spline.unfold(gentle, LATTICE.spacing_mm[2], 0.1), gentle, atol=1e-5)
    assert float(spline.fold_penalty(steep, LATTICE.spacing_mm[2], 0.1)) > 0
    assert float(spline.fold_penalty(safe, LATTICE.spacing_mm[2], 0.1)) < 1e-8


def test_whitened_parameters_reach_the_same_minimum_in_fewer_steps_and_map_back() -> None:
    grid = Grid((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (20, 24, 22))
    lattice = Lattice.over(grid, 12.0)
    matrices = spline.grid_matrices(lattice, grid)
    bending, weight = spline.Bending(lattice), 3000.0
    truth = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))

    def energy(coefficients: torch.Tensor) -> torch.Tensor:
        misfit = (spline.evaluate(coefficients, matrices) - truth).square().mean()
        return 0.5 * misfit + weight * bending(coefficients)

    whitening = spline.Whitening.of(lattice, weight, 1.0)
    coefficients = torch.randn(lattice.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(whitening(whitening.inverse(coefficients)), coefficients, atol=1e-3)
    start = torch.zeros(lattice.shape)
    _, plain = minimise(energy, start, 12)
    _, whitened = minimise(lambda parameters: energy(whitening(parameters)), start, 12)
    _, converged = minimise(lambda parameters: energy(whitening(parameters)), start, 200)
    assert whitened - converged < 0.2 * (plain - converged)
