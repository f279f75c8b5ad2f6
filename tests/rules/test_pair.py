"""Which reference a DWI gets, and what each other series is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_series import SAGITTAL, box, dwi, minutes, t1, t2, trace

from rules.classify import classify
from rules.pair import Filter, NoPairing, Pairing, PairingPolicy, pair
from rules.rank import RANKING, default_order
from rules.reasons import Code
from rules.site import Override, Then


def paired(*candidates, to=None, policy=None):
    policy = policy or PairingPolicy()
    classified = [(facts, classify(facts, policy.overrides)) for facts in candidates]
    return pair(to or dwi(), classified, policy)


def why_not(*candidates, to=None, policy=None):
    """The hard filter and sentence of the one series that is no reference."""
    outcome = paired(*candidates, to=to, policy=policy)
    assert isinstance(outcome, NoPairing)
    return outcome.candidates[0].filter_code, outcome.candidates[0].why


def best(*candidates, to=None, policy=None):
    """Why the winner won, and why the runner-up lost."""
    outcome = paired(*candidates, to=to, policy=policy)
    assert isinstance(outcome, Pairing)
    assert outcome.candidates[0].series_uid == outcome.reference.series_uid
    return outcome.reference, outcome.candidates[1].why


# --- hard filters -----------------------------------------------------------------------------------------


def test_a_t2_beside_the_dwi_is_taken_and_the_sentence_says_why():
    outcome = paired(t2())
    assert isinstance(outcome, Pairing)
    assert outcome.reference == t2()
    assert outcome.candidates[0].why == (
        "the only suitable series: T2, same frame of reference, covers 100 % of the diffusion images, "
        "slices parallel to the DWI's, acquired 20 minutes apart"
    )
    assert len(outcome.candidates[0].rank) == len(RANKING)


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"patient_key": "patient-b"}, Filter.OTHER_PATIENT, "another patient"),
        ({"patient_key": "patient-b", "study_uid": "1.3"}, Filter.OTHER_PATIENT, "another patient"),
        ({"patient_key": "", "study_uid": "1.3"}, Filter.OTHER_PATIENT, "another patient"),
        ({"study_uid": "1.3", "station": "other"}, Filter.OTHER_SESSION, "nothing shows"),
        ({"study_uid": "1.3", "acquired": minutes(240)}, Filter.OTHER_SESSION, "4 hours apart"),
        ({"study_uid": "1.3", "acquired": None}, Filter.OTHER_SESSION, "unknown time"),
        ({"slices": 5}, Filter.TOO_FEW_SLICES, "only 5 slices"),
        ({"voxel_mm": (3.4, 3.4, 3.4)}, Filter.RESOLUTION, "3.4 mm are too coarse (limit 2 mm)"),
        ({"voxel_mm": (1, 1, 10)}, Filter.RESOLUTION, "10 mm apart (limit 7 mm)"),
        ({"patient_position": "FFS"}, Filter.POSITION_CHANGED, "FFS, at the DWI HFS"),
        ({"box": box((230, 230, 50))}, Filter.NO_OVERLAP, "covers only 43 % of the diffusion images"),
        ({"box": box((230, 230, 132), SAGITTAL)}, Filter.ORIENTATION, "tilted by 90°"),
        ({"geometry_problem": "Slice 3 is missing."}, Filter.INCOMPLETE, "no volume: slice 3 is missing"),
        ({"echo_times_ms": (), "description": "x", "protocol_name": "x"}, Filter.CONTRAST, "not known"),
        ({"complex_components": ("PHASE",)}, Filter.NOT_ANATOMICAL, "no anatomical series"),
        ({"description": "localizer"}, Filter.NOT_ANATOMICAL, "no anatomical series"),
        ({"own_output": "DISTCORR"}, Filter.NOT_ANATOMICAL, "this node made it"),
    ],
)
def test_each_hard_filter_has_its_sentence(changes, code, told):
    found, why = why_not(t2(**changes))
    assert found == code
    assert told in why


def test_without_any_anatomical_series_the_reason_says_so():
    outcome = paired(trace(), dwi(series_uid="1.2.12"))
    assert isinstance(outcome, NoPairing)
    assert outcome.reason.code is Code.NO_REFERENCE
    assert outcome.reason.text.endswith(
        "there is no anatomical series at all; send a T2, FLAIR or T1 of the same session"
    )


def test_the_reason_names_the_nearest_misses():
    outcome = paired(t2(slices=5), trace())
    assert isinstance(outcome, NoPairing)
    assert "series 5: it has only 5 slices, at least 8 are needed" in outcome.reason.text


def test_a_reference_with_files_that_could_not_be_read_is_asked_for_again():
    cut = t2(geometry_problem="Volume 1 lacks the slice at 3.0 mm.", incomplete=True, unreadable=1)
    outcome = paired(cut)
    assert isinstance(outcome, NoPairing)
    left_out = "1 file could not be read and may hold what is missing: send it again first"
    assert f"volume 1 lacks the slice at 3.0 mm; {left_out}" in outcome.reason.text


def test_the_dwi_is_not_its_own_candidate():
    outcome = paired(dwi(), t2())
    assert isinstance(outcome, Pairing)
    assert [c.series_uid for c in outcome.candidates] == ["1.2.5"]


def test_another_study_of_the_same_visit_may_help():
    other = t2(study_uid="1.3", acquired=minutes(100))
    assert isinstance(paired(other), Pairing)
    assert isinstance(paired(other, policy=PairingPolicy(max_minutes_apart=60)), NoPairing)


def test_the_frame_of_reference_is_a_gate_only_where_a_site_says_so():
    other = t2(frame_of_reference_uid="1.2.98")
    assert isinstance(paired(other), Pairing)
    found, _ = why_not(other, policy=PairingPolicy(require_same_frame_of_reference=True))
    assert found == Filter.FRAME_OF_REFERENCE


def test_a_3d_series_may_lie_in_any_direction_and_be_narrower_than_the_field_of_view():
    assert isinstance(paired(t1()), Pairing)


def test_thin_2d_slices_may_be_tilted_more():
    turned = box((230, 230, 150), ((1, 0, 0), (0, 0.7071, 0.7071), (0, -0.7071, 0.7071)))
    assert isinstance(
        paired(t2(box=turned, voxel_mm=(0.5, 0.5, 3.0)), to=dwi(box=box((216, 216, 60)))), Pairing
    )
    assert why_not(t2(box=turned))[0] == Filter.ORIENTATION


def test_a_contrast_that_the_site_does_not_list_is_not_used():
    found, why = why_not(t1(), policy=PairingPolicy(reference_order=("T2", "FLAIR")))
    assert found == Filter.CONTRAST
    assert why == "T1 is not in this site's reference order"


# --- ranking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "loser", "told"),
    [
        (t2(), t1(), "T1 stands behind T2 in the reference order"),
        (t2(), t2(contrast_agent=True), "it was acquired with contrast agent"),
        (t2(), t2(description="T2 TRA KM"), "it was acquired with contrast agent"),
        (t2(), t2(description="T2 TRA motion"), "its name speaks of motion or a repeat"),
        (t2(gradient_nonlinearity="ND"), t2(), "it is corrected for gradient nonlinearity, unlike the DWI"),
        (t2(), t2(frame_of_reference_uid="1.9"), "it has another frame of reference"),
        (t2(), t2(box=box((230, 230, 104))), "it covers 89 % of the diffusion images, the other 100 %"),
        (t1(), t1(box=box((256, 256, 256))), "its slices are tilted by 90° against the DWI's"),
        (t2(), t2(acquired=minutes(-50)), "acquired 50 minutes from the DWI, the other 20"),
        (t2(), t2(acquired=None), "it was acquired at an unknown time"),
        (t2(), t2(voxel_mm=(1.0, 1.0, 3.3)), "its voxels are larger (3.3 mm³)"),
        (t2(acquisition_type="3D"), t2(), "it is 2-D, the other 3-D"),
        (t2(prescan_normalised=True), t2(), "it is the copy without prescan normalisation"),
        (t2(series_number=7), t2(), "it is the earlier of two equals, and a repeat usually has its reason"),
        (t2(), t2(), "nothing tells them apart but the SeriesInstanceUID"),
    ],
)
def test_each_key_of_the_ranking_decides_and_says_so(winner, loser, told):
    if told.startswith("its slices are tilted"):
        winner, loser = loser, winner
    loser = replace(loser, series_uid="1.2.7")
    reference, why = best(loser, winner)
    assert reference == winner
    assert why.startswith(f"lost to series {winner.series_number}: ")
    assert why.endswith(told)


def test_before_contrast_agent_is_no_contrast_agent():
    reference, why = best(t2(description="T2 pre KM", series_uid="1.2.4"), t2())
    assert reference.series_uid == "1.2.4"
    assert "SeriesInstanceUID" in why


def test_contrast_agent_does_not_matter_where_a_site_allows_it():
    enhanced = t2(contrast_agent=True, series_uid="1.2.7", series_number=7)
    assert best(enhanced, t2())[0].series_uid == "1.2.5"
    assert best(enhanced, t2(), policy=PairingPolicy(allow_contrast_agent=True))[0].series_uid == "1.2.7"


def test_in_the_body_a_fat_suppressed_t2_comes_first():
    fat = t2(fat_suppressed=True, series_uid="1.2.7")
    assert best(fat, t2())[0].series_uid == "1.2.5"
    assert best(fat, t2(), to=dwi(body_part="PROSTATE"))[0].series_uid == "1.2.7"


def test_the_body_part_is_read_from_the_name_where_the_header_is_silent():
    silent = dwi(body_part="")
    assert default_order(silent) == default_order(dwi(body_part="HEAD"))
    assert default_order(replace(silent, description="DWI Prostata")) == default_order(
        dwi(body_part="PELVIS")
    )


def test_the_order_of_a_site_replaces_the_default():
    assert best(t2(), t1(), policy=PairingPolicy(reference_order=("T1", "T2")))[0].series_uid == "1.2.6"


def test_a_site_can_put_one_series_before_all_others():
    rule = Override({"description": "mprage"}, Then.REFERENCE)
    reference, why = best(t2(), t1(), policy=PairingPolicy(overrides=(rule,)))
    assert reference.series_uid == "1.2.6"
    assert why.endswith("a rule of this site names the other")


@pytest.mark.parametrize("then", [Then.EXCLUDE, Then.NOT_REFERENCE])
def test_a_site_can_forbid_a_reference(then):
    rule = Override({"description": "t2 tra"}, then)
    assert why_not(t2(), policy=PairingPolicy(overrides=(rule,)))[0] == Filter.EXCLUDED_BY_SITE


candidate = st.builds(
    lambda base, uid, number, agent, nonlinearity, frame, height, late: base(
        series_uid=f"1.2.{uid}",
        series_number=number,
        contrast_agent=agent,
        gradient_nonlinearity=nonlinearity,
        frame_of_reference_uid=frame,
        box=box((230, 230, height)),
        acquired=None if late is None else minutes(0) + timedelta(minutes=late),
    ),
    st.sampled_from([t1, t2, trace]),
    st.integers(100, 999),
    st.sampled_from([None, 3, 5]),
    st.booleans(),
    st.sampled_from(["", "ND", "DIS2D"]),
    st.sampled_from([None, "1.2.99", "1.2.98"]),
    st.floats(20, 200),
    st.sampled_from([None, -30, 0, 3, 90]),
)


@given(st.lists(candidate, max_size=8, unique_by=lambda f: f.series_uid), st.randoms())
def test_the_order_of_arrival_changes_nothing(candidates, random):
    shuffled = random.sample(candidates, len(candidates))
    assert paired(*candidates) == paired(*shuffled)
