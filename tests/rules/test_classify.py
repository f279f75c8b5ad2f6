"""What each series is: one hand-made header for each rule, most of them seen on real scanners."""

from __future__ import annotations

import pytest
from made_series import dwi, minutes, t1, t2, trace

from rules.classify import SeriesClass, classify, classify_study, obstacle
from rules.facts import Directionality, Vendor
from rules.reasons import Code
from rules.site import Override, Then


def test_an_epi_with_b_values_is_a_dwi():
    found = classify(dwi())
    assert found.series_class is SeriesClass.DWI
    assert found.corrects
    assert found.reason == "ScanningSequence says EP, and it has b-values up to 1000"
    assert found.decided_by == "DiffusionBValue"


@pytest.mark.parametrize(
    ("image_type", "says"),
    [
        (("DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"), "ImageType says ADC, so this is an ADC map"),
        (("DERIVED", "PRIMARY", "DIFFUSION", "TRACEW", "ND", "ADC"), "ImageType says ADC"),
        (("DERIVED", "PRIMARY", "DIFFUSION", "FA", "ND"), "fractional anisotropy"),
        (("DERIVED", "PRIMARY", "DIFFUSION", "TENSOR_B0", "ND"), "TENSOR_B0"),
        (("DERIVED", "PRIMARY", "MPR", "NORM", "DIS3D"), "MPR"),
    ],
)
def test_a_map_is_a_map_although_it_carries_a_b_value(image_type, says):
    found = classify(dwi(image_type=image_type, b_values=(800.0,)))
    assert found.series_class is SeriesClass.DERIVED_MAP
    assert not found.corrects
    assert says in found.reason


def test_tokens_of_image_type_are_compared_whole():
    assert classify(dwi(image_type=("ORIGINAL", "PRIMARY", "FAST", "ADCX"))).series_class is SeriesClass.DWI


def test_a_raw_data_tensor_and_a_coloured_map_in_secondary_capture_are_maps():
    tensor = dwi(sop_class_uid="1.2.840.10008.5.1.4.1.1.66", image_type=("DERIVED", "PRIMARY", "TENSOR"))
    coloured = dwi(sop_class_uid="1.2.840.10008.5.1.4.1.1.7", image_type=("DERIVED", "FA"), colour=True)
    assert classify(tensor).series_class is SeriesClass.DERIVED_MAP
    assert classify(coloured).series_class is SeriesClass.DERIVED_MAP


def test_a_map_without_a_token_is_known_by_unit_or_by_name_when_derived():
    by_unit = dwi(image_type=("DERIVED", "SECONDARY"), rescale_type="10*-6 mm2/s")
    by_name = dwi(image_type=("DERIVED", "SECONDARY"), description="ADC (b 0, 1000)")
    named_but_original = dwi(description="DWI for ADC")
    assert classify(by_unit).series_class is SeriesClass.DERIVED_MAP
    assert classify(by_name).series_class is SeriesClass.DERIVED_MAP
    assert classify(named_but_original).series_class is SeriesClass.DWI


@pytest.mark.parametrize("description", ["ep2d_diff_511bCALC_BVAL", "DWI_CALC_BVALUE", "Synthetic b2000"])
def test_only_the_name_gives_away_a_computed_b_value(description):
    found = classify(trace(description=description, b_values=(1600.0,)))
    assert found.series_class is SeriesClass.COMPUTED_DWI
    assert not found.corrects


def test_a_trace_alone_is_corrected_although_it_is_derived():
    found = classify(trace(b_values=(0.0, 800.0)))
    assert found.series_class is SeriesClass.TRACE_DWI
    assert found.corrects


def test_a_trace_is_also_known_by_its_directionality():
    kinds = (Directionality.NONE, Directionality.ISOTROPIC, Directionality.ISOTROPIC)
    assert classify(dwi(directionalities=kinds)).series_class is SeriesClass.TRACE_DWI


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"description": "AAHead_Scout", "slices": 128}, SeriesClass.LOCALIZER),
        ({"description": "t2_localizer", "orientations": 3, "instances": 13}, SeriesClass.LOCALIZER),
        ({"description": "Repérage 3 plans"}, SeriesClass.LOCALIZER),
        ({"orientations": 3, "instances": 15, "slices": 5}, SeriesClass.LOCALIZER),
        ({"orientations": 18, "instances": 18 * 40}, SeriesClass.OTHER),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, SeriesClass.LOCALIZER),
        ({"description": "gre_field_mapping"}, SeriesClass.FIELD_MAP),
        ({"sequence_name": "*fm2d2r"}, SeriesClass.FIELD_MAP),
        ({"rescale_type": "HZ"}, SeriesClass.FIELD_MAP),
        ({"complex_components": ("PHASE",)}, SeriesClass.OTHER),
        ({"image_type": ("ORIGINAL", "PRIMARY", "OPP_PHASE")}, SeriesClass.OTHER),
        ({"image_type": ("ORIGINAL", "PRIMARY", "ASL", "NONE")}, SeriesClass.OTHER),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, SeriesClass.SCREENSAVE),
        ({"colour": True}, SeriesClass.SCREENSAVE),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.11.1", "modality": "PR"}, SeriesClass.OTHER),
        ({"modality": "CT"}, SeriesClass.OTHER),
        ({"rows": 0}, SeriesClass.OTHER),
        ({"own_output": "ImageType says DISTCORR"}, SeriesClass.OWN_OUTPUT),
        ({}, SeriesClass.ANATOMICAL),
    ],
)
def test_series_that_are_no_epi(changes, expected):
    found = classify(t2(**changes))
    assert found.series_class is expected
    assert not found.corrects
    assert found.reason
    assert found.decided_by


