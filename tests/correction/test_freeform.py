"""Free 3-D fields: clinical without an axis, and the paper's model."""

import numpy as np
import pytest
import torch

from correction import Landmarks, SettingsError, correct, methods
from correction.phantom import PhantomCase, head_case


@pytest.fixture(scope="module")
def case() -> PhantomCase:
    return head_case(0, voxel_mm=(3.0, 3.0, 4.0), reference_voxel_mm=(3.0, 3.0, 4.0))


def _error(case: PhantomCase, displacement: torch.Tensor) -> float:
    return float((displacement - case.displacement_mm)[:, case.tissue].square().sum(0).mean().sqrt())


def test_clinical_without_an_axis_finds_most_of_the_field_and_does_not_fold(case: PhantomCase) -> None:
    result = correct(case.b0, case.reference, phase_encoding=None)
    assert _error(case, result.displacement) < 0.6 * _error(case, torch.zeros_like(result.displacement))
    assert float(result.jacobian.min()) > 0
    assert result.quality.hz_p99 is None


@pytest.mark.parametrize("parameterisation", ["inr", "control_points", "dense"])
def test_papers_model_moves_toward_the_truth(case: PhantomCase, parameterisation: str) -> None:
    settings = methods.paper().override(
        [f"parameterisation={parameterisation}", "samples=8000", "iterations=60"]
        # free control points need a larger step than a network of half a million weights
        + (["learning_rate=0.004"] if parameterisation == "control_points" else [])
        # asked at every voxel, the whole network takes minutes
        + (["hidden=48", "fourier_rows=16", "fourier_sigma=1"] if parameterisation == "dense" else [])
    )
    result = correct(case.b0, case.reference, "j", settings)
    assert _error(case, result.displacement) < 0.75 * _error(case, torch.zeros_like(result.displacement))
    assert result.quality.chosen == "paper"


def test_papers_landmarks_pull_the_field_in_the_stated_unit(case: PhantomCase) -> None:
    random = np.random.default_rng(0)
    where = np.argwhere(case.tissue.numpy())
    where = where[random.choice(len(where), 400, replace=False)]
    fixed = where[:, ::-1] @ case.b0.affine[:3, :3].T + case.b0.affine[:3, 3]
    shift = case.displacement_mm.numpy()[:, where[:, 0], where[:, 1], where[:, 2]].T
    landmarks = Landmarks(fixed, fixed + shift, np.ones(len(where)))
    settings = methods.paper().override(
        ["samples=4000", "iterations=40", "landmark_weight=20", "spacing_voxels=12"]
    )
    without = correct(case.b0, case.reference, "j", settings)
    with_them = correct(case.b0, case.reference, "j", settings, landmarks=landmarks)
    assert _error(case, with_them.displacement) < _error(case, without.displacement)


def test_a_seed_fixes_the_papers_result_and_another_changes_it(case: PhantomCase) -> None:
    settings = methods.paper().override(["samples=2000", "iterations=3"])
    first, again, other = (
        correct(case.b0, case.reference, "j", settings, seed=seed).displacement for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_network_without_a_spline_works_on_samples_only() -> None:
    with pytest.raises(SettingsError, match="samples"):
        methods.paper().override(["parameterisation=dense"])


def test_every_voxel_and_phase_encode_only_are_settings(case: PhantomCase) -> None:
    settings = methods.paper().override(["iterations=2", "phase_encode_only=true"])
    result = correct(case.b0, case.reference, "j", settings)
    assert float(result.displacement[[0, 2]].abs().max()) < 1e-4
    assert float(result.displacement[1].abs().max()) > 0
