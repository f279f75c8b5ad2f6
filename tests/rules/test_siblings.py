"""Which series take over the field of another."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from made_series import box, dwi, minutes, t2, trace

from rules.facts import PhaseAxis, PhaseEncoding, SeriesFacts
from rules.pair import Pairing, PairingPolicy
from rules.siblings import same_grid
from rules.study import StudyDecision, decide_study


def decided(*series: SeriesFacts) -> StudyDecision:
    """The decision of a study with a T2; any order of arrival gives the same."""
    found = [decide_study(order) for order in permutations([*series, t2()])]
    assert all(one.siblings == found[0].siblings for one in found)
    return found[0]


def test_a_trace_series_takes_over_the_field_of_its_dwi_and_has_no_outcome_of_its_own():
    decision = decided(dwi(), trace())
    assert set(decision.outcomes) == {"1.2.10"}
    assert decision.carried("1.2.10") == ("1.2.11",)
    assert decision.carried("1.2.11") == ()


def test_maps_are_never_warped():
    adc = trace(image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), description="DWI AP_ADC")
    assert decided(dwi(), adc).carried("1.2.10") == ()


def test_a_motion_corrected_copy_is_not_corrected_beside_its_source():
    copy = dwi(series_uid="1.2.12", image_type=("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "MOCO"))
    assert decided(dwi(), copy).carried("1.2.10") == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"box": box(centre=(0, 0, 3))}, "its slices do not lie where those of series 10 lie"),
        ({"rows": 144, "columns": 144}, "its slices do not lie where those of series 10 lie"),
        ({"box": None}, "its slices do not lie where those of series 10 lie"),
        ({"geometry_problem": "a slice is missing"}, "its slices form no regular volumes"),
        ({"b_values": (None, 1000.0)}, "not all of its volumes carry a b-value"),
        (
            {"phase_encoding": PhaseEncoding(PhaseAxis.COLUMN, False, "CSA")},
            "its phase encoding is not that of series 10",
        ),
        (
            {"phase_encoding": PhaseEncoding(PhaseAxis.ROW, None, "public")},
            "its phase encoding is not that of series 10",
        ),
    ],
)
def test_a_trace_that_the_field_does_not_fit_is_left_alone_with_the_reason(
    changes: dict[str, Any], told: str
):
    decision = decided(dwi(), trace(**changes))
    assert decision.carried("1.2.10") == ()
    assert decision.siblings["1.2.11"].obstacle == told


@pytest.mark.parametrize("encoding", [None, PhaseEncoding(PhaseAxis.COLUMN, None, "public")])
def test_a_trace_whose_header_lost_the_polarity_is_still_of_the_same_epi(encoding: PhaseEncoding | None):
    assert decided(dwi(), trace(phase_encoding=encoding)).carried("1.2.10") == ("1.2.11",)


def test_of_two_runs_each_trace_follows_its_own():
    again = dwi(series_uid="1.2.20", series_number=20, acquired=minutes(10))
    its_trace = trace(series_uid="1.2.21", series_number=21, acquired=minutes(10))
    decision = decided(dwi(), trace(), again, its_trace)
    assert decision.carried("1.2.10") == ("1.2.11",)
    assert decision.carried("1.2.20") == ("1.2.21",)


def test_the_field_is_estimated_on_the_series_with_the_lowest_b():
    """A protocol that keeps b = 0 in the trace series alone."""
    weighted = dwi(b_values=(1000.0, 1000.0), directionalities=())
    decision = decided(weighted, trace(b_values=(0.0, 1000.0)))
    assert isinstance(decision.outcomes["1.2.11"], Pairing)
    assert decision.carried("1.2.11") == ("1.2.10",)
    assert set(decision.outcomes) == {"1.2.11"}  # the directional series ends with the job of its lead


def test_without_a_reference_neither_is_corrected_and_both_are_told():
    weighted = dwi(b_values=(1000.0, 1000.0), directionalities=())
    alone = decide_study([weighted, trace(b_values=(0.0, 1000.0))], PairingPolicy())
    assert set(alone.outcomes) == {"1.2.10", "1.2.11"}
    assert not any(isinstance(outcome, Pairing) for outcome in alone.outcomes.values())


def test_grids_are_compared_where_the_voxels_lie():
    one = dwi()
    assert same_grid(one, one)
    assert same_grid(one, replace(one, box=box(centre=(0.01, 0, 0))))  # DS text rounds
    assert not same_grid(one, replace(one, box=box(centre=(3, 0, 0))))
    assert not same_grid(one, replace(one, slices=38))
