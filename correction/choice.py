"""Which of the candidate fields to take, and which landmarks to keep out of it so that they can judge it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from correction.landmarks import FrameLandmarks
from correction.methods import Clinical
from correction.signals import Signals

CELL_MM = 20.0  # landmarks are held out by whole cells: neighbours tell the same
ONE_IN = 6
FEWEST = 30  # held out; with fewer there is no figure


def by_agreement(before: float, after: float) -> float:
    """The share of what "nothing" leaves unexplained that a field's agreement explains; negative: a loss."""
    return (after - before) / max(1.0 - before, 1e-6)


def explained(agreement: tuple[float, float], structure: tuple[float, float]) -> float:
    """How much a field explains of what "nothing" leaves unexplained, in agreement and structure together.

    Both (before, after). Agreement alone cannot see a small distortion under a weak relation of contrasts.
    """
    return by_agreement(*agreement) + 1.0 - structure[1] / max(structure[0], 1e-12)


def choose(signals: Sequence[Signals], settings: Clinical) -> int:
    """Index of the best candidate; the first is "nothing" and stays unless another is clearly better.

    Clearly: by how much it explains, in agreement and structure together. The same ranks those that are:
    agreement punishes over-fitting but hardly tells near ones apart, structure takes whatever bends most.
    A hair of agreement may be lost: under a weak relation of contrasts it falls with a right field, too.
    Ties go to the earlier, simpler one.
    """
    nothing = signals[0]

    def gain(found: Signals) -> float:
        return explained((nothing.agreement, found.agreement), (nothing.structure, found.structure))

    worthy = [
        index
        for index, found in enumerate(signals)
        if gain(found) > settings.least_gain
        and by_agreement(nothing.agreement, found.agreement) > -settings.most_agreement_loss
        and found.structure < nothing.structure * settings.most_structure_ratio
    ]
    return max(worthy, key=lambda index: (gain(signals[index]), -index), default=0)


def hold_out(landmarks: FrameLandmarks | None) -> tuple[FrameLandmarks | None, FrameLandmarks | None]:
    """Landmarks for the field, and those kept out of it: one cell of ONE_IN, spread over the head.

    (all, None) where too few would be kept out to say anything.
    """
    if landmarks is None:
        return None, None
    cell = torch.floor(landmarks.fixed_mm / CELL_MM).long()
    # a fixed pattern without a plane of its own: neighbours along every axis fall into other classes
    out = (cell[:, 0] + 2 * cell[:, 1] + 3 * cell[:, 2]) % ONE_IN == 0
    if int(out.sum()) < FEWEST:
        return landmarks, None
    parts = [
        FrameLandmarks(landmarks.fixed_mm[chosen], landmarks.shift_mm[chosen], landmarks.weight[chosen])
        for chosen in (~out, out)
    ]
    return parts[0], parts[1]
