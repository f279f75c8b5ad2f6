"""The verdict's figures, limits and words."""

from dataclasses import replace

import pytest
import torch

from correction import quality
from correction.landmarks import Consensus, nobody
from correction.quality import Evidence, Level, Quality
from correction.rigid import Pose
from correction.signals import Inspection, Signals

GOOD = Quality(
    chosen="coarse", agreement_before=0.8, agreement_after=0.85, structure_before=0.06, structure_after=0.04,
    edges_before=0.8, edges_after=0.9, remaining_along_before_mm=2.5, remaining_along_after_mm=0.4,
    remaining_far_before_fraction=0.5, remaining_far_after_fraction=0.05,
    remaining_across_mm=0.5, held_out_landmarks_before_mm=2.4, held_out_landmarks_after_mm=0.7,
    held_out_landmarks_slope=1.0,
    landmark_inlier_fraction=0.8, two_estimates_mm=0.9, off_phase_encode_fraction=0.0, covered_fraction=1.0,
    reference_shift_mm=(0.0, 0.0, 0.0), reference_turn_deg=(0.0, 0.0, 0.0),
    displacement_rms_mm=2.5, displacement_p95_mm=5.0, displacement_max_mm=9.0,
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
        ({"remaining_across_mm": 3.0}, Level.REVIEW, "anatomy_differs"),
        ({"remaining_across_mm": 4.2}, Level.REJECT, "anatomy_differs"),
        ({"remaining_across_mm": 1.4, "remaining_along_before_mm": 0.6}, Level.REVIEW, "moved_across"),
        ({"remaining_along_after_mm": 1.6}, Level.REVIEW, "still_apart"),
        ({"remaining_along_after_mm": 2.6}, Level.REJECT, "still_apart"),
        ({"remaining_along_before_mm": 0.1}, Level.REVIEW, "worse_than_before"),
        ({"remaining_far_after_fraction": 0.45}, Level.REVIEW, "parts_apart"),
        (
            {"remaining_far_before_fraction": 0.05, "remaining_far_after_fraction": 0.2},
            Level.REVIEW,
            "parts_worse",
        ),
        ({"held_out_landmarks_after_mm": 2.1}, Level.REVIEW, "landmarks_disagree"),
        ({"held_out_landmarks_before_mm": 0.4}, Level.REVIEW, "landmarks_worse"),
        ({"held_out_landmarks_slope": 0.6}, Level.REVIEW, "over_corrected"),
        ({"held_out_landmarks_slope": -1.0}, Level.REJECT, "over_corrected"),
        ({"landmark_inlier_fraction": 0.12}, Level.REJECT, "few_common_points"),
        ({"two_estimates_mm": 3.0}, Level.REVIEW, "estimates_disagree"),
        ({"structure_after": 0.0598, "agreement_after": 0.806}, Level.REVIEW, "weak_evidence"),
        ({"covered_fraction": 0.4}, Level.REVIEW, "reference_too_small"),
        ({"displacement_median_mm": (0.0, -19.0, 0.0)}, Level.REJECT, "not_aligned"),
        ({"displacement_p95_mm": 20.0}, Level.REVIEW, "implausible_shift"),
        ({"strained_fraction": 0.08}, Level.REVIEW, "strained"),
        ({"folded_fraction": 0.01}, Level.REJECT, "folded"),
        (
            {"chosen": "nothing", "remaining_along_after_mm": 1.2},
            Level.REVIEW,
            "nothing_chosen",
        ),
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
    verdict = quality.judge(replace(GOOD, strained_fraction=0.08, remaining_across_mm=4.2))
    assert verdict.level is Level.REJECT
    assert [reason.code for reason in verdict.reasons] == ["anatomy_differs", "strained"]


def test_an_image_that_needs_nothing_passes_without_being_moved() -> None:
    still = replace(
        GOOD, chosen="nothing", structure_after=GOOD.structure_before, remaining_along_before_mm=0.2,
        remaining_along_after_mm=0.2,
    )  # fmt: skip
    assert quality.judge(still).level is Level.PASS


def test_figures_that_were_not_taken_ask_for_nothing() -> None:
    without = replace(
        GOOD, held_out_landmarks_before_mm=None, held_out_landmarks_after_mm=None,
        held_out_landmarks_slope=None, landmark_inlier_fraction=None, two_estimates_mm=None,
    )  # fmt: skip
    assert quality.judge(without).level is Level.PASS


def _measured(displacement: torch.Tensor, mask: torch.Tensor) -> Quality:
    signals = (Signals("nothing", 0.7, 0.05), Signals("coarse", 0.8, 0.04))
    evidence = Evidence(Inspection(0.7, 2.0, 0.6, 0.5, None), Inspection(0.8, 0.5, 0.4, 0.1, None))
    jacobian = torch.ones(mask.shape)
    jacobian[0] = 0.4
    return quality.measure(
        1, signals, evidence, displacement, jacobian, mask, 1.0, (0.0, 1.0, 0.0), 10.0, Pose()
    )


def test_figures_are_of_the_head_and_in_their_units() -> None:
    displacement = torch.zeros(3, 4, 5, 6)
    displacement[1] = 3.0
    displacement[0, :, :, 3:] = 4.0  # outside the head
    mask = torch.zeros(4, 5, 6, dtype=torch.bool)
    mask[:, :, :3] = True
    found = _measured(displacement, mask)
    assert found.displacement_rms_mm == pytest.approx(3.0)
    assert found.displacement_median_mm == (0.0, 3.0, 0.0)
    assert found.hz_p99 == pytest.approx(30.0)
    assert found.strained_fraction == pytest.approx(0.25)
    assert found.off_phase_encode_fraction == pytest.approx(0.0)
    assert found.remaining_along_before_mm == 2.0
    everywhere = _measured(displacement, torch.ones_like(mask))
    assert everywhere.off_phase_encode_fraction == pytest.approx(8.0 / (8.0 + 9.0))


def test_inliers_are_counted_among_the_matches_in_the_head() -> None:
    dropped = {"outside the head": 20, "against their neighbours": 30, "folding": 10, "crowded": 25}
    found = Consensus("any", 100, None, None, dropped, (0.0, 0.0))
    assert quality.inlier_fraction(found) == pytest.approx(0.5)
    assert quality.inlier_fraction(nobody()) is None


def test_a_figure_near_its_limit_is_told_apart_from_it() -> None:
    text = quality.judge(replace(GOOD, remaining_across_mm=2.41)).reasons[0].text
    assert "2.41 mm or more from the reference, expected below 2.40 mm" in text
    text = quality.judge(replace(GOOD, remaining_across_mm=3.0)).reasons[0].text
    assert "3.0 mm or more from the reference, expected below 2.4 mm" in text
