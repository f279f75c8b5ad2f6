"""The phantom's truth is true."""

import numpy as np
import pytest
import torch

from correction.apply import warp
from correction.phantom import head_case

SMALL = {"voxel_mm": (2.5, 2.5, 2.5), "reference_voxel_mm": (4.0, 4.0, 5.0), "noise": 0.0}


@pytest.mark.parametrize("phase_encoding", ["i", "j-", "k"])
def test_the_true_field_takes_the_distorted_image_back(phase_encoding: str) -> None:
    case = head_case(3, phase_encoding=phase_encoding, rotation_deg=17.0, pile_up=False, **SMALL)
    back = warp(case.b0, case.displacement_mm).data
    true = case.undistorted.data
    tissue = case.tissue
    before = float((case.b0.data - true)[tissue].square().mean().sqrt())
    after = float((back - true)[tissue].square().mean().sqrt())
    assert before > 60
    assert after < 0.45 * before  # what is left is interpolation


def test_pile_up_is_undone_by_the_jacobian() -> None:
    case = head_case(3, pile_up=True, **SMALL)
    step = case.b0.spacing_mm[1]
    jacobian = 1 + torch.gradient(case.displacement_mm[1], dim=1)[0] / step
    back = warp(case.b0, case.displacement_mm).data
    true = case.undistorted.data
    plain = float((back - true)[case.tissue].square().mean())
    modulated = float((back * jacobian - true)[case.tissue].square().mean())
    assert modulated < 0.8 * plain


def test_the_field_is_epi_like_and_never_folds() -> None:
    case = head_case(0)
    shift = case.displacement_mm[1]
    assert float(case.displacement_mm[[0, 2]].abs().max()) == 0.0
    assert 1.5 < float(shift[case.tissue].square().mean().sqrt()) < 5.0
    assert float(1 + torch.gradient(shift, dim=1)[0].min() / case.b0.spacing_mm[1]) > 0.15


def test_reversing_the_polarity_reverses_the_truth() -> None:
    plus, minus = (head_case(1, phase_encoding=pe, **SMALL) for pe in ("j", "j-"))
    torch.testing.assert_close(plus.displacement_mm, -minus.displacement_mm)


def test_a_seed_gives_the_same_examination_and_another_seed_another() -> None:
    first, again, other = (head_case(seed, **{**SMALL, "noise": 0.02}) for seed in (5, 5, 6))
    assert torch.equal(first.b0.data, again.b0.data)
    assert not torch.equal(first.displacement_mm, other.displacement_mm)
    assert np.array_equal(first.b0.affine, again.b0.affine)
