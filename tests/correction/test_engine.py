"""The whole engine: physics with a known field, geometry, repeatability, and input it must refuse."""

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch

from correction import (
    Correction,
    Landmarks,
    NoOverlap,
    SettingsError,
    ShapeError,
    UnusableImage,
    Volume,
    correct,
    methods,
)  # fmt: skip
from correction.landmarks import find_landmarks
from correction.phantom import PhantomCase, head_case

# one smoothness: geometry and physics need no last tenth of a millimetre
QUICK = methods.clinical().override(["near_bending=150", "iterations=20"])
COARSE = {"voxel_mm": (3.0, 3.0, 4.0), "reference_voxel_mm": (2.5, 2.5, 4.0)}


def _along(case: PhantomCase, result: Correction) -> tuple[np.ndarray, np.ndarray]:
    """Found and true shift along the phase-encode axis, mm, in tissue."""
    unit = case.b0.axes[:, {"i": 0, "j": 1, "k": 2}[case.phase_encoding[0]]]
    found = np.tensordot(unit, result.displacement.numpy(), 1)
    true = np.tensordot(unit, case.displacement_mm.numpy(), 1)
    return found[case.tissue.numpy()], true[case.tissue.numpy()]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture(scope="module")
def case() -> PhantomCase:
    return head_case(0)


@pytest.fixture(scope="module")
def corrected(case: PhantomCase) -> Correction:
    return correct(case.b0, case.reference, case.phase_encoding, readout_s=0.04)


def test_the_phantoms_error_falls_below_half_a_voxel(case: PhantomCase, corrected: Correction) -> None:
    found, true = _along(case, corrected)
    half_voxel = case.b0.spacing_mm[1] / 2
    assert _rms(true) > 2 * half_voxel
    assert _rms(found - true) < half_voxel
    assert corrected.verdict.level == "pass"


def test_the_field_lies_along_phase_encode_and_nothing_folds(corrected: Correction) -> None:
    assert float(corrected.displacement[[0, 2]].abs().max()) == 0.0
    assert float(corrected.jacobian.min()) > 0
    assert corrected.quality.folded_fraction == 0.0


def test_the_jacobian_is_the_stretch_of_the_field(case: PhantomCase, corrected: Correction) -> None:
    slope = torch.gradient(corrected.displacement[1], dim=1)[0] / case.b0.spacing_mm[1]
    inner = corrected.mask.clone()
    inner[:, :2] = inner[:, -2:] = False
    assert float((1 + slope - corrected.jacobian)[inner].abs().mean()) < 0.01


def test_the_result_tells_what_was_done(corrected: Correction) -> None:
    assert corrected.settings == methods.clinical()
    assert set(corrected.seconds) == {"prepare", "estimate", "judge", "apply"}
    assert corrected.reference.shape == corrected.b0.shape
    assert corrected.mask.shape == corrected.seen.shape == corrected.b0.shape
    assert not corrected.reference.data[~corrected.seen].any()
    figures = json.loads(json.dumps(asdict(corrected.quality)))
    assert figures["candidates"][0]["name"] == "nothing"
    assert figures["agreement_after"] > figures["agreement_before"] + 0.02
    assert 50 < figures["hz_p99"] < 300
    assert corrected.landmarks.found == 0


