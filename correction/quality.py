"""The figures of a correction and the verdict (docs/verdict.md); nothing here knows the true field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from correction import choice
from correction.estimate import Candidate
from correction.landmarks import Consensus
from correction.rigid import Pose
from correction.shifts import Unmoved
from correction.signals import Inspection, Signals

NOTHING = Candidate("nothing", Unmoved())


class Level(StrEnum):
    """PASS is sent, REVIEW wants a person's eye, REJECT is never sent as good."""

    PASS = "pass"
    REVIEW = "review"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a verdict is not better: a code for programs and a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    level: Level
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the images and the landmarks say about the chosen field and about none.

    inliers: share of the matches in the head that agree with one another; None without a matcher.
    two_estimates_mm: median distance between landmarks and a search that knew none of them.
    """

    before: Inspection
    after: Inspection
    inliers: float | None = None
    two_estimates_mm: float | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one correction, over the reference's head; `candidates` is everything that was compared."""

    chosen: str
    agreement_before: float
    agreement_after: float
    structure_before: float
    structure_after: float
    edges_before: float
    edges_after: float
    remaining_along_before_mm: float  # along phase encode, what the median patch would still have to move
    remaining_along_after_mm: float
    remaining_far_before_fraction: float  # share of the patches with more than 2 mm to go along it
    remaining_far_after_fraction: float
    remaining_across_mm: float  # and across it, where no distortion moves anything
    held_out_landmarks_before_mm: float | None  # median distance of landmarks that had no part in the field
    held_out_landmarks_after_mm: float | None
    held_out_landmarks_slope: float | None  # share of the field that they are shifted by; 1 is right
    landmark_inlier_fraction: float | None
    two_estimates_mm: float | None
    covered_fraction: float  # share of the b = 0's head that the reference shows
    reference_shift_mm: tuple[float, float, float]  # LPS; where the rigid step laid the reference
    reference_turn_deg: tuple[float, float, float]
    displacement_rms_mm: float
    displacement_p95_mm: float
    displacement_max_mm: float
    displacement_median_mm: tuple[float, float, float]  # LPS; what a shift of the whole image would be
    off_phase_encode_fraction: float | None  # share of the field's energy; None when the axis is unknown
    jacobian_min: float
    jacobian_max: float
    folded_fraction: float
    strained_fraction: float  # share of the head compressed or stretched more than twofold
    hz_p99: float | None  # needs the readout time and the phase-encode axis
    candidates: tuple[Signals, ...]


def inlier_fraction(landmarks: Consensus) -> float | None:
    """Share of the matches inside the head that neighbours and physics do not contradict."""
    other = ("outside the head", "crowded", "too few left")
    looked_at = landmarks.found - landmarks.dropped.get("outside the head", 0)
    wrong = sum(count for why, count in landmarks.dropped.items() if why not in other)
    return 1.0 - wrong / looked_at if looked_at > 0 else None


