"""Whether images are of one patient. Keys are compared and never told."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from rules.facts import SeriesFacts
from rules.reasons import Code, Reason, reason
from rules.sentences import name


def contradict(one: str, other: str) -> bool:
    """Whether two patient keys (PatientID, backslash, issuer) name different patients.

    A missing ID or issuer contradicts nothing: reports and captures often leave the issuer out.
    """
    one_id, _, one_issuer = one.partition("\\")
    other_id, _, other_issuer = other.partition("\\")
    if not one_id or not other_id:
        return False
    return one_id != other_id or (bool(one_issuer and other_issuer) and one_issuer != other_issuer)


def disagree(keys: Iterable[str]) -> bool:
    """Whether any two of these patient keys contradict each other."""
    return any(contradict(one, other) for one, other in combinations(sorted(set(keys)), 2))


def mismatch(study_uid: str, series: Iterable[SeriesFacts]) -> Reason | None:
    """Why no image of this study may be processed or sent: it holds two patients; None when it does not.

    Our own output does not count: an archive may have changed the ID of what it stored.
    """
    here = sorted(
        (facts for facts in series if facts.study_uid == study_uid and not facts.own_output),
        key=lambda facts: (facts.series_number or 0, facts.series_uid),
    )
    for facts in here:
        if facts.mixed_patients:
            return reason(Code.PATIENT_MISMATCH, f"{name(facts)} holds images with different patient IDs")
    for one, other in combinations(here, 2):
        if contradict(one.patient_key, other.patient_key):
            return reason(Code.PATIENT_MISMATCH, f"{name(one)} and {name(other)} carry different patient IDs")
    return None
