"""Which anatomical series a DWI is corrected with: hard filters, then a ranking, each told in one sentence.

FrameOfReferenceUID only ranks unless a site asks otherwise: Siemens gives ND and DIS2D images of one session
different frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from rules import geometry
from rules.classify import MAX_LOWEST_B, MIN_DWI_SLICES, Classification, SeriesClass
from rules.contrast import Contrast
from rules.facts import SeriesFacts
from rules.patient import contradict
from rules.rank import boxes, default_order, lost, minutes_apart, rank, same_frame, standing, won
from rules.reasons import Code, Reason, reason
from rules.sentences import clause, left_out, name
from rules.site import Override, Then


@dataclass(frozen=True, slots=True)
class PairingPolicy:
    """What a site can decide about references. Lengths in mm, b-values in s/mm²."""

    reference_order: tuple[str, ...] = ()  # contrasts that may serve, best first; empty: by the body part
    min_overlap: float = 0.80
    max_minutes_apart: float = 180.0  # between two studies of one visit; inside a study time only ranks
    require_same_frame_of_reference: bool = False
    allow_contrast_agent: bool = False  # True: images after contrast agent rank like those before
    min_reference_slices: int = 8
    max_in_plane_mm: float = 2.0
    max_step_mm: float = 7.0
    max_lowest_b: float = MAX_LOWEST_B
    min_dwi_slices: int = MIN_DWI_SLICES
    overrides: tuple[Override, ...] = ()


class Filter(StrEnum):
    """Why a series cannot be the reference at all."""

    EXCLUDED_BY_SITE = "excluded-by-site"
    OTHER_PATIENT = "other-patient"
    OTHER_SESSION = "other-session"
    NOT_ANATOMICAL = "not-anatomical"
    CONTRAST = "contrast"
    INCOMPLETE = "incomplete"
    TOO_FEW_SLICES = "too-few-slices"
    RESOLUTION = "resolution"
    POSITION_CHANGED = "position-changed"
    FRAME_OF_REFERENCE = "frame-of-reference"
    ORIENTATION = "orientation"
    NO_OVERLAP = "no-overlap"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One series that might have been the reference, and why it is or is not."""

    series_uid: str
    series_number: int | None
    description: str
    accepted: bool  # passed every hard filter
    rank: tuple[float | str, ...]  # one value for each of RANKING, smaller is better; empty when filtered
    why: str
    filter_code: str = ""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The chosen reference of a DWI; `candidates`: the chosen one first, then by rank, filtered ones last."""

    dwi_uid: str
    reference: SeriesFacts
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class NoPairing:
    """No series can be the reference of this DWI, and why."""

    dwi_uid: str
    reason: Reason
    candidates: tuple[Candidate, ...]


def pair(
    dwi: SeriesFacts,
    candidates: Sequence[tuple[SeriesFacts, Classification]],
    policy: PairingPolicy | None = None,
) -> Pairing | NoPairing:
    """The best reference for `dwi` among `candidates`, in whatever order they come.

    `dwi` must have passed `obstacle`, so that it has a box. `candidates` may be everything of the session;
    the DWI itself is left out.
    """
    policy = policy or PairingPolicy()
    order = policy.reference_order or default_order(dwi)
    others = {facts.series_uid: (facts, found) for facts, found in candidates}
    others.pop(dwi.series_uid, None)
    standings, failures = [], []
    for facts, found in others.values():
        failure = _filter(dwi, facts, found, order, policy)
        if failure is None:
            standings.append(standing(dwi, facts, found, order, policy.allow_contrast_agent))
        else:
            failures.append((facts, failure))
    standings.sort(key=rank)
    failures.sort(key=_nearest_first)
    filtered = tuple(_candidate(facts, (), failure.why, failure.code) for facts, failure in failures)
    if not standings:
        return NoPairing(dwi.series_uid, reason(Code.NO_REFERENCE, _none_because(failures)), filtered)
    best = standings[0]
    ranked = [_candidate(best.facts, rank(best), won(best, alone=len(standings) == 1))]
    ranked += [_candidate(s.facts, rank(s), lost(s, best)) for s in standings[1:]]
    return Pairing(dwi.series_uid, best.facts, (*ranked, *filtered))


def _nearest_first(failed: tuple[SeriesFacts, Failure]) -> tuple[bool, int, str]:
    facts, failure = failed
    return failure.code is Filter.NOT_ANATOMICAL, facts.series_number or 0, facts.series_uid


# --- hard filters -----------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A hard filter that a series fails, and the sentence for it."""

    why: str
    code: Filter


def _filter(
    dwi: SeriesFacts,
    facts: SeriesFacts,
    found: Classification,
    order: tuple[str, ...],
    policy: PairingPolicy,
) -> Failure | None:
    """The first hard filter that `facts` fails; None when it may be the reference."""
    return (
        _not_anatomical(found)
        or _other_session(dwi, facts, policy)
        or _unsuitable(facts, found, order)
        or _too_coarse(facts, policy)
        or _elsewhere(dwi, facts, policy)
    )


def _not_anatomical(found: Classification) -> Failure | None:
    if found.site in (Then.EXCLUDE, Then.NOT_REFERENCE):
        return Failure("a rule of this site forbids it as a reference", Filter.EXCLUDED_BY_SITE)
    if found.series_class is not SeriesClass.ANATOMICAL:
        return Failure(f"it is no anatomical series: {found.reason}", Filter.NOT_ANATOMICAL)
    return None


