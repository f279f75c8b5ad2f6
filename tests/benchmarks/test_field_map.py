"""Other programs are measured against a field map as the engine is: along phase encode, in the brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers
from benchmarks.field_map import Truth, as_case, by_peers
from benchmarks.truth import figures
from correction import Volume


@pytest.fixture
def truth() -> Truth:
    """3 mm everywhere along increasing rows, half a voxel per Hz."""
    brain = np.zeros((8, 10, 9), dtype=bool)
    brain[2:6, 2:8, 2:7] = True
    return Truth(np.full(brain.shape, 3.0), np.full(brain.shape, 3.0), brain, 0.5, True)


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