def test_two_close_echoes_of_a_coarse_gradient_echo_are_a_field_map_but_a_fine_dixon_is_anatomy():
    echoes = {"scanning_sequence": ("GR",), "echo_times_ms": (2.4, 4.8), "repetition_time_ms": 240.0}
    assert classify(t2(voxel_mm=(6.25, 6.25, 6.5), **echoes)).series_class is SeriesClass.FIELD_MAP
    assert classify(t2(voxel_mm=(0.8, 0.8, 2.0), **echoes)).series_class is SeriesClass.ANATOMICAL


def test_bold_and_asl_are_epi_but_no_dwi():
    bold = dwi(image_type=("ORIGINAL", "PRIMARY", "M"), sequence_name="epfid2d1_64", b_values=())
    asl = dwi(image_type=("ORIGINAL", "PRIMARY", "ASL", "NONE"), sequence_name="*epfid2d1_64", b_values=())
    philips_bold = dwi(image_type=("ORIGINAL", "PRIMARY", "M_FFE"), b_values=(0.0,), sequence_name="")
    for facts in (bold, asl, philips_bold):
        assert classify(facts).series_class is SeriesClass.EPI_OTHER


def test_epi_without_weighting_is_no_dwi():
    assert classify(dwi(b_values=(0.0, 1.25))).series_class is SeriesClass.B0_ONLY


def test_a_diffusion_series_without_epi_has_nothing_to_correct():
    blade = dwi(scanning_sequence=("SE",), sequence_name="*h2d1", description="DWI BLADE")
    found = classify(blade)
    assert found.series_class is SeriesClass.DWI_NON_EPI
    stopped = obstacle(blade, found)
    assert stopped is not None
    assert stopped.code is Code.NOT_EPI


def test_philips_tells_epi_by_its_factor_only():
    philips = {"vendor": Vendor.PHILIPS, "scanning_sequence": ("SE",), "sequence_name": ""}
    assert classify(dwi(epi_factor=63, **philips)).series_class is SeriesClass.DWI
    assert classify(dwi(epi_factor=1, **philips)).series_class is SeriesClass.DWI_NON_EPI
    silent = classify(dwi(**philips))
    assert silent.series_class is SeriesClass.DWI
    assert "does not say how it was acquired" in silent.reason


def test_the_echo_train_of_a_turbo_field_echo_is_no_epi():
    tfe = t1(vendor=Vendor.PHILIPS, scanning_sequence=("GR",), epi_factor=240, echo_planar=False)
    assert classify(tfe).series_class is SeriesClass.ANATOMICAL


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"geometry_problem": "the mosaic does not say how many tiles it has"}, Code.GEOMETRY),
        ({"geometry_problem": "slice 7 of volume 3 is missing", "incomplete": True}, Code.INCOMPLETE),
        ({"box": None}, Code.GEOMETRY),
        ({"slices": 2}, Code.TOO_FEW_SLICES),
        ({"b_values": (None, None, None)}, Code.NO_B_VALUES),
        ({"b_values": (0.0, None, 1000.0)}, Code.NO_B_VALUES),
        ({"b_values": (500.0, 1400.0)}, Code.NO_LOW_B),
    ],
)
def test_a_dwi_that_no_reference_can_help_gets_its_reason(changes, code):
    facts = dwi(**changes)
    stopped = obstacle(facts, classify(facts))
    assert stopped is not None
    assert stopped.code is code


@pytest.mark.parametrize(
    "changes",
    [
        {"b_values": (500.0, 1400.0)},
        {"geometry_problem": "slice 7 of volume 3 is missing", "incomplete": True},
        {"slices": 2},
    ],
)
def test_what_could_not_be_read_may_be_what_is_missing(changes):
    whole, damaged = dwi(**changes), dwi(**changes, unreadable=2)
    plain, told = obstacle(whole, classify(whole)), obstacle(damaged, classify(damaged))
    assert plain is not None
    assert told is not None
    assert told.code is plain.code
    left_out = "2 files could not be read and may hold what is missing: send them again first"
    assert told.text == f"{plain.text}; {left_out}"


