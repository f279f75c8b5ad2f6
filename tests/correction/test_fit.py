"""Fitting shifts to a cost volume: what air explains costs no bending, and nothing folds."""

import torch

from correction import methods
from correction.cost import CostVolume
from correction.fit import fit_shifts
from correction.grid import Grid
from correction.shifts import ShiftField
from correction.susceptibility import AirFields, dipole_field

GRID = Grid((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (26, 26, 26))
CLINICAL = methods.clinical()
STIFF = 5000.0


def _field_of_a_cavity() -> torch.Tensor:
    """ppm; a cavity of 16 mm in the middle of the grid."""
    cavity = torch.zeros(GRID.shape)
    cavity[11:15, 11:15, 11:15] = 1.0
    return 9.4 * dipole_field(cavity, GRID.spacing_mm, (1.0, 0.0, 0.0))


def _bowls(shift_mm: torch.Tensor, weight: torch.Tensor) -> CostVolume:
    """A cost volume whose cost is a bowl around a known shift."""
    labels = torch.arange(-12.0, 12.5, 1.0)
    cost = 0.1 * (labels[:, None, None, None] - shift_mm[None]) ** 2
    return CostVolume(cost.clamp(max=4.0), -12.0, 1.0, weight, GRID)


def _error(field: ShiftField, truth: torch.Tensor, weight: torch.Tensor) -> float:
    found, _ = field.on(GRID)
    return float((((found - truth) ** 2 * weight).sum() / weight.sum()).sqrt())


def test_the_field_of_a_cavity_is_found_where_bending_alone_would_flatten_it() -> None:
    ppm = _field_of_a_cavity()
    weight = torch.ones(GRID.shape)
    weight[9:17, 9:17, 9:17] = 0.0  # no signal in the cavity and at its rim
    for strength in (3.0, -3.0):  # the polarity is not known
        truth = strength * ppm
        volume = _bowls(truth, weight)
        alone = fit_shifts(volume, (12.0,), STIFF, CLINICAL, 30)
        with_air = fit_shifts(volume, (12.0,), STIFF, CLINICAL, 30, air=AirFields(GRID, ppm[None]))
        assert with_air.strengths is not None
        assert abs(float(with_air.strengths[0]) - strength) < 0.2 * abs(strength)
        errors = [_error(fit.field, truth, weight) for fit in (alone, with_air)]
        assert errors[1] < 0.5 * errors[0]
        assert with_air.energy < alone.energy


def test_air_that_explains_nothing_gets_no_strength() -> None:
    truth = 2.0 + 0.02 * torch.arange(26.0)[None, None, :] * torch.ones(GRID.shape)
    volume = _bowls(truth, torch.ones(GRID.shape))
    fit = fit_shifts(volume, (20.0,), STIFF, CLINICAL, 30, air=AirFields(GRID, _field_of_a_cavity()[None]))
    assert fit.strengths is not None
    assert abs(float(fit.strengths[0])) < 0.05
    assert _error(fit.field, truth, volume.weight) < 0.05


def test_a_strength_that_would_fold_is_cut_to_the_least_jacobian() -> None:
    truth = 40.0 * _field_of_a_cavity()
    volume = _bowls(truth.clamp(-12, 12), torch.ones(GRID.shape))
    air = AirFields(GRID, _field_of_a_cavity()[None])
    fit = fit_shifts(volume, (20.0,), 1.0, CLINICAL, 30, air=air)
    jacobian = fit.field.on(GRID)[1]
    assert float(jacobian.min()) >= CLINICAL.least_jacobian - 1e-3


def test_a_fit_goes_on_from_an_earlier_one() -> None:
    ppm = _field_of_a_cavity()
    volume = _bowls(3.0 * ppm, torch.ones(GRID.shape))
    air = AirFields(GRID, ppm[None])
    first = fit_shifts(volume, (20.0,), STIFF, CLINICAL, 30, air=air)
    again = fit_shifts(volume, (20.0,), STIFF, CLINICAL, 3, start=first, air=air)
    assert again.energy <= first.energy + 1e-4


def test_the_shift_of_the_whole_image_is_found_beyond_the_reach_of_a_slope() -> None:
    shift = torch.full(GRID.shape, 9.0)
    weight = torch.ones(GRID.shape)
    assert torch.equal(_bowls(shift, weight).whole(), shift)
