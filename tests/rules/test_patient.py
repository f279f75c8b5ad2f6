"""One study is of one patient, or nothing of it is processed."""

from __future__ import annotations

import pytest
from made_series import dwi, t1, t2

from rules.pair import Pairing
from rules.patient import contradict, disagree, mismatch
from rules.reasons import Code, Reason
from rules.study import decide_study


@pytest.mark.parametrize(
    ("one", "other", "contradicts"),
    [
        ("A\\", "A\\", False),
        ("A\\", "B\\", True),
        ("A\\HOSPITAL", "A\\", False),  # a report without issuer
        ("A\\HOSPITAL", "A\\CLINIC", True),
        ("", "A\\", False),
        ("", "", False),
    ],
)
def test_what_is_missing_contradicts_nothing(one: str, other: str, contradicts: bool):
    assert contradict(one, other) is contradict(other, one) is contradicts
    assert disagree([one, other, one]) is contradicts


def test_two_series_of_two_patients_are_named_and_the_patients_are_not():
    told = mismatch("1.2", [dwi(patient_key="secret-a\\"), t2(patient_key="secret-b\\")])
    assert told is not None
    assert told.code is Code.PATIENT_MISMATCH
    assert "series 5 and series 10" in told.text
    assert "secret" not in told.text


def test_a_series_of_two_patients_stops_its_study():
    decision = decide_study([dwi(), t2(mixed_patients=True)])
    stopped = decision.outcomes["1.2.10"]
    assert isinstance(stopped, Reason)
    assert stopped.code is Code.PATIENT_MISMATCH
    assert "series 5 holds images with different patient IDs" in stopped.text


def test_what_an_archive_made_of_our_own_output_does_not_count():
    coerced = t1(patient_key="patient-z", own_output="ours")
    assert isinstance(decide_study([dwi(), t2(), coerced]).outcomes["1.2.10"], Pairing)


def test_other_studies_do_not_count():
    assert mismatch("1.2", [dwi(), t2(study_uid="1.3", patient_key="patient-z")]) is None