def test_modulation_brings_the_intensities_closer(case: PhantomCase, corrected: Correction) -> None:
    true = case.undistorted.data
    plain = corrected.apply(case.b0).data
    modulated = corrected.apply(case.b0, modulate=True).data
    errors = [
        float((image - true)[case.tissue].square().mean()) for image in (case.b0.data, plain, modulated)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_another_volume_on_the_same_grid_gets_the_same_field_and_another_grid_is_refused(
    case: PhantomCase, corrected: Correction
) -> None:
    ramp = case.b0.with_data(case.b0.data * 2 + 1)
    inside = corrected.mask
    doubled = corrected.apply(ramp).data
    assert torch.allclose(doubled[inside], 2 * corrected.apply(case.b0).data[inside] + 1, atol=1e-2)
    with pytest.raises(ShapeError):
        corrected.apply(Volume(torch.zeros(3, 4, 5), np.eye(4)))


def test_reversing_the_phase_sign_reverses_the_shift() -> None:
    plus, minus = (head_case(2, phase_encoding=pe, **COARSE) for pe in ("j", "j-"))
    (found, true), (reversed_, _) = (
        _along(drawn, correct(drawn.b0, drawn.reference, drawn.phase_encoding, QUICK))
        for drawn in (plus, minus)
    )
    assert _rms(found - true) < 0.4 * _rms(true)
    assert _rms(reversed_ + true) < 0.4 * _rms(true)
    assert _rms(found + reversed_) < 0.25 * _rms(found - reversed_)


def _turned(volume: Volume, how: str) -> Volume:
    """The same voxels at the same places in the patient, stored in another order."""
    data, affine = volume.data, volume.affine.copy()
    if how == "flipped":
        for axis in (1, 2):  # rows and columns of the array run the other way
            data = data.flip(axis)
            column = 2 - axis
            affine[:3, 3] += affine[:3, column] * (volume.shape[axis] - 1)
            affine[:3, column] *= -1
    if how == "transposed":
        data, affine = data.permute(2, 0, 1).contiguous(), affine[:, [1, 2, 0, 3]]
    return Volume(data.contiguous(), affine)


@pytest.fixture(scope="module")
def oblique() -> tuple[PhantomCase, Correction]:
    drawn = head_case(4, rotation_deg=25.0, **COARSE)
    return drawn, correct(drawn.b0, drawn.reference, "j", QUICK)


@pytest.mark.parametrize(("how", "axis", "undo"), [
    ("flipped", "j", lambda t: t.flip(-2).flip(-1)),
    ("transposed", "i", lambda t: t.permute(0, 2, 3, 1)),
])  # fmt: skip
def test_storage_order_does_not_matter_in_patient_coordinates(
    how: str, axis: str, undo: Callable[[torch.Tensor], torch.Tensor], oblique: tuple[PhantomCase, Correction]
) -> None:
    drawn, plain = oblique
    turned = correct(_turned(drawn.b0, how), _turned(drawn.reference, how), axis, QUICK)
    difference = (undo(turned.displacement) - plain.displacement)[:, drawn.tissue]
    assert float(difference.square().sum(0).mean().sqrt()) < 0.25
    found, true = _along(drawn, plain)
    assert _rms(found - true) < 0.4 * _rms(true)


def test_undistorted_images_are_left_where_they_are() -> None:
    drawn = head_case(1, largest_shift_mm=0.0, **COARSE)
    result = correct(drawn.b0, drawn.reference, "j", QUICK)
    assert result.quality.displacement_p95_mm < 0.3 * 3.0
    assert result.verdict.level == "pass"  # there was nothing to correct, and that is no fault


def test_the_same_input_gives_the_same_field(oblique: tuple[PhantomCase, Correction]) -> None:
    drawn, plain = oblique
    again = correct(drawn.b0, drawn.reference, "j", QUICK)
    assert torch.equal(again.displacement, plain.displacement)


def test_thick_slices_and_a_whole_field_of_landmarks_are_taken() -> None:
    drawn = head_case(6, voxel_mm=(2.0, 2.0, 6.0), reference_voxel_mm=(2.0, 2.0, 6.0))
    random = np.random.default_rng(0)
    where = np.argwhere(drawn.tissue.numpy())
    where = where[random.choice(len(where), 800, replace=False)]
    fixed = where[:, ::-1] @ drawn.b0.affine[:3, :3].T + drawn.b0.affine[:3, 3]
    shift = drawn.displacement_mm.numpy()[:, where[:, 0], where[:, 1], where[:, 2]].T
    landmarks = Landmarks(fixed, fixed + shift + random.normal(0, 0.4, shift.shape), np.ones(800), "planted")
    errors = []
    for given in (None, landmarks):
        result = correct(drawn.b0, drawn.reference, "j", QUICK, landmarks=given)
        found, true = _along(drawn, result)
        errors.append(_rms(found - true))
    assert errors[1] < errors[0] < 0.5 * _rms(true)
    assert result.landmarks.matcher == "planted"
    assert result.landmarks.count > 100


def test_blocks_of_mind_judge_and_have_no_say_in_the_field(oblique: tuple[PhantomCase, Correction]) -> None:
    case, alone = oblique
    blocks = find_landmarks(case.b0, case.reference, case.phase_encoding, "mind-blocks")
    judged = correct(case.b0, case.reference, case.phase_encoding, QUICK, blocks)
    assert torch.equal(judged.displacement, alone.displacement)
    assert alone.quality.held_out_landmarks_after_mm is None
    after, before = judged.quality.held_out_landmarks_after_mm, judged.quality.held_out_landmarks_before_mm
    assert after is not None
    assert before is not None
    assert after < before


def test_progress_is_told_stage_by_stage() -> None:
    drawn = head_case(0, **COARSE)
    seen: list[tuple[str, float]] = []
    few = QUICK.override(["iterations=2"])
    correct(drawn.b0, drawn.reference, "j", few, progress=lambda stage, done: seen.append((stage, done)))
    assert [stage for stage, done in seen if done == 1.0] == ["prepare", "estimate", "judge", "apply"]
    assert all(0.0 <= done <= 1.0 for _, done in seen)


def _blank(volume: Volume, value: float) -> Volume:
    return volume.with_data(torch.full_like(volume.data, value))


def test_input_that_carries_nothing_is_refused_by_name(case: PhantomCase) -> None:
    with pytest.raises(UnusableImage, match=r"b = 0 is constant"):
        correct(_blank(case.b0, 7.0), case.reference)
    with pytest.raises(UnusableImage, match="reference has no finite voxel"):
        correct(case.b0, _blank(case.reference, float("nan")))
    moved = case.reference.affine.copy()
    moved[:3, 3] += 500.0
    with pytest.raises(NoOverlap, match="0 %"):
        correct(case.b0, Volume(case.reference.data, moved))
    with pytest.raises(SettingsError, match="phase_encoding"):
        correct(case.b0, case.reference, phase_encoding="y")