def measure(
    chosen: int, signals: Sequence[Signals], evidence: Evidence, displacement: Tensor, jacobian: Tensor,
    mask: Tensor, covered: float, phase_axis_lps: Sequence[float] | None, hz_per_mm: float | None,
    pose: Pose,
) -> Quality:  # fmt: skip
    """Figures of the chosen field.

    displacement: (3, Z, Y, X) mm LPS; jacobian, mask: (Z, Y, X). phase_axis_lps: unit vector, None: unknown.
    """
    if not bool(mask.any()):
        mask = torch.ones_like(mask)
    vectors, volume_change = displacement[:, mask], jacobian[mask]
    length = torch.linalg.vector_norm(vectors, dim=0)
    ordered = length.sort().values
    percentile = [float(ordered[int(q * (len(ordered) - 1))]) for q in (0.95, 0.99)]
    middle = [float(component.median()) for component in vectors]
    strained = (volume_change < 0.5) | (volume_change > 2.0)
    before, after = evidence.before, evidence.after
    return Quality(
        chosen=signals[chosen].name,
        agreement_before=signals[0].agreement,
        agreement_after=signals[chosen].agreement,
        structure_before=signals[0].structure,
        structure_after=signals[chosen].structure,
        edges_before=before.edges,
        edges_after=after.edges,
        remaining_along_before_mm=before.along_mm,
        remaining_along_after_mm=after.along_mm,
        remaining_far_before_fraction=before.far_fraction,
        remaining_far_after_fraction=after.far_fraction,
        remaining_across_mm=after.across_mm,
        held_out_landmarks_before_mm=before.landmarks_mm,
        held_out_landmarks_after_mm=after.landmarks_mm,
        held_out_landmarks_slope=after.landmarks_slope,
        landmark_inlier_fraction=evidence.inliers,
        two_estimates_mm=evidence.two_estimates_mm,
        covered_fraction=covered,
        reference_shift_mm=pose.shift_mm,
        reference_turn_deg=pose.turn_deg,
        displacement_rms_mm=float(torch.sqrt((length**2).mean())),
        displacement_p95_mm=percentile[0],
        displacement_max_mm=float(length.max()),
        displacement_median_mm=(middle[0], middle[1], middle[2]),
        off_phase_encode_fraction=_off_axis(vectors, phase_axis_lps),
        jacobian_min=float(volume_change.min()),
        jacobian_max=float(volume_change.max()),
        folded_fraction=float((volume_change <= 0).float().mean()),
        strained_fraction=float(strained.float().mean()),
        hz_p99=None if hz_per_mm is None else hz_per_mm * percentile[1],
        candidates=tuple(signals),
    )


def _off_axis(vectors: Tensor, phase_axis_lps: Sequence[float] | None) -> float | None:
    """Share of Σ|u|² that is not along phase encode. vectors: (3, N) mm."""
    if phase_axis_lps is None:
        return None
    axis = torch.tensor(list(phase_axis_lps), dtype=vectors.dtype, device=vectors.device)
    total = float((vectors**2).sum())
    along = float(((axis[:, None] * vectors).sum(0) ** 2).sum())
    return max(0.0, 1.0 - along / total) if total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure's limits, in its unit: beyond `review` a person looks, beyond `reject` nothing is sent."""

    code: str
    figure: Callable[[Quality], float]
    review: float
    reject: float
    text: str  # {value}, {limit}


def _explained(figures: Quality) -> float:
    return choice.explained(
        (figures.agreement_before, figures.agreement_after),
        (figures.structure_before, figures.structure_after),
    )


