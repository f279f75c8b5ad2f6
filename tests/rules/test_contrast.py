"""The contrast of anatomical series: timing as real protocols have it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_series import t2

from rules.contrast import BODY_ORDER, BRAIN_ORDER, Contrast, contrast


def timing(te, tr, ti=None, sequence="SE", **changes):
    return t2(
        echo_times_ms=(te,),
        repetition_time_ms=tr,
        inversion_time_ms=ti,
        scanning_sequence=(sequence,) if sequence else (),
        **changes,
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (timing(101, 4000), Contrast.T2),
        (timing(101, 4000, fat_suppressed=True), Contrast.T2_FS),
        (timing(200, 1500, acquisition_type="3D"), Contrast.T2),
        (timing(394, 6000, 2200, "IR"), Contrast.FLAIR),
        (timing(90, 9000, 2500), Contrast.FLAIR),
        (timing(40, 4000, 160, "IR"), Contrast.STIR),
        (timing(15, 2000, 860, "IR"), Contrast.T1),  # T1 FLAIR
        (timing(2.4, 1800, 900, "GR"), Contrast.T1),  # MPRAGE
        (timing(2.41, 1800, 900, ""), Contrast.T1),  # the same as an enhanced object without ScanningSequence
        (timing(2.93, 6.5, sequence="GR"), Contrast.T1),  # Philips writes no InversionTime
        (timing(1.53, 800, sequence="GR", description="tfl_3d PD ref_tra"), Contrast.PD),
        (timing(12, 500), Contrast.T1),
        (timing(30, 3000), Contrast.PD),
        (timing(20, 28, sequence="GR"), Contrast.T2_STAR),
        (timing(3.6, 22, sequence="GR", angio=True), Contrast.T2_STAR),
        (timing(35, 1200), Contrast.UNKNOWN),
    ],
)
def test_timing_tells_the_contrast(facts, expected):
    if facts.description == "T2 TRA":
        facts = replace(facts, description="", protocol_name="", sequence_name="")
    assert contrast(facts)[0] is expected


def test_the_name_is_asked_only_where_timing_is_missing():
    silent = t2(echo_times_ms=(), description="FLAIR sag", protocol_name="")
    kind, shown = contrast(silent)
    assert kind is Contrast.FLAIR
    assert shown.because == "EchoTime or RepetitionTime is missing, but its name says FLAIR"
    misnamed = timing(101, 4000, description="T1 se tra", protocol_name="T1")
    assert contrast(misnamed)[0] is Contrast.T2


def test_the_orders_hold_every_contrast_but_the_unknown_one():
    known = set(Contrast) - {Contrast.UNKNOWN}
    assert set(BRAIN_ORDER) == known
    assert set(BODY_ORDER) == known
