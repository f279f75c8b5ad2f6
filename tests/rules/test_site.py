"""Rules of a site are data: facts are compared, mistakes are found before they are used."""

from __future__ import annotations

import dataclasses

import pytest
from made_series import dwi, t2

from rules.facts import SeriesFacts
from rules.site import FACT_NAMES, Override, Then, matching, problems


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({"description": "t2*"}, True),
        ({"description": "T2 TRA"}, True),
        ({"description": "T2"}, False),
        ({"image_type": "dis2d"}, True),
        ({"series_number": 5}, True),
        ({"series_number": 6}, False),
        ({"echo_times_ms": 101}, True),
        ({"contrast_agent": False}, True),
        ({"prescan_normalised": False}, False),  # the header does not say
        ({"description": "t2*", "series_number": 6}, False),
        ({"vendor": "siemens"}, True),
        ({}, False),
    ],
)
def test_all_facts_of_a_rule_must_match(when, matches):
    found = matching(t2(), [Override(when, Then.EXCLUDE)])
    assert (found is not None) is matches


def test_the_first_matching_rule_holds():
    rules = [Override({"vendor": "ge"}, Then.DWI), Override({"vendor": "*"}, Then.NOT_DWI)]
    assert matching(dwi(), rules) == rules[1]


def test_every_name_that_a_rule_may_use_is_a_fact():
    assert set(FACT_NAMES) <= {field.name for field in dataclasses.fields(SeriesFacts)}
    assert "patient_key" not in FACT_NAMES


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ({"descripton": "x"}, "unknown fact 'descripton'; did you mean 'description'?"),
        ({"patient_key": "x"}, "unknown fact 'patient_key'"),
        ({"series_number": "five"}, "'series_number' compares with a number, not with 'five'"),
        ({"angio": 1}, "'angio' compares with true or false, not with 1"),
        ({"rows": True}, "'rows' compares with a number, not with True"),
        ({"description": 5}, "'description' compares with text, not with 5"),
        ({}, "names no fact"),
    ],
)
def test_mistakes_in_a_rule_are_told(when, told):
    (sentence,) = problems(when)
    assert told in sentence


def test_a_value_is_compared_and_never_evaluated():
    for value in ("1 == 1", "True", "__import__('os').abort()", "{description}", "%s"):
        assert problems({"description": value}) == ()
        assert matching(dwi(), [Override({"description": value}, Then.EXCLUDE)]) is None
        assert matching(dwi(description=value), [Override({"description": value}, Then.EXCLUDE)])


def test_a_right_rule_has_no_problems():
    assert problems({"description": "*", "series_number": 5, "b_values": 1000.0, "angio": True}) == ()
