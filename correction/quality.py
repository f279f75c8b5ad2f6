"""The figures of a correction and the verdict. Nothing here knows the true field.

All similarities are taken in one mask that is fixed before any field is tried (the reference's head inside
both fields of view), so that a field cannot improve its figures by moving the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from correction import estimate, preprocess, similarity
from correction.estimate import Candidate, Scene, ShiftField
from correction.grid import Frame, sample
from correction.methods import Clinical

NOTHING = Candidate("nothing", ShiftField())


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
class Signals:
    """How well one field explains the images.

    agreement: correlation of the corrected, Jacobian-modulated b = 0 with what the reference predicts
    locally. structure: mean MIND difference of corrected b = 0 and reference (lower is better).
    """

    name: str
    agreement: float
    structure: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one correction, over the reference's head; `candidates` is everything that was compared."""

    chosen: str
    agreement_before: float
    agreement_after: float
    structure_before: float
    structure_after: float
    covered_fraction: float  # share of the b = 0's head that the reference shows
    displacement_rms_mm: float
    displacement_p95_mm: float
    displacement_max_mm: float
    displacement_median_mm: tuple[float, float, float]  # LPS; what a shift of the whole image would be
    jacobian_min: float
    jacobian_max: float
    folded_fraction: float
    strained_fraction: float  # share of the head compressed or stretched more than twofold
    hz_p99: float | None  # needs the readout time and the phase-encode axis
    candidates: tuple[Signals, ...]


class Judge:
    """Signals of any field on one scene; the reference's part is computed once."""

    def __init__(self, view: Scene, frame: Frame, settings: Clinical) -> None:
        self._view, self._frame, self._settings = view, frame, settings
        self._known: dict[Candidate, Signals] = {}
        self._weight = (view.reference_mask & view.seen).float()
        self._either = ((view.reference_mask | view.b0_mask) & view.seen).float()
        self._source = preprocess.debiased_log(
            view.reference,
            view.reference_mask,
            view.grid.spacing_mm,
            settings.shading_mm,
            settings.log_offset,
        )
        self._reference = similarity.mind_ssc(self._source, settings.mind_radius, settings.mind_dilation)
        steps = (torch.arange(n, device=view.b0.device).float() for n in view.grid.shape)
        self._index = torch.stack(torch.meshgrid(*steps, indexing="ij"))

    def signals(self, candidate: Candidate) -> Signals:
        """How well one candidate explains the images; asked twice of the same field, computed once."""
        if candidate not in self._known:
            self._known[candidate] = self._measured(candidate)
        return self._known[candidate]

    def _measured(self, candidate: Candidate) -> Signals:
        view = self._view
        vectors, jacobian = candidate.field.vectors(self._frame, view.grid)
        spacing = torch.tensor(view.grid.spacing_mm, device=view.b0.device)[:, None, None, None]
        index = self._index + vectors.to(view.b0.device) / spacing
        warped, mask = sample(torch.stack([view.b0, view.b0_mask.float()]), index)
        modulated = warped * jacobian.to(view.b0.device).clamp(min=0)
        a, b, p = (self._settings.synthesis_mm / s for s in view.grid.spacing_mm)
        predicted = similarity.local_synthesis(
            modulated, self._source, self._weight, self._settings.synthesis_bins, (a, b, p)
        )
        moved = estimate.descriptors(warped, mask > 0.5, view.grid, self._settings)
        difference = ((self._reference - moved) ** 2).mean(0)
        return Signals(
            name=candidate.name,
            agreement=similarity.correlation(predicted, modulated, self._weight),
            structure=float((difference * self._either).sum() / self._either.sum().clamp(min=1)),
        )


def choose(signals: Sequence[Signals], settings: Clinical) -> int:
    """Index of the best candidate by agreement; structure only says which may stand.

    The first is "nothing": it stays unless another beats it in both signals by the settings' margins.
    Agreement punishes over-fitting, structure rewards it (its best is always the weakest bending), so that
    agreement alone ranks. Ties go to the earlier, simpler one.
    """
    nothing = signals[0]
    worthy = [
        index
        for index, found in enumerate(signals)
        if found.agreement > nothing.agreement + settings.least_gain
        and found.structure < nothing.structure * settings.most_structure_ratio
    ]
    return max(worthy, key=lambda index: (signals[index].agreement, -index), default=0)


