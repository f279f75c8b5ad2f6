"""Landmarks between a reference and a distorted b = 0: slices, contrast, matcher, and back to 3-D.

Distortion moves tissue along phase encode only, so that the two views that contain this axis show the same
anatomy on the same slice. The third view pairs different anatomy: it is left out, unless the axis is
unknown and the field free, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from correction import parallel, preprocess
from correction.errors import SettingsError
from correction.grid import Frame, Grid
from correction.landmarks import contrast, matchers, mind_blocks, views
from correction.landmarks.consensus import Consensus, agree
from correction.landmarks.contrast import AS_IS, INVERTED, Subject, Tone
from correction.landmarks.features import Matcher
from correction.landmarks.points import Landmarks
from correction.landmarks.views import Plane
from correction.landmarks.weights import WeightsError
from correction.volume import Volume

Stack = list[Plane]


@dataclass(frozen=True, slots=True)
class Slicing:
    """How a pair is cut into pictures; lengths in mm."""

    pixel_mm: float = 0.4  # median error of the landmarks kept on XA30: 0.93 mm; at 0.5 1.02, at 0.75 1.15
    step_mm: float = 5.0  # between slices
    most_slices: int = 20  # of a view: seconds against 0.1 mm at 15 slices (XA30); above 20 no gain
    margin_mm: float = 8.0  # around the head
    overview_mm: float = 3.0  # grid of head masks and shading
    trial_slices: int = 3  # of each view, to see which contrast matches
    most_anisotropy: float = 4.0  # slices further apart than that many pixels make no view across them
    fewest_pixels: int = 64


def find_landmarks(
    b0: Volume,
    reference: Volume,
    phase_encoding: str | None,
    matcher: str = "auto",
    weights_dir: Path | None = None,
    device: str = "cpu",
    slicing: Slicing | None = None,
) -> Landmarks:
    """Where the reference's anatomy lies in the distorted b = 0; unfiltered, `agree` selects.

    phase_encoding: voxel axis of b0's array, i, j or k, with or without '-'; None: unknown, all three views.
    matcher: a name of matchers.FILES, mind_blocks.NAME, or "auto": XFeat, or MIND blocks where its
    weights are not installed. The result's `matcher` says what was used and how the reference was drawn.
    Deterministic on one machine. Raises WeightsError, SettingsError or UnusableImage.
    """
    slicing = slicing if slicing is not None else Slicing()
    phase_encoding = None if phase_encoding in (None, "none", "") else phase_encoding
    frame = Frame.of(b0, phase_encoding)
    b0 = Volume(preprocess.finite("b = 0", b0.data), b0.affine)
    reference = Volume(preprocess.finite("reference", reference.data), reference.affine)
    chosen = _matcher(matcher, weights_dir, device, phase_encoding is not None)
    if not isinstance(chosen, Matcher):
        return replace(mind_blocks.find(b0, reference, frame), matcher=chosen)
    pair = _Pair.of(b0, reference, frame, slicing)
    one_axis = phase_encoding is not None
    stacks = {
        axis: stack for axis in ((0, 1) if one_axis else (0, 1, 2)) if (stack := pair.stack(axis, slicing))
    }
    if not stacks:
        return _joined([], chosen.name)
    tone, tried, agreed = _tone(pair, list(stacks.values()), chosen, slicing, one_axis)
    parts = [tried]
    for axis, stack in stacks.items():
        trial = _trial(stack, slicing)
        rest = [plane for plane in stack if not any(plane is one for one in trial)]
        offset_mm = agreed.off_axis_mm[axis] if one_axis else 0.0
        parts.append(pair.match(chosen, rest, tone, offset_mm))
    found = _joined(parts, f"{chosen.name}, reference {tone.name}")
    return replace(found, weight_files=dict(chosen.weights))


def _matcher(name: str, weights_dir: Path | None, device: str, one_axis: bool) -> Matcher | str:
    """The matcher, or for MIND blocks, which search along one known axis, what to call them."""
    if name == mind_blocks.NAME:
        if not one_axis:
            raise SettingsError("mind-blocks searches along phase encode and needs to know the axis.")
        return name
    wanted = matchers.AUTO if name == "auto" else name
    try:
        return matchers.matcher(wanted, weights_dir, device)
    except WeightsError:
        if name == "auto" and one_axis:
            return f"{mind_blocks.NAME}, for want of {wanted}"
        raise


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Both images ready to be drawn, the frame of the b = 0, and the heads on an overview grid of it."""

    frame: Frame
    grid: Grid
    space: Volume  # the b = 0, whose voxels place the planes
    b0: Subject
    reference: Subject

    @classmethod
    def of(cls, b0: Volume, reference: Volume, frame: Frame, slicing: Slicing) -> _Pair:
        full = frame.grid()
        a, b, p = (max(slicing.overview_mm, s) for s in frame.spacing_mm)
        ends = (full.last_mm(0), full.last_mm(1), full.last_mm(2))
        grid = Grid.between(full.first_mm, ends, (a, b, p))
        return cls(frame, grid, b0, Subject.of(b0, frame, grid), Subject.of(reference, frame, grid))

    @property
    def heads(self) -> Tensor:
        """(A, B, P) bool on `grid`."""
        return (self.b0.head.data + self.reference.head.data) > 0.5

    def stack(self, axis: int, slicing: Slicing) -> Stack:
        """Slices perpendicular to a frame axis through the heads; empty where they would show nothing."""
        spacing = self.frame.spacing_mm
        kept = [k for k in range(3) if k != axis]
        edges = [spacing[k] for k in kept]
        if max(edges) > slicing.most_anisotropy * min(edges):
            return []
        box = [(0, 0)] * 3
        reach = (0, 0)
        for k, (low, high) in enumerate(preprocess.bounding_box(self.heads)):
            margin = 0.0 if k == axis else slicing.margin_mm
            at = self.grid.coordinates(k)
            first = max(0, round((float(at[low]) - margin) / spacing[k]))
            last = min(self.frame.shape[k] - 1, round((float(at[high]) + margin) / spacing[k]))
            box[self.frame.order[k]] = (first, max(first, last))
            if k == axis:
                reach = (first, max(first, last))
        count = int((reach[1] - reach[0] + 1) * spacing[axis] / slicing.step_mm)
        count = min(max(1, count), slicing.most_slices)
        # slice centres of the b = 0, as even as they come
        share = (np.arange(count) + 0.5) / count
        indices = np.unique((reach[0] + share * (reach[1] - reach[0] + 1) - 0.5).round().astype(int))
        planes = [
            views.plane(self.space, self.frame.order[axis], int(index), slicing.pixel_mm, box)
            for index in indices
        ]
        return planes if planes and min(planes[0].shape) >= slicing.fewest_pixels else []

    def match(
        self, matcher: Matcher, planes: Sequence[Plane], tone: Tone, offset_mm: float = 0.0
    ) -> Landmarks:
        """Landmarks of slices, in patient space and in the order of the slices.

        offset_mm: how much farther along its slice axis the b = 0 shows what the reference shows. The
        reference is sliced that much before, so that both slices hold the same tissue; its landmarks
        are still written into the b = 0's slice, whose distortion they tell.
        """

        def matched(one: Plane) -> Landmarks:
            same_tissue = self.reference.draw([one.moved(-offset_mm)], tone)
            found = matcher.match(same_tissue, self.b0.draw([one], AS_IS))[0]
            return Landmarks(
                one.to_lps(found.fixed.double().numpy()),
                one.to_lps(found.moving.double().numpy()),
                found.score.double().numpy(),
            )

        return _joined(parallel.each(matched, planes, matcher.device), matcher.name)


