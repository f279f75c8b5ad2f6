"""Other programs' fields arrive in our convention: corrected(x) = distorted(x + u(x)), patient LPS mm."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks import peers
from benchmarks.cases import Case
from correction import Volume
from correction.phantom import warped

SHIFT_MM = 8.0


@pytest.fixture(scope="module")
def shifted() -> Case:
    """Blobs in an ellipsoid, oblique and anisotropic, warped smoothly along the rows by at most SHIFT_MM."""
    random = np.random.default_rng(0)
    shape = (36, 48, 44)
    z, y, x = (2 * i / (n - 1) - 1 for i, n in zip(np.indices(shape), shape, strict=True))
    tissue = (x / 0.7) ** 2 + (y / 0.7) ** 2 + (z / 0.8) ** 2 < 1
    noise = ndimage.gaussian_filter(random.standard_normal(shape), 1.5)
    image = tissue * (1.0 + 0.35 * noise / noise.std())
    angle = np.deg2rad(25.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.5, 2.0, 3.0])
    affine[:3, 3] = (-40.0, -60.0, 15.0)
    reference = Volume.from_numpy(image, affine)
    # not a constant shift: a program that also looks for a pose would take it for one
    b0, truth = warped(reference, "j", SHIFT_MM, 20.0, 3)
    brain = torch.from_numpy(ndimage.binary_erosion(tissue, iterations=2))
    return Case("blobs", "paper", b0, reference, "j", truth, brain, reference, False)


# what a peer may leave: squared differences in 60 mm stiffness find the way, not the distance
LEFT = {"unpile, b0-like": 0.85}
SLOW = {"elastix", "unpile, T2-like", "unpile, b0-like"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in peers.PEERS]
)
def test_a_peer_finds_a_known_shift_with_our_sign_in_patient_axes(shifted: Case, name: str) -> None:
    if name in peers.missing():
        pytest.skip(peers.missing()[name])
    found = peers.displacement_lps(shifted, peers.PEERS[name])
    assert found.shape == shifted.displacement_mm.shape
    truth = shifted.displacement_mm[:, shifted.brain]
    error = found[:, shifted.brain] - truth
    assert _rms(error) < LEFT.get(name, 0.4) * _rms(truth)


def _rms(vectors: torch.Tensor) -> float:
    return float(vectors.square().sum(0).mean().sqrt())


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "unpile" else there(name))
    assert set(peers.missing()) >= {"unpile, T2-like", "unpile, b0-like"}
