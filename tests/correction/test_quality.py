"""The verdict: wrong references are not passed, and every figure's limit speaks."""

from dataclasses import replace

import pytest
import torch

from correction import Volume, correct, methods, quality
from correction.phantom import PhantomCase, head_case
from correction.quality import Level, Quality, Signals

GOOD = Quality(
    chosen="coarse", agreement_before=0.8, agreement_after=0.85, structure_before=0.06, structure_after=0.04,
    covered_fraction=1.0, displacement_rms_mm=2.5, displacement_p95_mm=5.0, displacement_max_mm=9.0,
    displacement_median_mm=(0.0, 0.5, 0.0), jacobian_min=0.6, jacobian_max=1.4, folded_fraction=0.0,
    strained_fraction=0.0, hz_p99=80.0, candidates=(),
)  # fmt: skip


def test_good_figures_pass_without_reasons() -> None:
    verdict = quality.judge(GOOD)
    assert verdict.level is Level.PASS
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("change", "level", "code"),
    [
        ({"structure_after": 0.058}, Level.REVIEW, "weak_evidence"),
        ({"structure_before": 0.1, "structure_after": 0.07}, Level.REVIEW, "anatomy_differs"),
        ({"structure_before": 0.12, "structure_after": 0.09}, Level.REJECT, "anatomy_differs"),
        ({"covered_fraction": 0.4}, Level.REVIEW, "reference_too_small"),
        ({"displacement_median_mm": (0.0, -19.0, 0.0)}, Level.REJECT, "not_aligned"),
        ({"displacement_p95_mm": 20.0}, Level.REVIEW, "implausible_shift"),
        ({"strained_fraction": 0.05}, Level.REVIEW, "strained"),
        ({"folded_fraction": 0.01}, Level.REJECT, "folded"),
        ({"chosen": "nothing"}, Level.REVIEW, "nothing_chosen"),
    ],
)
def test_each_limit_gives_its_level_and_a_sentence(
    change: dict[str, object], level: Level, code: str
) -> None:
    verdict = quality.judge(replace(GOOD, **change))
    assert verdict.level is level
    assert [reason.code for reason in verdict.reasons] == [code]
    assert verdict.reasons[0].text.endswith(".")


def test_the_worst_reason_decides_and_stands_first() -> None:
    verdict = quality.judge(replace(GOOD, strained_fraction=0.05, structure_before=0.2, structure_after=0.1))
    assert verdict.level is Level.REJECT
    assert [reason.code for reason in verdict.reasons] == ["anatomy_differs", "strained"]


def test_nothing_stays_unless_a_field_beats_it_in_both_signals() -> None:
    settings = methods.clinical()
    nothing = Signals("nothing", 0.80, 0.050)
    over_fitted = Signals("a", 0.79, 0.030)
    unlike = Signals("b", 0.90, 0.050)
    good, better = Signals("c", 0.83, 0.045), Signals("d", 0.84, 0.046)
    assert quality.choose([nothing, over_fitted, unlike], settings) == 0
    assert quality.choose([nothing, over_fitted, good, better, unlike], settings) == 3


@pytest.fixture(scope="module")
def case() -> PhantomCase:
    return head_case(1, voxel_mm=(3.0, 3.0, 4.0), reference_voxel_mm=(2.5, 2.5, 4.0))


def _moved(volume: Volume, by_mm: tuple[float, float, float]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += by_mm
    return Volume(volume.data, affine)


def _noise(volume: Volume) -> Volume:
    generator = torch.Generator().manual_seed(0)
    return volume.with_data(torch.randn(volume.shape, generator=generator).abs() * 100)


@pytest.mark.parametrize("how", ["shifted along phase encode", "shifted across", "noise", "swapped axes"])
def test_a_wrong_reference_is_never_passed(case: PhantomCase, how: str) -> None:
    reference = {
        "shifted along phase encode": lambda: _moved(case.reference, (0.0, 20.0, 0.0)),
        "shifted across": lambda: _moved(case.reference, (0.0, 0.0, 20.0)),
        "noise": lambda: _noise(case.reference),
        "swapped axes": lambda: Volume(
            case.reference.data.transpose(1, 2).contiguous(), case.reference.affine
        ),
    }[how]()
    result = correct(
        case.b0, reference, "j", methods.clinical().override(["coarse_bending=150", "fine_bending="])
    )
    assert result.verdict.level is not Level.PASS
    assert result.verdict.reasons
    assert float(result.jacobian.min()) > 0
