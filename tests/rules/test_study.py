"""What becomes of a whole study."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from made_series import box, dwi, minutes, t1, t2, trace

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


def test_no_sentence_quotes_a_description_or_a_protocol():
    """Some sites type names into them; sentences are stored and told."""
    field_map = t2(series_uid="1.2.2", series_number=2, description="field map")
    study = (*STUDY, field_map, t2(series_uid="1.2.3", slices=5, series_number=3))
    named = [
        replace(facts, description=f"{facts.description} Mustermann", protocol_name="DWI Mustermann")
        for facts in study
    ]
    before, after = decide_study(study), decide_study(named)
    kinds = {uid: found.series_class for uid, found in before.classifications.items()}
    assert {uid: found.series_class for uid, found in after.classifications.items()} == kinds
    assert set(after.outcomes) == {"1.2.10"}
    told = [found.reason for found in after.classifications.values()]
    for here in (named, [named[0], named[-1]]):
        outcome = decide_study(here).outcomes["1.2.10"]
        assert isinstance(outcome, Pairing | NoPairing)
        told += [candidate.why for candidate in outcome.candidates]
        told += [outcome.reason.text] if isinstance(outcome, NoPairing) else []
    assert any("series 5" in sentence for sentence in told)
    assert any("series 3" in sentence for sentence in told)
    assert "mustermann" not in " ".join(told).casefold()


# --- the protocols that clinics run -------------------------------------------------------------------------


def test_b0_and_trace_and_adc_without_directional_images():
    """A stroke protocol: the only copy of its b-values is the trace series."""
    stored = trace(b_values=(0.0, 1000.0), directionalities=())
    adc = trace(series_uid="1.2.13", image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    decision = decide_study([stored, adc, t2()])
    assert isinstance(decision.outcomes["1.2.11"], Pairing)
    assert set(decision.outcomes) == {"1.2.11"}


def test_readout_segmented_and_multi_shot_epi_are_corrected():
    resolve = dwi(sequence_name="*re_b1000", description="RESOLVE", protocol_name="RESOLVE")
    multi_shot = dwi(series_uid="1.2.20", scan_options=("EPI_GEMS",), description="MUSE 4 shots")
    decision = decide_study([resolve, multi_shot, t2()])
    assert all(isinstance(outcome, Pairing) for outcome in decision.outcomes.values())
    assert len(decision.outcomes) == 2


def test_a_reduced_field_of_view_is_paired_by_its_own_small_box():
    zoomed = dwi(box=box((216, 80, 60)), columns=72, rows=27, description="ZOOMit DWI")
    narrow = t2(box=box((230, 100, 66)))  # far too narrow for a full field of view
    assert isinstance(decide_study([zoomed, narrow]).outcomes["1.2.10"], Pairing)
    assert isinstance(decide_study([dwi(), narrow]).outcomes["1.2.10"], NoPairing)


def test_a_body_protocol_without_b0_is_led_by_its_lowest_b():
    liver = dwi(b_values=(50.0, 400.0, 800.0), directionalities=(), body_part="LIVER")
    assert isinstance(decide_study([liver, t2(body_part="LIVER")]).outcomes["1.2.10"], Pairing)
    none_low = dwi(b_values=(400.0, 800.0), directionalities=(), body_part="LIVER")
    told = decide_study([none_low, t2(body_part="LIVER")]).outcomes["1.2.10"]
    assert isinstance(told, Reason)
    assert told.code is Code.NO_LOW_B


def test_several_stations_each_find_the_reference_that_lies_there():
    stations = [
        dwi(series_uid=f"1.2.{number}", series_number=number, box=box(centre=(0, 0, z)))
        for number, z in ((20, 0), (21, 250), (22, 500))
    ]
    references = [
        t2(series_uid=f"1.2.{number}", series_number=number, box=box((230, 230, 132), centre=(0, 0, z)))
        for number, z in ((30, 0), (31, 250))
    ]
    outcomes = decide_study([*stations, *references]).outcomes
    assert isinstance(outcomes["1.2.20"], Pairing)
    assert outcomes["1.2.20"].reference.series_uid == "1.2.30"
    assert isinstance(outcomes["1.2.21"], Pairing)
    assert outcomes["1.2.21"].reference.series_uid == "1.2.31"
    assert isinstance(outcomes["1.2.22"], NoPairing)


def test_a_dwi_repeated_after_motion_is_corrected_as_the_first_is():
    again = dwi(series_uid="1.2.20", series_number=20, acquired=minutes(8), description="DWI AP repeat")
    outcomes = decide_study([dwi(), again, t2()]).outcomes
    assert [type(outcomes[uid]) for uid in ("1.2.10", "1.2.20")] == [Pairing, Pairing]


def test_of_a_reference_repeated_after_motion_the_later_is_taken():
    again = t2(series_uid="1.2.9", series_number=9)
    outcome = decide_study([dwi(), t2(), again]).outcomes["1.2.10"]
    assert isinstance(outcome, Pairing)
    assert outcome.reference.series_uid == "1.2.9"


def test_of_two_copies_the_one_with_the_dwis_gradient_correction_is_taken():
    """The same acquisition exported with and without correction of gradient nonlinearity."""
    plain = t2(series_uid="1.2.7", series_number=7, gradient_nonlinearity="ND")
    outcome = decide_study([dwi(), t2(series_number=8), plain]).outcomes["1.2.10"]
    assert isinstance(outcome, Pairing)
    assert outcome.reference.series_uid == "1.2.7"
    assert "corrected for gradient nonlinearity, unlike the DWI" in outcome.candidates[1].why
