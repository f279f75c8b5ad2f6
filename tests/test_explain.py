"""Every real study is explained as data/README.md judges it, and nobody's name is told."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil

import pydicom
import pytest
from pydicom.data import get_testdata_file
from received_study import write_small_study
from rich.console import Console

from dicom_node.explain import explain, render
from dicom_node.headers import read_series
from rules.pair import PairingPolicy
from rules.site import Override, Then

MAP = "derived-map"

# set → series number → what it is, and for a diffusion series its reference (a number), the series whose
# field it takes over (a number too), or its reason (a code)
STUDIES = {
    "siemens-xa30-enhanced": {
        5: "anatomical",
        6: "anatomical",
        8: "field-map",
        9: "field-map",
        17: ("dwi", 6),
        19: MAP,
        20: ("by-product", 17),
        21: MAP,
        22: MAP,
        24: MAP,
    },
    "siemens-xa30-classic": {
        16: MAP,
        1001: "localizer",
        2001: MAP,
        3001: MAP,
        4001: MAP,
        5001: "anatomical",
        6001: "anatomical",
        7001: "epi-other",
        9001: "field-map",
        9002: "field-map",
        10001: "field-map",
        11001: ("dwi", 6001),
        12001: MAP,
        13001: ("by-product", 11001),
        14001: MAP,
        15001: MAP,
        17001: MAP,
        18001: "epi-other",
    },
    "siemens-e11-mosaic": {2: "field-map", 4: ("dwi", "no-reference")},
    "siemens-xa61-noref": {14: ("trace-dwi", "no-reference"), 16: ("dwi", "no-reference")},
    "prostatex-0218": {
        2: "localizer",
        3: "localizer",
        5: "anatomical",
        7: "field-map",
        8: ("trace-dwi", 5),
        9: MAP,
        10: "computed-dwi",
        11: ("dwi", 5),
        12: MAP,
        13: ("by-product", 11),
        14: MAP,
        17: ("trace-dwi", 5),
        18: ("trace-dwi", "no-low-b"),
        19: ("trace-dwi", "no-low-b"),
        21: MAP,
    },
    "prostatex-0000": {
        3: "anatomical",
        4: "anatomical",
        5: "anatomical",
        6: ("trace-dwi", 4),
        7: MAP,
        8: "computed-dwi",
        9: "anatomical",
    },
    "philips-classic": {1301: "anatomical", 2001: "field-map", 2201: ("dwi", 1301)},
    "philips-dwi-noref": {0: "other", 701: ("dwi", "no-reference")},
    "ge-phantom": {
        1: ("dwi", "too-few-slices"),
        2: ("dwi", "too-few-slices"),
        3: ("dwi", "too-few-slices"),
        4: ("dwi", 5),
        5: "anatomical",
    },
    "canon-classic": {3000: ("dwi", "no-reference"), 4000: ("dwi", "no-reference")},
    "canon-enhanced": {3000: ("dwi", "no-reference")},
    "uih": {2: "anatomical", 6: ("dwi", 2), 9: ("dwi", 2)},
}


@pytest.fixture(scope="module")
def explained(data_set):
    """`explained("uih")` is that study explained, read once."""
    return functools.lru_cache(lambda name: explain([data_set(name)]))


def printed(explanation, width=200):
    out = io.StringIO()
    Console(file=out, width=width).print(render(explanation))
    return out.getvalue()


def judged(explanation):
    """The explanation in the shape of STUDIES."""
    numbers = {series.series_uid: series.series_number for series in explanation.series}
    return {
        series.series_number: (
            series.series_class
            if series.action == "none"
            else (
                series.series_class,
                numbers.get(series.field_from_uid or series.reference_uid, series.reason_code),
            )
        )
        for series in explanation.series
    }


@pytest.mark.parametrize("name", STUDIES)
def test_each_real_study_is_judged_as_its_readme_says(explained, name):
    explanation = explained(name)
    assert judged(explanation) == STUDIES[name]
    for series in explanation.series:
        assert series.because
        assert series.decided_by
        assert series.action != "skip" or series.reason_text
    json.dumps(dataclasses.asdict(explanation))
    text = printed(explanation)
    assert all(str(series.series_number) in text for series in explanation.series)


@pytest.mark.parametrize("name", ["vendor-mini", "parser-fixtures"])
def test_fragments_and_damaged_files_are_explained_and_nothing_is_corrected(explained, name):
    explanation = explained(name)
    assert explanation.series
    assert not [series for series in explanation.series if series.action == "correct"]
    assert all(file.why for file in explanation.unreadable)
    assert printed(explanation)


def test_a_reference_that_is_not_chosen_is_told_why(explained):
    explanation = explained("prostatex-0000")
    dwi = next(series for series in explanation.series if series.action == "correct")
    told = {c.series_number: c.why for c in dwi.candidates if c.filter_code != "not-anatomical"}
    assert told[4].startswith("chosen: T2, same frame of reference, covers ")
    assert told[3].startswith("its slices are tilted by 90° against the DWI's")
    assert told[9] == "lost to series 4: PD stands behind T2 in the reference order"
    assert dwi.candidates[0].chosen
    assert dwi.candidates[0].rank["contrast"] == 1  # in the body T2 stands behind fat-saturated T2


def test_files_that_are_no_images_are_named_and_copies_are_counted(explained):
    explanation = explained("prostatex-0000")
    assert {file.path.rsplit("/", 1)[-1] for file in explanation.unreadable} == {
        "LICENSE",
        "UPSTREAM_README.md",
    }
    assert explanation.copies == 18  # variant-missing-slice has the UIDs of series 8
    assert "18 files are copies" in printed(explanation)


def test_a_technologist_reads_words_and_not_codes(explained):
    text = printed(explained("philips-dwi-noref"))
    assert "It is no MR image but a presentation state (PR)." in text
    assert "1 × b 0, 1 × b 0.001" in text
    assert "12 × b 1000" in text
    # the reason has said it
    assert "there is no anatomical series at all; send a T2" in text
    assert "not anatomical" not in text
    assert "anatomical, contrast unknown" in printed(explained("vendor-mini"))


def test_no_patient_is_named(data_set, explained):
    file = next(data_set("siemens-xa30-enhanced").rglob("*.dcm"))
    patient = pydicom.dcmread(file, stop_before_pixels=True)
    explanation = explained("siemens-xa30-enhanced")
    everything = printed(explanation) + json.dumps(dataclasses.asdict(explanation))
    for value in (str(patient.PatientName), str(patient.PatientID), str(patient.PatientBirthDate)):
        assert value not in everything


def test_a_rule_of_the_site_is_followed_and_told(data_set):
    rule = Override({"description": "T2_TSE_TRA", "prescan_normalised": True}, Then.NOT_REFERENCE)
    explanation = explain([data_set("prostatex-0000")], PairingPolicy(overrides=(rule,)))
    assert judged(explanation)[6] == ("trace-dwi", 9)
    assert "a rule of this site forbids it as a reference" in printed(explanation)


def test_a_b0_that_is_cut_short_is_to_be_sent_again_and_not_acquired_again(tmp_path):
    study = write_small_study(tmp_path)
    (tmp_path / "notes.txt").write_text("no image, and nothing that is missing")
    left_out = 0
    for path in study.dwi_files:
        if not pydicom.dcmread(path, stop_before_pixels=True).DiffusionBValue:
            left_out += 1
            path.write_bytes(path.read_bytes()[: 400 if left_out > 1 else 0])
    explanation = explain([tmp_path])
    (dwi,) = [series for series in explanation.series if series.action == "skip"]
    assert dwi.reason_code == "no-low-b"
    assert f"{left_out} files could not be read and may hold what is missing" in dwi.reason_text
    assert "may hold what is missing: send them again first." in " ".join(printed(explanation).split())


def test_a_folder_without_dicom_is_no_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    explanation = explain([tmp_path])
    assert explanation.studies == ()
    assert "No DICOM series here." in printed(explanation)


def test_reading_tells_its_progress_and_reads_an_instance_once(tmp_path):
    for name in ("first.dcm", "second.dcm"):
        shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / name)
    told = []
    reading = read_series(sorted(tmp_path.iterdir()), lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert reading.copies == 1
    assert [len(instances) for instances in reading.series.values()] == [1]
