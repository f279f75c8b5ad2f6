"""Real anatomy with a known smooth warp, in another contrast and on another grid than its reference."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from correction import Volume, correct, methods
from correction.phantom import warped

DataSet = Callable[[str], Path]


def _nifti(path: Path) -> Volume:
    """(X, Y, Z) RAS → (Z, Y, X) LPS."""
    image = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return Volume.from_numpy(np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0), affine)


def _thinned(volume: Volume, step: int) -> Volume:
    """In-plane means of step × step voxels."""
    data = torch.nn.functional.avg_pool2d(volume.data[:, None], step)[:, 0]
    affine = volume.affine.copy()
    affine[:3, 3] += (affine[:3, 0] + affine[:3, 1]) * (step - 1) / 2
    affine[:3, :2] *= step
    return Volume(data, affine)


@pytest.fixture(scope="module")
def head(data_set: DataSet) -> dict[str, Volume]:
    folder = data_set("open_ms_long01")
    return {name: _nifti(folder / f"{name}.nii.gz") for name in ("flair", "t1", "t2", "brainmask")}


# shift in voxels of the distorted image, smoothness in mm; step 3 makes a b0-like grid of 2.2 mm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "voxels", "smoothness_mm", "reference", "step", "axis"),
    [
        (100, 20, 30.0, "t2", 1, "j"),
        (101, -20, 60.0, "t2", 1, "j"),
        (102, 10, 25.0, "t1", 1, "j"),
        (103, 20, 70.0, "t2", 3, "j"),
        (104, -6, 35.0, "t2", 3, "i"),
    ],
)
def test_a_known_warp_of_up_to_twenty_voxels_is_brought_below_a_third(
    head: dict[str, Volume],
    seed: int,
    voxels: float,
    smoothness_mm: float,
    reference: str,
    step: int,
    axis: str,
) -> None:
    image = head["flair"] if step == 1 else _thinned(head["flair"], step)
    tissue = head["brainmask"] if step == 1 else _thinned(head["brainmask"], step)
    inside = tissue.data > 0.5
    shift_mm = voxels * image.spacing_mm["ijk".index(axis)]
    distorted, truth = warped(image, axis, shift_mm, smoothness_mm, seed)
    result = correct(distorted, head[reference], axis)
    before = float(truth[:, inside].square().sum(0).mean().sqrt())
    after = float((result.displacement - truth)[:, inside].square().sum(0).mean().sqrt())
    assert after < before / 3
    assert float(result.jacobian.min()) > 0
    # 43 mm of shift are found, and still nothing that a scanner does
    assert (result.verdict.level == "reject") == (abs(shift_mm) > 30)


def test_an_undistorted_flair_is_left_within_a_third_of_a_voxel_of_its_place(head: dict[str, Volume]) -> None:
    image = _thinned(head["flair"], 3)
    result = correct(image, head["t2"], "j")
    assert result.quality.displacement_p95_mm < 0.3 * image.spacing_mm[1]


def test_a_shifted_real_reference_is_rejected(head: dict[str, Volume]) -> None:
    image, truth = warped(_thinned(head["flair"], 3), "j", 8.0, 40.0, 7)
    affine = head["t2"].affine.copy()
    affine[:3, 3] += [0.0, 0.0, 20.0]
    result = correct(image, Volume(head["t2"].data, affine), "j", methods.clinical())
    assert result.verdict.level == "reject"
    assert float(truth.abs().max()) > 5
