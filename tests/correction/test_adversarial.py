"""Pairs made wrong on purpose: none is passed; and what is right is neither refused nor disturbed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from correction import Volume, correct, disturbed, estimate, methods
from correction.apply import warp
from correction.engine import Correction
from correction.estimate import Candidate
from correction.grid import Frame, Grid
from correction.phantom import PhantomCase, head_case
from correction.quality import Level
from correction.signals import Judge
from dicom_node.headers import files_below, read_series
from dicom_node.load import load, load_reference

DataSet = Callable[[str], Path]

# what is wrong shows at every smoothness and resolution: one is enough, and quicker
QUICK = methods.clinical().override(
    ["air=false", "near_bending=150", "coarse_voxel_mm=3", "judge_voxel_mm=3"]
)
WRONG: dict[str, Callable[[Volume], Volume]] = {
    "20 mm along phase encode": partial(disturbed.shifted, by_lps_mm=(0.0, 20.0, 0.0)),
    "20 mm along the body": partial(disturbed.shifted, by_lps_mm=(0.0, 0.0, 20.0)),
    "20 mm to the left": partial(disturbed.shifted, by_lps_mm=(20.0, 0.0, 0.0)),
    "swapped axes": disturbed.swapped,
    "front to back": partial(disturbed.mirrored, axis="j"),
    "upside down": partial(disturbed.mirrored, axis="k"),
    "noise": disturbed.noise,
    "half a field of view": partial(disturbed.halved, axis="k"),
}


@pytest.fixture(scope="module")
def case() -> PhantomCase:
    return head_case(1, voxel_mm=(3.0, 3.0, 4.0), reference_voxel_mm=(2.5, 2.5, 4.0))


@pytest.fixture(scope="module")
def right(case: PhantomCase) -> Correction:
    return correct(case.b0, case.reference, "j", QUICK)


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_reference_is_never_passed(case: PhantomCase, how: str) -> None:
    result = correct(case.b0, WRONG[how](case.reference), "j", QUICK)
    assert result.verdict.level is not Level.PASS
    assert result.verdict.reasons
    assert float(result.jacobian.min()) > 0


def test_a_wrong_phase_encode_axis_is_never_passed(case: PhantomCase) -> None:
    assert correct(case.b0, case.reference, "i", QUICK).verdict.level is not Level.PASS


def test_a_right_pair_passes_and_is_corrected(case: PhantomCase, right: Correction) -> None:
    assert right.verdict.level is Level.PASS
    assert right.quality.remaining_along_after_mm < 0.5 * right.quality.remaining_along_before_mm
    assert right.quality.edges_after > right.quality.edges_before


def test_an_undistorted_image_stays_within_a_third_of_a_voxel(case: PhantomCase) -> None:
    result = correct(case.undistorted, case.reference, "j", QUICK)
    assert result.quality.displacement_max_mm < 0.3 * 3.0
    assert result.verdict.level is Level.PASS


def test_a_lesion_that_only_the_b0_shows_keeps_the_volume_that_the_distortion_left_it(
    case: PhantomCase,
) -> None:
    b0, lesion = disturbed.with_lesion(case.b0, (18.0, 22.0, 8.0), 11.0, 2.2)
    result = correct(b0, case.reference, "j", QUICK)
    ball = case.b0.with_data(lesion.float())
    found_ml, true_ml = (float(warp(ball, u).data.sum()) for u in (result.displacement, case.displacement_mm))
    assert found_ml == pytest.approx(true_ml, rel=0.1)
    assert result.verdict.level is Level.PASS


class _Bent:
    """The shift of another field, times a factor, plus a constant along phase encode."""

    def __init__(self, field: estimate.Field, factor: float, offset_mm: float) -> None:
        self._field, self._factor, self._offset_mm = field, factor, offset_mm

    def vectors(self, frame: Frame, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        vectors, jacobian = self._field.vectors(frame, grid)
        vectors = self._factor * vectors
        vectors[2] += self._offset_mm
        return vectors, 1 + self._factor * (jacobian - 1)


def test_what_remains_tells_too_much_and_too_little_from_enough(case: PhantomCase) -> None:
    frame, settings = Frame.of(case.b0, "j"), methods.clinical()
    pair = estimate.Pair.of(frame, case.b0, case.reference, settings)
    judge = Judge(estimate.scene(pair, settings.judge_voxel_mm, settings), frame, settings)
    field = estimate.coarse_search(pair, settings, None).fit.field

    def remaining_mm(factor: float, offset_mm: float = 0.0) -> float:
        return judge.inspect(Candidate("bent", _Bent(field, factor, offset_mm)), None).along_mm

    enough = remaining_mm(1.0)
    assert enough < 0.6
    assert remaining_mm(2.0) > 2 * enough
    assert remaining_mm(0.4) > 2 * enough
    assert remaining_mm(-1.0) > 4 * enough
    assert remaining_mm(1.0, offset_mm=3.0) == pytest.approx(3.0, abs=0.5)


def _series(folder: Path, dwi: int, reference: int) -> tuple[Volume, Volume, str]:
    parts = {
        found[0].series.series_number: found
        for found in read_series(list(files_below([folder]))).series.values()
    }
    loaded = load(parts[dwi])
    encoding = loaded.facts.phase_encoding
    assert encoding is not None
    return loaded.volume(loaded.lowest_b()[0]), load_reference(parts[reference]), encoding.voxel_axis


@pytest.mark.slow
def test_the_reference_of_another_patient_is_never_passed(data_set: DataSet) -> None:
    b0, own, axis = _series(data_set("siemens-xa30-enhanced"), 17, 6)
    _, other, _ = _series(data_set("uih"), 9, 2)
    assert correct(b0, own, axis, QUICK).verdict.level is Level.PASS
    result = correct(b0, disturbed.foreign(other, b0), axis, QUICK)
    assert result.verdict.level is not Level.PASS


@pytest.mark.slow
def test_the_prostate_of_another_patient_is_never_passed(data_set: DataSet) -> None:
    b0, own, axis = _series(data_set("prostatex-0218"), 8, 5)
    _, other, _ = _series(data_set("prostatex-0000"), 6, 4)
    assert correct(b0, own, axis, QUICK).verdict.level is not Level.REJECT
    result = correct(b0, disturbed.foreign(other, b0), axis, QUICK)
    assert result.verdict.level is not Level.PASS
