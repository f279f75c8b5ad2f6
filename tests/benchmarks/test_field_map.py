"""Other programs are measured against a field map as the engine is: along phase encode, in the brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers
from benchmarks.field_map import Truth, as_case, by_peers, of_an_undistorted, shifts
from benchmarks.truth import figures
from correction import Volume


@pytest.fixture
def truth() -> Truth:
    """3 mm everywhere along increasing rows, half a voxel per Hz."""
    brain = np.zeros((8, 10, 9), dtype=bool)
    brain[2:6, 2:8, 2:7] = True
    return Truth(np.full(brain.shape, 3.0), np.full(brain.shape, 3.0), brain, 0.5)


@pytest.fixture
def oblique() -> Volume:
    turned = np.deg2rad(30.0)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]]
    affine[:3, :3] *= 2.0
    return Volume.from_numpy(np.random.default_rng(0).random((8, 10, 9)), affine)


def test_a_peer_is_charged_with_its_error_along_phase_encode_only(
    truth: Truth, oblique: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = as_case("study", oblique, oblique, "j", truth)

    def found(case: object, peer: object) -> torch.Tensor:
        across, along = (torch.from_numpy(oblique.axes[:, k]).float() for k in (0, 1))
        return (2.0 * along + 5.0 * across)[:, None, None, None].expand(3, 8, 10, 9)

    monkeypatch.setattr(peers, "displacement_lps", found)
    monkeypatch.setattr(peers, "missing", dict)
    document = by_peers(case, truth, ["SyN"], tmp_path)
    assert document["before"] == figures(-truth.shift_mm, truth.shift_mm, truth.brain)
    of_syn = document["SyN"]
    assert isinstance(of_syn, dict)
    assert of_syn["rmse_mm"] == pytest.approx(1.0, abs=1e-5)
    assert (tmp_path / "study" / "SyN.pt").exists()


def test_a_peer_that_is_not_installed_is_named_and_left_out(
    truth: Truth, oblique: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "missing", lambda: {"SyN": "not installed"})
    document = by_peers(as_case("study", oblique, oblique, "j", truth), truth, ["SyN"], None)
    assert document["missing"] == {"SyN": "not installed"}
    assert "SyN" not in document


def test_motion_alone_is_no_error_on_an_image_without_distortion(truth: Truth, oblique: Volume) -> None:
    z, y, x = np.indices(truth.brain.shape)
    motion = 1.5 + 0.1 * z - 0.05 * y + 0.02 * x
    still = Truth(30.0 * np.sin(y), 0.0 * motion, truth.brain, 0.0)
    left = of_an_undistorted(motion, still, oblique)
    assert left["beyond_motion_mm"] == pytest.approx(0.0, abs=1e-9)
    assert left["mean_mm"] == pytest.approx(motion[truth.brain].mean())


def test_a_field_that_follows_the_map_is_told_by_its_scale(truth: Truth, oblique: Volume) -> None:
    hz = np.random.default_rng(2).normal(0.0, 40.0, truth.brain.shape)
    following = Truth(hz, 0.0 * hz, truth.brain, 0.0)
    left = of_an_undistorted(0.03 * 2.0 * hz + 1.0, following, oblique)  # rows are 2 mm apart
    assert left["voxels_per_hz_of_found"] == pytest.approx(0.03)
    assert left["beyond_motion_mm"] > 1.0
    counted = left["if_the_map_counted"]
    assert counted["0.03"]["after"]["demeaned_rmse_mm"] == pytest.approx(0.0, abs=1e-9)


def test_a_map_whose_sign_is_not_known_is_no_truth(oblique: Volume) -> None:
    hz, head = np.full(oblique.shape, 40.0), np.ones(oblique.shape, dtype=bool)
    with pytest.raises(SystemExit, match="polarity"):
        shifts(hz, head, oblique, oblique, None, 0.03)
