"""Shared space of two stacks, in any orientation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_series import SAGITTAL, box
from scipy.spatial.transform import Rotation

from rules.facts import Box
from rules.geometry import covered, tilt_deg

extents = st.tuples(*[st.floats(10, 400)] * 3)
centres = st.tuples(*[st.floats(-150, 150)] * 3)
turns = st.tuples(*[st.floats(-180, 180)] * 3).map(lambda a: Rotation.from_euler("xyz", a, degrees=True))


def turned(b: Box, turn: Rotation) -> Box:
    centre, *axes = turn.apply([b.centre, *b.axes])
    return Box(tuple(centre), tuple(tuple(a) for a in axes), b.extent_mm)


boxes = st.builds(lambda e, c, t: turned(box(e, centre=c), t), extents, centres, turns)


@given(boxes, boxes)
def test_cover_is_a_share(a, b):
    assert 0.0 <= covered(a, b) <= 1.0


@given(boxes, boxes, turns)
def test_cover_does_not_change_when_patient_and_scanner_turn_together(a, b, turn):
    # a sample point on a face may change sides with the last bit
    assert covered(turned(a, turn), turned(b, turn)) == pytest.approx(covered(a, b), abs=0.01)


@given(boxes)
def test_a_stack_covers_itself(a):
    assert covered(a, a) == 1.0


@given(boxes, boxes, st.floats(1.0, 3.0))
@settings(max_examples=50)
def test_a_larger_reference_covers_no_less(a, b, factor):
    larger = Box(b.centre, b.axes, tuple(e * factor for e in b.extent_mm))
    assert covered(a, larger) >= covered(a, b)


def test_a_reference_elsewhere_covers_nothing():
    assert covered(box(), box(centre=(0, 0, 500))) == 0.0


@pytest.mark.parametrize(
    ("dwi_mm", "reference_mm"),
    [
        ((216, 216, 117), (192, 256, 256)),  # siemens-xa30
        ((256, 256, 164), (170, 256, 256)),  # philips-classic
        ((224, 224, 84), (160, 230, 256)),  # uih
        ((260, 211, 72), (200, 200, 72)),  # prostatex-0218: a small reference in a body DWI
    ],
)
def test_air_beside_the_patient_need_not_be_covered(dwi_mm, reference_mm):
    assert covered(box(dwi_mm), box(reference_mm)) > 0.9


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_slices_without_reference_count_in_full(share):
    assert covered(box((216, 216, 120)), box((250, 250, 120 * share))) == pytest.approx(share, abs=0.005)


def test_half_a_head_is_not_covered():
    assert covered(box(), box((108, 250, 250), centre=(54, 0, 0))) == pytest.approx(0.5, abs=0.005)


def test_tilt_is_between_the_slices():
    assert tilt_deg(box(), box(axes=SAGITTAL)) == pytest.approx(90)
    assert tilt_deg(box(), box(axes=((1, 0, 0), (0, -1, 0), (0, 0, -1)))) == pytest.approx(0)
    oblique = turned(box(), Rotation.from_euler("x", 20, degrees=True))
    assert tilt_deg(box(), oblique) == pytest.approx(20)
    assert np.isclose(tilt_deg(oblique, box()), 20)
