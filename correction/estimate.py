"""The clinical method: one shift per voxel along phase encode, coarse to fine.

The MIND cost of every shift is tabulated and a cubic B-spline with bending energy and a fold limit is fitted
to the table: on a coarse grid over a wide range of shifts, then over the range that was found, with the
fields of air where air is the cause, and at last close to the result. What `choice` then chooses among are
"nothing" and the answers of the later stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from correction import cost, parallel, preprocess, similarity
from correction.fit import Fit, fit_shifts
from correction.grid import Frame, Grid, Shape, Triple, resample
from correction.landmarks import FrameLandmarks
from correction.methods import Clinical
from correction.shifts import ShiftField
from correction.susceptibility import AirFields, air_fields
from correction.volume import Volume

AIR = "air"  # names of candidates that follow the air begin with this


class Field(Protocol):
    """Anything that says where each point of a grid comes from."""

    def vectors(self, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
        """Displacement (3, A, B, P) in mm along the frame's axes, and det ∂(x + u)/∂x (A, B, P)."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One possible answer and the stage it came from; equal to itself only."""

    name: str
    field: Field


@dataclass(frozen=True, slots=True)
class Scene:
    """Both images on one working grid, ready to be compared. All (A, B, P)."""

    grid: Grid
    reference: Tensor  # source intensities
    b0: Tensor
    reference_mask: Tensor  # head, bool
    b0_mask: Tensor
    seen: Tensor  # inside both fields of view, bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Both images, the frame that they are compared in, and the box around the head in it (frame mm)."""

    frame: Frame
    b0: Volume
    reference: Volume
    low_mm: Triple
    high_mm: Triple

    @classmethod
    def of(cls, frame: Frame, b0: Volume, reference: Volume, settings: Clinical) -> Pair:
        """The box holds whatever gives signal in either image, with a margin, inside b0's field of view."""
        full = frame.grid()
        ends = (full.last_mm(0), full.last_mm(1), full.last_mm(2))
        a, b, p = (max(3.0, s) for s in frame.spacing_mm)
        overview = Grid.between(full.first_mm, ends, (a, b, p))
        seen_b0, _ = resample(b0, frame, overview)
        seen_reference, inside = resample(reference, frame, overview)
        heads = head(seen_b0, overview, settings) | (
            head(seen_reference * inside, overview, settings) & inside
        )
        low, high = [], []
        for axis, (first, last) in enumerate(preprocess.bounding_box(heads)):
            margin = settings.margin_mm if axis == 2 else settings.margin_mm / 3
            positions = overview.coordinates(axis)
            low.append(max(full.first_mm[axis], float(positions[first]) - margin))
            high.append(min(ends[axis], float(positions[last]) + margin))
        return cls(frame, b0, reference, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def scene(pair: Pair, voxel_mm: float, settings: Clinical) -> Scene:
    """A working grid around the head, and both images on it."""
    a, b, _ = pair.frame.spacing_mm
    # thick slices stay as they are: there is nothing between them to compare
    grid = Grid.between(pair.low_mm, pair.high_mm, (max(voxel_mm, a), max(voxel_mm, b), voxel_mm))
    b0, _ = resample(pair.b0, pair.frame, grid)
    reference, inside = resample(pair.reference, pair.frame, grid)
    reference_mask = head(reference * inside, grid, settings) & inside
    return Scene(grid, reference, b0, reference_mask, head(b0, grid, settings), inside)


def on_grid(mask: Tensor, source: Grid, target: Grid) -> Tensor:
    """A mask on another grid of the same frame, nearest voxel; outside is False."""
    picks, inside = [], []
    for axis in range(3):
        index = torch.round(
            (target.coordinates(axis, mask.device) - source.first_mm[axis]) / source.spacing_mm[axis]
        )
        inside.append((index >= 0) & (index < source.shape[axis]))
        picks.append(index.clamp(0, source.shape[axis] - 1).long())
    a, b, p = picks
    seen = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
    return mask[a[:, None, None], b[None, :, None], p[None, None, :]] & seen


def head(image: Tensor, grid: Grid, settings: Clinical) -> Tensor:
    return preprocess.head_mask(image, grid.spacing_mm, settings.mask_threshold, settings.mask_closing_mm)


def descriptors(image: Tensor, mask: Tensor, grid: Grid, settings: Clinical) -> Tensor:
    """MIND-SSC of the debiased logarithm, (12, A, B, P)."""
    flat = preprocess.debiased_log(image, mask, grid.spacing_mm, settings.shading_mm, settings.log_offset)
    return similarity.mind_ssc(flat, settings.mind_radius, settings.mind_dilation)


def pooling(grid: Grid, pooled_mm: float) -> Shape:
    a, b, p = (max(1, round(pooled_mm / s)) for s in grid.spacing_mm)
    return a, b, p


def shifted(image: Tensor, shift_mm: Tensor, spacing_mm: float) -> Tensor:
    """image(…, p + shift) by linear interpolation along the last axis, edges repeated. (A, B, P)."""
    size = image.shape[-1]
    position = torch.arange(size, device=image.device, dtype=image.dtype) + shift_mm / spacing_mm
    position = position.clamp(0, size - 1)
    first = position.detach().floor().clamp(max=size - 2).long()
    part = position - first
    return image.gather(-1, first) * (1 - part) + image.gather(-1, first + 1) * part


def costs(
    view: Scene, moving: Tensor, moving_mask: Tensor, reach_mm: float, step_mm: float, aggregation_mm: float,
    pooled_mm: float, settings: Clinical,
) -> cost.CostVolume:  # fmt: skip
    """Cost volume of the scene's reference against `moving`, weighted by the union of both heads."""
    fixed = descriptors(view.reference, view.reference_mask, view.grid, settings)
    weight = ((view.reference_mask | moving_mask) & view.seen).float()
    return cost.along_phase_encode(
        fixed, descriptors(moving, moving_mask, view.grid, settings), weight, view.grid,
        reach_mm, step_mm, aggregation_mm, pooling(view.grid, pooled_mm),
    )  # fmt: skip


def costs_near(view: Scene, field: ShiftField, settings: Clinical) -> cost.CostVolume:
    """Cost volume of the shifts that lie close to a field's."""
    fixed = descriptors(view.reference, view.reference_mask, view.grid, settings)
    shift_mm, _ = field.on(view.grid)
    step = view.grid.spacing_mm[2]

    def head_at(shift_mm: Tensor) -> Tensor:
        return shifted(view.b0_mask.float(), shift_mm, step) > 0.5

    def moving(shift_mm: Tensor) -> Tensor:
        return descriptors(shifted(view.b0, shift_mm, step), head_at(shift_mm), view.grid, settings)

    weight = ((view.reference_mask | head_at(shift_mm)) & view.seen).float()
    return cost.near(
        fixed, moving, shift_mm, weight, view.grid, settings.near_reach_mm, settings.near_step_mm,
        settings.near_aggregation_mm, pooling(view.grid, settings.pooled_mm),
    )  # fmt: skip


def wide_search(pair: Pair, settings: Clinical) -> tuple[ShiftField, float]:
    """A very smooth field from a wide range of shifts, and the shift that 99 % stays below, mm.

    Fitted from zero and from the best shift of the whole image: beyond a few centimetres nothing leads from
    the one to the other.
    """
    view = scene(pair, settings.wide_voxel_mm, settings)
    extent = view.grid.spacing_mm[2] * view.grid.shape[2]
    reach = max(settings.reach_mm, min(settings.most_reach_mm, 0.3 * extent))
    table = costs(
        view, view.b0, view.b0_mask, reach, settings.wide_step_mm, 2 * settings.aggregation_mm,
        2 * settings.pooled_mm, settings,
    )  # fmt: skip

    def fitted(start: Tensor | None) -> Fit:
        return fit_shifts(
            table,
            settings.wide_spacings_mm,
            settings.wide_bending,
            settings,
            settings.iterations,
            start=start,
        )

    fits = parallel.each(fitted, (None, table.whole()), table.cost.device)
    field = min(fits, key=lambda fit: fit.energy).field
    shift = field.on(table.grid)[0][table.weight > 0.3].abs()
    return field, float(torch.quantile(shift, 0.99)) if len(shift) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Coarse:
    """The smooth field that all starts meet in, and the costs that it was fitted to."""

    view: Scene
    costs: cost.CostVolume
    fit: Fit


def coarse_search(pair: Pair, settings: Clinical, landmarks: FrameLandmarks | None) -> Coarse:
    """Fitted from zero and from the wide search, and the lower energy kept: the two see the same costs."""
    wide, found_mm = wide_search(pair, settings)
    reach = min(max(settings.reach_mm, found_mm + 4.0), settings.most_reach_mm + 4.0)
    view = scene(pair, settings.coarse_voxel_mm, settings)
    table = costs(
        view, view.b0, view.b0_mask, reach, settings.label_step_mm, settings.aggregation_mm,
        settings.pooled_mm, settings,
    )  # fmt: skip

    def fitted(start: Tensor | None) -> Fit:
        return fit_shifts(
            table, settings.spacings_mm, settings.coarse_bending, settings, settings.iterations, start=start,
            landmarks=landmarks, landmark_weight=settings.landmark_weight,
        )  # fmt: skip

    fits = parallel.each(fitted, (None, wide.on(table.grid)[0]), table.cost.device)
    return Coarse(view, table, min(fits, key=lambda fit: fit.energy))


def with_air(pair: Pair, coarse: Coarse, settings: Clinical) -> tuple[AirFields, Fit] | None:
    """The fields of air and a fit that has them, or None where air is not the cause.

    That shows in the energy that they save at equal bending: the judge's signals cannot tell. Landmarks have
    no part in it; a field that is too smooth for them is no sign of air.
    """
    if not settings.air:
        return None
    air = air_fields(pair.frame, pair.b0, pair.reference, settings)

    def fitted(fields: AirFields | None) -> Fit:
        return fit_shifts(
            coarse.costs, settings.spacings_mm[-1:], settings.coarse_bending, settings, settings.iterations,
            start=coarse.fit, air=fields,
        )  # fmt: skip

    found, without = parallel.each(fitted, (air, None), coarse.costs.cost.device)
    return (air, found) if without.energy - found.energy > settings.air_least_gain else None


def near_search(
    pair: Pair, coarse: Coarse, settings: Clinical, landmarks: FrameLandmarks | None
) -> list[tuple[str, ShiftField]]:
    """Fields that are fitted anew to the costs close to the coarse field, by name; air in all or in none.

    Landmarks say less here than in the coarse field, which they hold together: the images say more.
    """
    found = with_air(pair, coarse, settings)
    if found is None:
        air, start, bendings = None, coarse.fit, settings.near_bending
        spacing, weight = settings.near_spacing_mm, settings.landmark_weight_near
    else:
        (air, start), bendings = found, (settings.air_bending,)
        spacing, weight = settings.spacings_mm[-1], settings.landmark_weight_air

    def fitted(costs: cost.CostVolume, start: Fit, bending: float, marks: FrameLandmarks | None) -> Fit:
        return fit_shifts(
            costs, (spacing,), bending, settings, settings.iterations, start=start, air=air,
            landmarks=marks, landmark_weight=weight,
        )  # fmt: skip

    def close(bending: float) -> tuple[str, ShiftField]:
        far = fitted(coarse.costs, start, bending, landmarks)
        again = costs_near(coarse.view, far.field, settings)
        if air is None:
            return f"near at bending {bending:g}", fitted(again, far, bending, landmarks).field
        believed = None
        if landmarks is not None:
            # a field without air may be too smooth to contradict anything
            believed = landmarks.doubted(far.field.at(landmarks.fixed_mm), settings.landmark_doubt_mm)
        return f"{AIR} at bending {bending:g}", fitted(again, far, bending, believed).field

    return [close(bending) for bending in bendings]
