"""Each matcher on a picture and its known warp."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from correction.errors import SettingsError
from correction.landmarks import matchers
from correction.landmarks.from_wheels import DiskLightGlue, XFeatLighterGlue

OFFLINE = (DiskLightGlue.name, XFeatLighterGlue.name)  # whose weights every installation has


def _pair(size: tuple[int, int] = (190, 250), seed: int = 1) -> tuple[Tensor, Tensor, np.ndarray]:
    """(2, H, W) pictures of blobs, the same pulled along y by a smooth shift, and that shift (H, W)."""
    random = np.random.default_rng(seed)
    fixed = np.stack(
        [
            sum(ndimage.gaussian_filter(random.standard_normal(size), s) * s for s in (2, 4, 8))
            for _ in range(2)
        ]
    )
    fixed = (fixed - fixed.min()) / (fixed.max() - fixed.min())
    y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij")
    shift = 6.0 * np.sin(x / 50.0) + 3.0 * np.cos(y / 60.0)
    # what lies at y in the fixed picture lies at y + shift in the moving one: solve for the way back
    source = y.copy()
    for _ in range(30):
        source = y - ndimage.map_coordinates(shift, [source, x], order=1, mode="nearest")
    moving = np.stack([ndimage.map_coordinates(f, [source, x], order=3, mode="nearest") for f in fixed])
    return torch.from_numpy(fixed).float(), torch.from_numpy(moving).float().clamp(0, 1), shift


@pytest.mark.parametrize("name", OFFLINE)
def test_a_known_warp_is_found(name: str) -> None:
    fixed, moving, shift = _pair()
    found = matchers.matcher(name).match(fixed, moving)
    assert len(found) == 2
    for matches in found:
        assert len(matches) > 60
        assert float(matches.score.min()) >= 0
        assert float(matches.score.max()) <= 1
        x, y = matches.fixed.numpy().T
        expected = ndimage.map_coordinates(shift, [y, x], order=1)
        dx, dy = (matches.moving - matches.fixed).numpy().T
        # a pixel is the grain of the keypoints
        assert np.median(np.abs(dy - expected)) < 1.0
        assert np.median(np.abs(dx)) < 1.0
        assert (np.hypot(dx, dy - expected) < 3.0).mean() > 0.85


def test_the_same_pictures_give_the_same_matches() -> None:
    fixed, moving, _ = _pair(size=(128, 160))
    name = XFeatLighterGlue.name
    one, other = (XFeatLighterGlue().match(fixed, moving)[0] for _ in range(2))
    assert torch.equal(one.moving, other.moving)
    assert torch.equal(one.score, other.score)
    alone = matchers.matcher(name).match(fixed[:1], moving[:1])[0]
    assert abs(len(alone) - len(one)) <= 2


@pytest.mark.parametrize("name", OFFLINE)
def test_an_empty_picture_has_no_matches(name: str) -> None:
    blank = torch.zeros(1, 96, 96)
    (matches,) = matchers.matcher(name).match(blank, blank)
    assert len(matches) == 0
    assert matches.fixed.shape == (0, 2)


def test_models_are_built_once() -> None:
    name = XFeatLighterGlue.name
    assert matchers.matcher(name) is matchers.matcher(name)


def test_an_unknown_matcher_is_named() -> None:
    with pytest.raises(SettingsError, match="xfeat-lighterglue"):
        matchers.matcher("superglue")