def _other_session(dwi: SeriesFacts, facts: SeriesFacts, policy: PairingPolicy) -> Failure | None:
    """Same patient, and the same study or a study of the same visit."""
    same_study = facts.study_uid == dwi.study_uid
    known = bool(facts.patient_key and dwi.patient_key)
    if contradict(facts.patient_key, dwi.patient_key) or not (known or same_study):
        return Failure("it is of another patient", Filter.OTHER_PATIENT)
    if same_study:
        return None
    if not known or not dwi.station or facts.station != dwi.station:
        return Failure(
            "it is of another study, and nothing shows that it is the same visit", Filter.OTHER_SESSION
        )
    minutes = minutes_apart(dwi, facts)
    if minutes is None or minutes > policy.max_minutes_apart:
        when = "at an unknown time" if minutes is None else f"{_long_time(minutes)} apart"
        return Failure(f"it is of another study, acquired {when}", Filter.OTHER_SESSION)
    return None


def _unsuitable(facts: SeriesFacts, found: Classification, order: tuple[str, ...]) -> Failure | None:
    """A complete volume, of a contrast that may serve."""
    if found.site is not Then.REFERENCE and found.contrast not in order:
        if found.contrast is Contrast.UNKNOWN:
            return Failure(f"its contrast is not known: {found.reason}", Filter.CONTRAST)
        return Failure(f"{found.contrast} is not in this site's reference order", Filter.CONTRAST)
    if facts.geometry_problem:
        lacking = left_out(facts) if facts.incomplete else ""
        return Failure(f"it forms no volume: {clause(facts.geometry_problem)}{lacking}", Filter.INCOMPLETE)
    if facts.box is None or facts.voxel_mm is None:
        return Failure("its images carry no position", Filter.INCOMPLETE)
    return None


def _too_coarse(facts: SeriesFacts, policy: PairingPolicy) -> Failure | None:
    if facts.slices < policy.min_reference_slices:
        sentence = f"it has only {facts.slices} slices, at least {policy.min_reference_slices} are needed"
        return Failure(sentence, Filter.TOO_FEW_SLICES)
    column_mm, row_mm, step_mm = facts.voxel_mm or (0.0, 0.0, 0.0)
    in_plane_mm = max(column_mm, row_mm)
    if in_plane_mm > policy.max_in_plane_mm + 0.01:
        sentence = f"its pixels of {in_plane_mm:.2g} mm are too coarse (limit {policy.max_in_plane_mm:g} mm)"
        return Failure(sentence, Filter.RESOLUTION)
    if step_mm > policy.max_step_mm + 0.01:
        sentence = f"its slices are {step_mm:.2g} mm apart (limit {policy.max_step_mm:g} mm)"
        return Failure(sentence, Filter.RESOLUTION)
    return None


_TILT_2D_DEG, _TILT_THIN_2D_DEG, _THIN_MM = 30.0, 60.0, 3.0


def _elsewhere(dwi: SeriesFacts, facts: SeriesFacts, policy: PairingPolicy) -> Failure | None:
    """The same place, seen from a direction from which it can be resampled."""
    a, b = dwi.patient_position, facts.patient_position
    if a and b and a != b:
        return Failure(f"the patient lay differently ({b}, at the DWI {a})", Filter.POSITION_CHANGED)
    if policy.require_same_frame_of_reference and not same_frame(dwi, facts):
        return Failure(
            "it has another frame of reference, and this site asks for the same", Filter.FRAME_OF_REFERENCE
        )
    stack, by = boxes(dwi, facts)
    tilt = geometry.tilt_deg(stack, by)
    step_mm = facts.voxel_mm[2] if facts.voxel_mm else 0.0
    allowed = _TILT_THIN_2D_DEG if step_mm <= _THIN_MM + 0.01 else _TILT_2D_DEG
    if facts.acquisition_type != "3D" and tilt > allowed + 0.5:
        sentence = (
            f"its slices are tilted by {tilt:.0f}° against the DWI's; "
            f"a 2-D series with slices every {step_mm:.2g} mm may be tilted by {allowed:.0f}°"
        )
        return Failure(sentence, Filter.ORIENTATION)
    share = geometry.covered(stack, by)
    if share < policy.min_overlap:
        sentence = f"it covers only {share * 100:.0f} % of the diffusion images"
        return Failure(
            f"{sentence} (at least {policy.min_overlap * 100:.0f} % are needed)", Filter.NO_OVERLAP
        )
    return None


# --- sentences --------------------------------------------------------------------------------------------


def _none_because(failures: Sequence[tuple[SeriesFacts, Failure]]) -> str:
    """Why nothing was left, naming the first three anatomical series of this visit that failed."""
    near = [(facts, why) for facts, (why, code) in failures if code not in _NOT_NEAR]
    if not near:
        return "there is no anatomical series at all; send a T2, FLAIR or T1 of the same session"
    told = [f"{name(facts)}: {why}" for facts, why in near[:3]]
    more = [f"and {len(near) - 3} more"] if len(near) > 3 else []
    return "; ".join(told + more)


_NOT_NEAR = frozenset({Filter.NOT_ANATOMICAL, Filter.OTHER_SESSION, Filter.OTHER_PATIENT})


def _long_time(minutes: float) -> str:
    hours = minutes / 60
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def _candidate(facts: SeriesFacts, rank: tuple[float | str, ...], why: str, code: str = "") -> Candidate:
    return Candidate(facts.series_uid, facts.series_number, facts.description, not code, rank, why, code)
