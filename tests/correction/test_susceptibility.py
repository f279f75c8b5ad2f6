"""Fields of air: the analytic sphere, and what the images must show for a place to count as air."""

import numpy as np
import torch

from correction import Volume, methods
from correction.grid import Frame
from correction.phantom import head_case
from correction.spline import Lattice
from correction.susceptibility import air_fields, dipole_field

CLINICAL = methods.clinical()


def _sphere(count: int, radius: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Share of each voxel inside a centred sphere, distance and cosine to the last axis; voxels of 1."""
    axis = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    a, b, p = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = torch.sqrt(a**2 + b**2 + p**2)
    return (radius + 0.5 - distance).clamp(0, 1), distance, p / distance


def test_the_field_of_a_sphere_is_a_dipole_outside_and_nothing_inside() -> None:
    radius = 9.0
    inside, distance, cosine = _sphere(64, radius)
    field = dipole_field(inside, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    expected = (radius / distance) ** 3 * (3 * cosine**2 - 1) / 3
    outside = (distance > radius + 2) & (distance < 24)
    assert float((field - expected)[outside].abs().max()) < 0.02 * float(expected[outside].max())
    assert float(field[distance < radius - 2].abs().max()) < 0.01


def test_the_field_turns_with_the_main_field_and_knows_the_voxel_size() -> None:
    inside, _, _ = _sphere(40, 6.0)
    along_last = dipole_field(inside, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    along_first = dipole_field(inside, (1.0, 1.0, 1.0), (1.0, 0.0, 0.0))
    assert torch.allclose(along_first, along_last.permute(2, 0, 1), atol=1e-6)
    # the same ball in voxels of another shape
    coarse = dipole_field(inside.reshape(20, 2, 40, 40).mean(1), (2.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    far = (20, 20, 33)
    assert abs(float(coarse[10, 20, 33] - (along_last[far] + along_last[21, 20, 33]) / 2)) < 0.002


def test_the_cavities_of_the_phantom_make_fields_and_its_fluid_does_not() -> None:
    case = head_case(0, largest_shift_mm=0.0, voxel_mm=(4.0, 4.0, 4.0), reference_voxel_mm=(3.0, 3.0, 3.0))
    frame = Frame.of(case.b0, "j")
    dark_fluid = case.reference.with_data(
        torch.where(
            case.reference.data > 800, torch.full_like(case.reference.data, 20.0), case.reference.data
        )
    )
    for reference in (case.reference, dark_fluid):
        found = air_fields(frame, case.b0, reference, CLINICAL)
        ears = _at(found.fields[1], found.grid, frame, (62.0, 8.0, -20.0))
        ventricles = _at(found.fields[1], found.grid, frame, (8.0, 0.0, 22.0))
        assert ears > 5 * abs(ventricles)
        assert ears > 0.1


def test_an_image_without_cavities_has_none() -> None:
    ball, _, _ = _sphere(32, 11.0)
    volume = Volume((100 * ball).float(), np.diag([6.0, 6.0, 6.0, 1.0]))
    found = air_fields(Frame.of(volume, "j"), volume, volume, CLINICAL)
    assert len(found.fields) == 2
    assert float(found.fields[1].abs().max()) < 0.02 * float(found.fields[0].abs().max())


def test_the_fields_spline_repeats_their_values() -> None:
    ball, _, _ = _sphere(32, 9.0)
    hollow = ball * (1 - _sphere(32, 4.0)[0])
    volume = Volume((100 * hollow).float(), np.diag([5.0, 5.0, 5.0, 1.0]))
    frame = Frame.of(volume, "j")
    found = air_fields(frame, volume, volume, CLINICAL)
    lattice = Lattice.over(frame.grid(), 5.0)
    coefficients = found.on(lattice)
    assert coefficients.shape == (len(found.fields), *lattice.shape)
    centre = coefficients[0][tuple(n // 2 for n in lattice.shape)]
    assert abs(float(centre) - _at(found.fields[0], found.grid, frame, None)) < 0.3


def _at(field: torch.Tensor, grid: object, frame: Frame, lps: tuple[float, float, float] | None) -> float:
    """The field's value nearest to a patient position; None: the middle of the frame's image."""
    full = frame.grid()
    if lps is None:
        point = [(full.first_mm[a] + full.last_mm(a)) / 2 for a in range(3)]
    else:
        point = frame.points_from_lps(np.array([lps]))[0].tolist()
    index = [round((p - f) / s) for p, f, s in zip(point, grid.first_mm, grid.spacing_mm, strict=True)]  # type: ignore[attr-defined]
    return float(field[tuple(index)])