def test_what_could_not_be_read_is_not_told_where_nothing_is_missing():
    for changes in ({}, {"b_values": (None, None)}, {"box": None}):
        whole, damaged = dwi(**changes), dwi(**changes, unreadable=1)
        assert obstacle(damaged, classify(damaged)) == obstacle(whole, classify(whole))


@pytest.mark.parametrize("lowest", [0.0, 50.0, 100.0, 200.0])
def test_a_low_shell_stands_in_for_b0(lowest):
    facts = dwi(b_values=(lowest, 800.0))
    assert obstacle(facts, classify(facts)) is None


def test_the_limits_of_an_obstacle_can_be_moved():
    facts = dwi(b_values=(500.0,), slices=2)
    assert obstacle(facts, classify(facts), max_lowest_b=500.0, min_slices=2) is None


def test_what_is_no_diffusion_needs_no_reason():
    for facts in (t2(), t2(geometry_problem="two orientations"), trace(description="CALC_BVAL")):
        assert obstacle(facts, classify(facts)) is None


# --- siblings ---------------------------------------------------------------------------------------------


def test_a_trace_of_a_dwi_in_the_study_is_a_by_product():
    found = classify_study([trace(), dwi()])
    assert found["1.2.10"].series_class is SeriesClass.DWI
    assert found["1.2.11"].series_class is SeriesClass.BY_PRODUCT
    assert found["1.2.11"].parent_uid == "1.2.10"
    assert not found["1.2.11"].corrects
    assert "series 10" in found["1.2.11"].reason


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol_name": "another DWI"},
        {"acquired": minutes(45)},
        {"acquired": minutes(-5)},
        {"b_values": (0.0, 2000.0)},
        {"study_uid": "1.3"},
    ],
)
def test_a_trace_of_another_acquisition_is_corrected_itself(changes):
    found = classify_study([dwi(), trace(**changes)])
    assert found["1.2.11"].series_class is SeriesClass.TRACE_DWI
    assert found["1.2.11"].corrects


def test_without_a_protocol_name_the_description_tells_the_siblings():
    family = [dwi(protocol_name=""), trace(protocol_name="")]
    assert classify_study(family)["1.2.11"].series_class is SeriesClass.BY_PRODUCT
    strangers = [dwi(protocol_name=""), trace(protocol_name="", description="other_TRACEW")]
    assert classify_study(strangers)["1.2.11"].series_class is SeriesClass.TRACE_DWI


def test_of_two_runs_of_a_protocol_each_has_its_own_trace():
    runs = [dwi(), dwi(series_uid="1.2.20", acquired=minutes(10))]
    traces = [trace(), trace(series_uid="1.2.21", acquired=minutes(10))]
    found = classify_study([*traces, *runs])
    assert found["1.2.11"].parent_uid == "1.2.10"
    assert found["1.2.21"].parent_uid == "1.2.20"


def test_a_trace_stands_in_for_a_dwi_that_can_never_be_corrected():
    broken = dwi(geometry_problem="the mosaic does not say how many tiles it has")
    whole = classify_study([broken, trace(b_values=(0.0, 1000.0))])
    assert whole["1.2.11"].corrects
    late = dwi(geometry_problem="slice 7 of volume 3 is missing", incomplete=True)
    waiting = classify_study([late, trace(b_values=(0.0, 1000.0))])
    assert waiting["1.2.11"].series_class is SeriesClass.BY_PRODUCT
    weighted_only = classify_study([broken, trace()])
    assert weighted_only["1.2.11"].series_class is SeriesClass.BY_PRODUCT


def test_a_motion_corrected_copy_is_a_by_product():
    moco = dwi(series_uid="1.2.12", image_type=("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "MOCO"))
    found = classify_study([moco, dwi()])
    assert found["1.2.12"].series_class is SeriesClass.BY_PRODUCT
    assert classify_study([moco])["1.2.12"].corrects


# --- rules of the site ------------------------------------------------------------------------------------


def test_a_site_can_exclude_a_dwi_and_it_ends_with_that_reason():
    rule = Override({"description": "dwi*"}, Then.EXCLUDE)
    found = classify(dwi(), [rule])
    stopped = obstacle(dwi(), found)
    assert not found.corrects
    assert stopped is not None
    assert stopped.code is Code.EXCLUDED_BY_SITE
    assert "description = dwi*" in stopped.text


def test_a_site_can_name_a_reference_or_a_dwi():
    assert (
        classify(dwi(), [Override({"series_number": 10}, Then.REFERENCE)]).series_class
        is SeriesClass.ANATOMICAL
    )
    named = classify(t1(), [Override({"description": "mprage"}, Then.DWI)])
    assert named.series_class is SeriesClass.DWI
    assert named.corrects


def test_no_rule_of_a_site_makes_our_own_output_an_input():
    own = dwi(own_output="ImageType says DISTCORR")
    found = classify(own, [Override({"description": "*"}, Then.DWI)])
    assert found.series_class is SeriesClass.OWN_OUTPUT
    assert not found.corrects