def _trial(stack: Stack, slicing: Slicing) -> Stack:
    """A few slices, evenly through the middle of the stack."""
    share = (torch.arange(slicing.trial_slices) + 1.0) / (slicing.trial_slices + 1.0)
    return [stack[index] for index in sorted({int(s * len(stack)) for s in share.tolist()})]


def _tone(
    pair: _Pair, stacks: Sequence[Stack], matcher: Matcher, slicing: Slicing, one_axis: bool
) -> tuple[Tone, Landmarks, Consensus]:
    """The tone under which most matches agree with one another, its trial's matches, and which agree.

    The header's name of a contrast is not needed: a negative loses nine of ten matches. The better of the
    two plain tones moves the b = 0 into place, and from there the third is learned.
    """

    def tried(tone: Tone) -> tuple[int, Tone, Landmarks, Consensus]:
        trial = [one for stack in stacks for one in _trial(stack, slicing)]
        found = pair.match(matcher, trial, tone)
        agreed = agree(found, pair.frame, pair.grid, pair.heads, one_axis)
        crowd = agreed.dropped.get("crowded", 0) + agreed.dropped.get("too few left", 0)
        return agreed.count + crowd, tone, found, agreed

    best = max((tried(tone) for tone in (AS_IS, INVERTED)), key=lambda trial: trial[0])
    if best[3].kept is not None:
        fixed, moving = (
            pair.frame.points_from_lps(p) for p in (best[3].kept.fixed_mm, best[3].kept.moving_mm)
        )
        tone = contrast.learned(pair.reference, pair.b0, pair.frame, pair.grid, fixed, moving - fixed)
        if tone is not None:
            best = max(best, tried(tone), key=lambda trial: trial[0])
    return best[1:]


def _joined(parts: Sequence[Landmarks], name: str) -> Landmarks:
    return Landmarks(
        np.concatenate([np.zeros((0, 3)), *(part.fixed_mm for part in parts)]),
        np.concatenate([np.zeros((0, 3)), *(part.moving_mm for part in parts)]),
        np.concatenate([np.zeros(0), *(part.confidence for part in parts)]),
        name,
    )
