"""The choice among candidate fields, and the landmarks that are kept out of it."""

import torch

from correction import choice, methods
from correction.landmarks import FrameLandmarks
from correction.signals import Signals

NOTHING = Signals("nothing", 0.80, 0.050)


def test_a_field_that_structure_asks_for_may_cost_a_hair_of_agreement() -> None:
    assert choice.choose([NOTHING, Signals("a", 0.799, 0.045)], methods.clinical()) == 1
    assert choice.choose([NOTHING, Signals("a", 0.797, 0.045)], methods.clinical()) == 0


def test_nothing_stays_unless_a_field_beats_it_in_both_signals() -> None:
    settings = methods.clinical()
    over_fitted = Signals("a", 0.79, 0.030)
    unlike = Signals("b", 0.90, 0.050)
    good, better = Signals("c", 0.83, 0.045), Signals("d", 0.84, 0.046)
    assert choice.choose([NOTHING, over_fitted, unlike], settings) == 0
    assert choice.choose([NOTHING, over_fitted, good, better, unlike], settings) == 3


def test_a_hair_is_not_worth_moving_an_image() -> None:
    assert choice.choose([NOTHING, Signals("a", 0.801, 0.0495)], methods.clinical()) == 0


def test_a_small_distortion_that_structure_sees_is_worth_correcting() -> None:
    assert choice.choose([NOTHING, Signals("a", 0.804, 0.046)], methods.clinical()) == 1


def test_where_fields_agree_alike_the_one_that_leaves_less_structure_is_taken() -> None:
    stiff, bending = Signals("stiff", 0.8201, 0.045), Signals("bending", 0.82, 0.042)
    assert choice.choose([NOTHING, stiff, bending], methods.clinical()) == 2
    over_fitted = Signals("over-fitted", 0.81, 0.041)
    assert choice.choose([NOTHING, stiff, bending, over_fitted], methods.clinical()) == 2


def test_of_equals_the_earlier_and_simpler_one_is_taken() -> None:
    good = Signals("a", 0.85, 0.04)
    assert choice.choose([NOTHING, good, good], methods.clinical()) == 1


def _landmarks(count: int) -> FrameLandmarks:
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 160
    return FrameLandmarks(points, torch.arange(count).float(), torch.ones(count))


def test_landmarks_are_held_out_by_whole_cells() -> None:
    every = _landmarks(3000)
    used, held_out = choice.hold_out(every)
    assert used is not None
    assert held_out is not None
    assert len(used.weight) + len(held_out.weight) == 3000
    assert 0.1 < len(held_out.weight) / 3000 < 0.25
    cells = [
        {tuple(cell) for cell in torch.floor(part.fixed_mm / choice.CELL_MM).long().tolist()}
        for part in (used, held_out)
    ]
    assert not cells[0] & cells[1]


def test_few_landmarks_are_all_used() -> None:
    every = _landmarks(60)
    assert choice.hold_out(every) == (every, None)
    assert choice.hold_out(None) == (None, None)
