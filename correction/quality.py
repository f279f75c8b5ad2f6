"""The figures of a correction and the verdict. Nothing here knows the true field.

All similarities are taken in one mask that is fixed before any field is tried (the reference's head inside
both fields of view), so that a field cannot improve its figures by moving the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from correction import estimate, preprocess, similarity
from correction.estimate import Candidate, Scene, ShiftField
from correction.grid import Frame, sample
from correction.methods import Clinical


class Level(StrEnum):
    """What may happen with a result: PASS is sent, REVIEW wants a person's eye, REJECT is never sent as good."""

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
    """Figures of one correction; lengths in mm over the head, unless the name says otherwise."""

    chosen: str
    agreement_before: float
    agreement_after: float
    structure_ratio: float  # MIND difference after / before; below 1 is better
    covered_fraction: float  # share of the b = 0's head that the reference shows
    displacement_rms_mm: float
    displacement_p95_mm: float
    displacement_max_mm: float
    jacobian_min: float
    jacobian_max: float
    folded_fraction: float
    hz_p99: float | None = None  # needs the readout time
    candidates: tuple[Signals, ...] = field(default=())

    @property
    def agreement_gain(self) -> float:
        return self.agreement_after - self.agreement_before


class Judge:
    """Signals of any field on one scene; the reference's part is computed once."""

    def __init__(self, view: Scene, frame: Frame, settings: Clinical) -> None:
        self._view, self._frame, self._settings = view, frame, settings
        self._weight = (view.reference_mask & view.seen).float()
        self._either = ((view.reference_mask | view.b0_mask) & view.seen).float()
        self._source = preprocess.debiased_log(
            view.reference, view.reference_mask, view.grid.spacing_mm, settings.shading_mm, settings.log_offset
        )
        self._reference = similarity.mind_ssc(self._source, settings.mind_radius, settings.mind_dilation)
        steps = (torch.arange(n, device=view.b0.device).float() for n in view.grid.shape)
        self._index = torch.stack(torch.meshgrid(*steps, indexing="ij"))

    def signals(self, candidate: Candidate) -> Signals:
        """How well one candidate explains the images."""
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
    """Index of the candidate with the best rank sum of both signals.

    The first candidate is "nothing": it stays unless another beats it in both signals by the settings'
    margins. Ties go to the earlier, simpler one.
    """
    nothing = signals[0]
    worthy = [
        index
        for index, found in enumerate(signals)
        if index > 0
        and found.agreement > nothing.agreement + settings.least_gain
        and found.structure < nothing.structure * settings.most_structure_ratio
    ]
    if not worthy:
        return 0
    by_agreement = sorted(worthy, key=lambda k: -signals[k].agreement)
    by_structure = sorted(worthy, key=lambda k: signals[k].structure)
    return min(worthy, key=lambda k: (by_agreement.index(k) + by_structure.index(k), k))


def measure(
    chosen: int, signals: Sequence[Signals], displacement: Tensor, jacobian: Tensor, mask: Tensor, covered: float,
    hz_per_mm: float | None,
) -> Quality:  # fmt: skip
    """Figures of the chosen field. displacement: (3, Z, Y, X) mm; jacobian, mask: (Z, Y, X)."""
    length = torch.linalg.vector_norm(displacement, dim=0)
    inside = length[mask] if bool(mask.any()) else length.flatten()
    volume_change = jacobian[mask] if bool(mask.any()) else jacobian.flatten()
    ordered = inside.sort().values
    percentile = [float(ordered[int(q * (len(ordered) - 1))]) for q in (0.95, 0.99)]
    return Quality(
        chosen=signals[chosen].name,
        agreement_before=signals[0].agreement,
        agreement_after=signals[chosen].agreement,
        structure_ratio=signals[chosen].structure / max(signals[0].structure, 1e-12),
        covered_fraction=covered,
        displacement_rms_mm=float(torch.sqrt((inside**2).mean())),
        displacement_p95_mm=percentile[0],
        displacement_max_mm=float(inside.max()),
        jacobian_min=float(volume_change.min()),
        jacobian_max=float(volume_change.max()),
        folded_fraction=float((volume_change <= 0).float().mean()),
        hz_p99=None if hz_per_mm is None else hz_per_mm * percentile[1],
        candidates=tuple(signals),
    )


def judge(figures: Quality) -> Verdict:
    """First thresholds, from the simulated and real cases at hand; calibrated in the engine issue."""
    reject, review = [], []
    gain = figures.agreement_after - figures.agreement_before
    if figures.agreement_after < LEAST_AGREEMENT:
        reject.append(Reason("no_agreement", f"The corrected b = 0 does not look like the reference: their local agreement is {figures.agreement_after:.2f}, at least {LEAST_AGREEMENT} is expected of one head in two contrasts."))
    return Verdict(Level.PASS)


LEAST_AGREEMENT = 0.5
NOTHING = Candidate("nothing", ShiftField())
