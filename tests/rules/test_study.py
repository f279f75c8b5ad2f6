"""What becomes of a whole study."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from made_series import dwi, t1, t2, trace

from rules.classify import SeriesClass
from rules.pair import NoPairing, Pairing, PairingPolicy
from rules.reasons import Code, Reason
from rules.study import decide_study

STUDY = (
    dwi(),
    trace(),
    trace(series_uid="1.2.12", series_number=12, description="DWI AP_CALC_BVAL", b_values=(1600.0,)),
    replace(trace(), series_uid="1.2.13", image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")),
    t2(),
    t1(),
    t2(series_uid="1.2.1", series_number=1, description="localizer"),
)


def test_only_diffusion_series_have_an_outcome():
    decision = decide_study(STUDY)
    assert set(decision.classifications) == {facts.series_uid for facts in STUDY}
    assert set(decision.outcomes) == {"1.2.10"}
    outcome = decision.outcomes["1.2.10"]
    assert isinstance(outcome, Pairing)
    assert outcome.reference.series_uid == "1.2.5"


def test_every_diffusion_series_ends_with_a_reference_or_a_reason():
    blade = dwi(series_uid="1.2.20", scanning_sequence=("SE",), sequence_name="*h2d1")
    high = dwi(series_uid="1.2.21", b_values=(1400.0,), protocol_name="high b")
    decision = decide_study([dwi(), blade, high])
    outcomes = decision.outcomes
    assert isinstance(outcomes["1.2.10"], NoPairing)
    assert isinstance(outcomes["1.2.20"], Reason)
    assert outcomes["1.2.20"].code is Code.NOT_EPI
    assert isinstance(outcomes["1.2.21"], Reason)
    assert outcomes["1.2.21"].code is Code.NO_LOW_B


def test_the_limits_of_the_policy_reach_the_obstacles():
    policy = PairingPolicy(max_lowest_b=1500.0, min_dwi_slices=1)
    decision = decide_study([dwi(b_values=(1400.0,), slices=2), t2()], policy)
    assert isinstance(decision.outcomes["1.2.10"], Pairing)


def test_two_patients_in_one_study_stop_every_correction():
    outcome = decide_study([dwi(), t2(patient_key="patient-b")]).outcomes["1.2.10"]
    assert isinstance(outcome, Reason)
    assert outcome.code is Code.PATIENT_MISMATCH
    assert "patient-b" not in outcome.text


def test_a_study_of_another_patient_changes_nothing():
    stranger = t2(series_uid="1.3.5", study_uid="1.3", patient_key="patient-b")
    outcome = decide_study([dwi(), t1(), stranger]).outcomes["1.2.10"]
    assert isinstance(outcome, Pairing)
    assert outcome.reference.series_uid == "1.2.6"


def test_our_own_output_beside_its_source_triggers_nothing_and_is_no_reference():
    own = dwi(series_uid="1.2.1090", own_output="ImageType says DISTCORR")
    decision = decide_study([dwi(), own, t2()])
    assert decision.classifications["1.2.1090"].series_class is SeriesClass.OWN_OUTPUT
    assert set(decision.outcomes) == {"1.2.10"}


@given(st.permutations(STUDY))
def test_the_order_of_arrival_changes_nothing(series):
    decision, expected = decide_study(series), decide_study(STUDY)
    assert decision.classifications == expected.classifications
    assert decision.outcomes == expected.outcomes
