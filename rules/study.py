"""The decision for all series of a visit: what each is, and what becomes of each diffusion series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rules.classify import Classification, classify_study, obstacle
from rules.facts import SeriesFacts
from rules.pair import NoPairing, Pairing, PairingPolicy, pair
from rules.patient import mismatch
from rules.reasons import Reason
from rules.siblings import Sibling, siblings

Outcome = Pairing | NoPairing | Reason


@dataclass(frozen=True, slots=True)
class StudyDecision:
    """All mappings are by SeriesInstanceUID.

    `outcomes` has an entry for each diffusion series, which must end with a result or a reason. Maps,
    by-products, computed images and all the rest have none: they trigger nothing.
    `siblings` are corrected with the field of their lead and have no outcome of their own.
    """

    classifications: Mapping[str, Classification]
    outcomes: Mapping[str, Outcome]
    siblings: Mapping[str, Sibling] = field(default_factory=dict)

    def carried(self, lead_uid: str) -> tuple[str, ...]:
        """The series that take over the field of `lead_uid`, by SeriesInstanceUID."""
        return tuple(
            sorted(
                sibling.series_uid
                for sibling in self.siblings.values()
                if sibling.lead_uid == lead_uid and not sibling.obstacle
            )
        )


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
            outcomes[facts.series_uid] = mismatch(facts.study_uid, series) or pair(facts, candidates, policy)
    beside = siblings(series, found)
    for uid, sibling in beside.items():
        if not sibling.obstacle and isinstance(outcomes.get(sibling.lead_uid), Pairing):
            outcomes.pop(uid, None)  # its lead's job ends it
    return StudyDecision(found, outcomes, beside)
