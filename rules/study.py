"""The decision for all series of a visit: what each is, and what becomes of each diffusion series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rules.classify import Classification, classify_study, name, obstacle
from rules.facts import SeriesFacts
from rules.pair import NoPairing, Pairing, PairingPolicy, pair
from rules.reasons import Code, Reason, reason

Outcome = Pairing | NoPairing | Reason


@dataclass(frozen=True, slots=True)
class StudyDecision:
    """Both mappings are by SeriesInstanceUID.

    `outcomes` has an entry for each diffusion series, which must end with a result or a reason. Maps,
    by-products, computed images and all the rest have none: they trigger nothing.
    """

    classifications: Mapping[str, Classification]
    outcomes: Mapping[str, Outcome]


def decide_study(series: Sequence[SeriesFacts], policy: PairingPolicy | None = None) -> StudyDecision:
    """Classify every series and find each DWI its reference.

    `series` is a study, or several of one visit (one exam under two accession numbers): siblings are looked
    for inside a study, references also in the others. Order does not matter.
    """
    policy = policy or PairingPolicy()
    found = classify_study(series, policy.overrides)
    candidates = [(facts, found[facts.series_uid]) for facts in series]
    outcomes: dict[str, Outcome] = {}
    for facts in series:
        stopped = obstacle(
            facts,
            found[facts.series_uid],
            max_lowest_b=policy.max_lowest_b,
            min_slices=policy.min_dwi_slices,
        )
        if stopped is not None:
            outcomes[facts.series_uid] = stopped
        elif found[facts.series_uid].corrects:
            outcomes[facts.series_uid] = _mismatch(facts, series) or pair(facts, candidates, policy)
    return StudyDecision(found, outcomes)


def _mismatch(dwi: SeriesFacts, series: Sequence[SeriesFacts]) -> Reason | None:
    """Two patients in one study: somebody has to look, before any image of the one helps the other."""
    for other in series:
        if (
            other.study_uid == dwi.study_uid
            and other.patient_key
            and dwi.patient_key
            and other.patient_key != dwi.patient_key
        ):
            return reason(Code.PATIENT_MISMATCH, f"{name(other)} carries another patient ID")
    return None