# Calibrated on right pairs and on pairs made wrong (docs/verdict.md has the counts and what was tried).
LIMITS = (
    Limit(
        "anatomy_differs", lambda q: q.remaining_across_mm, 2.4, 3.6,
        "Across phase encode, where EPI does not distort, half of the image lies {value} mm or more from "
        "the reference, expected below {limit} mm. The patient moved between the two series, or they do "
        "not show the same region or patient.",
    ),
    Limit(
        "moved_across",
        lambda q: q.remaining_across_mm if q.remaining_across_mm > 2 * q.remaining_along_before_mm else 0.0,
        1.0, math.inf,
        "The images differ more across phase encode ({value} mm) than along it. The phase-encode axis "
        "may be wrong, or the patient moved between the two series.",
    ),
    Limit(
        "still_apart", lambda q: q.remaining_along_after_mm, 1.5, 2.3,
        "Along phase encode half of the image still lies {value} mm or more from the reference after the "
        "correction, expected below {limit} mm.",
    ),
    Limit(
        "parts_apart", lambda q: q.remaining_far_after_fraction, 0.4, math.inf,
        "{percent:.0f} % of the image still lies more than 2 mm from the reference along phase encode, after "
        "the correction.",
    ),
    Limit(
        "parts_worse",
        lambda q: q.remaining_far_after_fraction - q.remaining_far_before_fraction, 0.05, math.inf,
        "The correction brought {percent:.0f} % more of the image to more than 2 mm from the reference.",
    ),
    Limit(
        "worse_than_before", lambda q: q.remaining_along_after_mm - q.remaining_along_before_mm, 0.2, 1.0,
        "The correction moved the image away from the reference: {value} mm farther along phase encode "
        "than before.",
    ),
    Limit(
        "landmarks_disagree", lambda q: q.held_out_landmarks_after_mm or 0.0, 1.5, 3.0,
        "Points that both images show, and that the correction was not told, lie {value} mm from where "
        "it puts them, expected below {limit} mm.",
    ),
    Limit(
        "landmarks_worse",
        lambda q: (q.held_out_landmarks_after_mm or 0.0) - (q.held_out_landmarks_before_mm or 0.0), 0.1, 1.0,
        "Points that both images show, and that the correction was not told, lie {value} mm farther "
        "apart after it than before.",
    ),
    Limit(
        "over_corrected",
        lambda q: 0.0 if q.held_out_landmarks_slope is None else 1.0 - q.held_out_landmarks_slope, 0.35, 0.75,
        "The correction goes too far: points that both images show, and that it was not told, are shifted by "
        "{percent:.0f} % less than it says.",
    ),
    Limit(
        "few_common_points",
        lambda q: 0.0 if q.landmark_inlier_fraction is None else 1.0 - q.landmark_inlier_fraction, 0.65, 0.85,
        "{percent:.0f} % of the points found in both images contradict one another: the images may not show "
        "the same anatomy.",
    ),
    Limit(
        "estimates_disagree", lambda q: q.two_estimates_mm or 0.0, 2.5, 5.0,
        "Two independent estimates of the distortion differ by {value} mm; usual is below {limit}.",
    ),
    Limit(
        "weak_evidence", lambda q: 0.0 if q.chosen == NOTHING.name else 1.0 - _explained(q), 0.95, 1.0,
        "The correction made the b = 0 hardly more like the reference: {percent:.0f} % of the difference is "
        "left.",
    ),
    Limit(
        "reference_too_small", lambda q: 1.0 - q.covered_fraction, 0.4, 0.8,
        "The reference leaves {percent:.0f} % of the b = 0's head uncovered; there the field is a guess.",
    ),
    Limit(
        "not_aligned", lambda q: math.dist(q.displacement_median_mm, (0, 0, 0)), 8.0, 16.0,
        "The field is mostly a shift of the whole image, {value} mm: the images may not be aligned, or "
        "the patient moved between them.",
    ),
    Limit(
        "implausible_shift", lambda q: q.displacement_p95_mm, 16.0, 30.0,
        "A twentieth of the head is shifted by {value} mm or more, expected below {limit} mm.",
    ),
    Limit(
        "strained", lambda q: q.strained_fraction, 0.05, 0.15,
        "{percent:.0f} % of the head is compressed or stretched more than twofold.",
    ),
    Limit(
        "folded", lambda q: q.folded_fraction, 0.0, 0.001,
        "The field folds in {percent:.2f} % of the head.",
    ),
)  # fmt: skip
LEFT_ALONE_MM = 1.0  # what may remain along phase encode in an image that nothing was done to


def _told_apart(value: float, limit: float) -> tuple[str, str]:
    """Both with one digit behind the point, and as many more as it takes for a sentence to make sense."""
    digits = next((n for n in range(1, 4) if f"{value:.{n}f}" != f"{limit:.{n}f}"), 4)
    return f"{value:.{digits}f}", f"{limit:.{digits}f}"


def judge(figures: Quality) -> Verdict:
    """The worst level that any figure asks for, with the reasons for it; nobody is told why all was well."""
    reasons: dict[Level, list[Reason]] = {Level.REVIEW: [], Level.REJECT: []}
    for limit in LIMITS:
        value = limit.figure(figures)
        level = Level.REJECT if value > limit.reject else Level.REVIEW
        if value > limit.review:
            shown, below = _told_apart(value, limit.review)
            text = limit.text.format(value=shown, limit=below, percent=100 * value)
            reasons[level].append(Reason(limit.code, text))
    if figures.chosen == NOTHING.name and figures.remaining_along_after_mm > LEFT_ALONE_MM:
        reasons[Level.REVIEW].append(
            Reason(
                "nothing_chosen",
                "The images differ along phase encode, but no field explained them better than leaving them "
                "as they are; nothing was moved. The reference may not show what the b = 0 shows.",
            )
        )
    found = (*reasons[Level.REJECT], *reasons[Level.REVIEW])
    worst = Level.REJECT if reasons[Level.REJECT] else Level.REVIEW if found else Level.PASS
    return Verdict(worst, found)