def measure(
    chosen: int, signals: Sequence[Signals], displacement: Tensor, jacobian: Tensor, mask: Tensor,
    covered: float, hz_per_mm: float | None,
) -> Quality:  # fmt: skip
    """Figures of the chosen field. displacement: (3, Z, Y, X) mm; jacobian, mask: (Z, Y, X)."""
    length = torch.linalg.vector_norm(displacement, dim=0)
    inside = length[mask] if bool(mask.any()) else length.flatten()
    volume_change = jacobian[mask] if bool(mask.any()) else jacobian.flatten()
    ordered = inside.sort().values
    percentile = [float(ordered[int(q * (len(ordered) - 1))]) for q in (0.95, 0.99)]
    middle = [float(component[mask].median()) if bool(mask.any()) else 0.0 for component in displacement]
    strained = (volume_change < 0.5) | (volume_change > 2.0)
    return Quality(
        chosen=signals[chosen].name,
        agreement_before=signals[0].agreement,
        agreement_after=signals[chosen].agreement,
        structure_before=signals[0].structure,
        structure_after=signals[chosen].structure,
        covered_fraction=covered,
        displacement_rms_mm=float(torch.sqrt((inside**2).mean())),
        displacement_p95_mm=percentile[0],
        displacement_max_mm=float(inside.max()),
        displacement_median_mm=(middle[0], middle[1], middle[2]),
        jacobian_min=float(volume_change.min()),
        jacobian_max=float(volume_change.max()),
        folded_fraction=float((volume_change <= 0).float().mean()),
        strained_fraction=float(strained.float().mean()),
        hz_p99=None if hz_per_mm is None else hz_per_mm * percentile[1],
        candidates=tuple(signals),
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure's limits, in its unit: beyond `review` a person looks, beyond `reject` nothing is sent."""

    code: str
    figure: Callable[[Quality], float]
    review: float
    reject: float
    text: str  # {value}, {limit}


# From simulated and real pairs, their shifted, swapped and foreign references (good: structure at most
# 0.060; bad: at least 0.071). Few cases: calibrated in the engine issue.
LIMITS = (
    Limit(
        "anatomy_differs", lambda q: q.structure_after, 0.065, 0.075,
        "The corrected b = 0 does not show the reference's anatomy: structural difference {value:.3f}, "
        "expected below {limit:.3f}. Check that both are of the same region and patient.",
    ),
    Limit(
        "weak_evidence",
        lambda q: 0.0 if q.chosen == NOTHING.name else q.structure_after / max(q.structure_before, 1e-12),
        0.94, 1.0,
        "The correction made the b = 0 only a little more like the reference: structural difference at "
        "{percent:.0f} % of what it was.",
    ),
    Limit(
        "reference_too_small", lambda q: 1.0 - q.covered_fraction, 0.5, 0.8,
        "The reference leaves {percent:.0f} % of the b = 0's head uncovered; there the field is a guess.",
    ),
    Limit(
        "not_aligned", lambda q: math.dist(q.displacement_median_mm, (0, 0, 0)), 8.0, 16.0,
        "The field is mostly a shift of the whole image, {value:.0f} mm: the images may not be aligned, or "
        "the patient moved between them.",
    ),
    Limit(
        "implausible_shift", lambda q: q.displacement_p95_mm, 16.0, 30.0,
        "A twentieth of the head is shifted by {value:.0f} mm or more, expected below {limit:.0f} mm.",
    ),
    Limit(
        "strained", lambda q: q.strained_fraction, 0.02, 0.15,
        "{percent:.0f} % of the head is compressed or stretched more than twofold.",
    ),
    Limit(
        "folded", lambda q: q.folded_fraction, 0.0, 0.001,
        "The field folds in {percent:.2f} % of the head.",
    ),
)  # fmt: skip


def judge(figures: Quality) -> Verdict:
    """The worst level that any figure asks for, with the reasons for it; nobody is told why all was well."""
    reasons: dict[Level, list[Reason]] = {Level.REVIEW: [], Level.REJECT: []}
    for limit in LIMITS:
        value = limit.figure(figures)
        level = Level.REJECT if value > limit.reject else Level.REVIEW
        if value > limit.review:
            text = limit.text.format(value=value, limit=limit.review, percent=100 * value)
            reasons[level].append(Reason(limit.code, text))
    if figures.chosen == NOTHING.name:
        reasons[Level.REVIEW].append(
            Reason(
                "nothing_chosen",
                "No field explained the images better than leaving them as they are; nothing was moved. "
                "Either there is no distortion to correct, or the reference does not show it.",
            )
        )
    found = (*reasons[Level.REJECT], *reasons[Level.REVIEW])
    worst = Level.REJECT if reasons[Level.REJECT] else Level.REVIEW if found else Level.PASS
    return Verdict(worst, found)
