"""Slices → volumes on one grid, by where they lie in the patient and never by their file names or numbers.

They are complete when every volume has a slice at every position.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from dicom_node.headers.instance import Arrangement, FrameFacts, InstanceFacts, VolumeFacts
from dicom_node.headers.problems import GeometryProblem, MissingSlices
from dicom_node.headers.space import dot
from rules.facts import Vec3, Vendor

SAME_ORIENTATION_WITHIN = 1e-3  # of each component of the unit vectors; DS text rounds below this
SAME_POSITION_WITHIN = 0.1  # of the slice distance
UNIFORM_WITHIN = 0.1  # of the slice distance
_SAME_PLACE_MM = 0.02  # positions nearer than this cannot be two slices
_NAMED_CELLS = 3  # missing slices that a message names

Stack = list[FrameFacts]


def arrange(instances: Sequence[InstanceFacts]) -> Arrangement:
    """The volumes of one series in acquisition order; any order of `instances` gives the same.

    Raises GeometryProblem, in one sentence, when they do not form complete volumes on one grid.
    """
    frames = slices_of(instances)
    stacks = split_stacks(frames)
    if len(stacks) > 1:
        raise GeometryProblem(_mixed(stacks))
    frames = stacks[0]
    grid = _Grid.of(frames)
    volumes = [group for key in _weightings(frames) for group in _repeats(key, grid)]
    _check_complete(volumes, grid)
    grid.check_uniform()
    ordered = _acquisition_order(volumes, grid)
    return Arrangement(
        volumes=tuple(_volume(volume, grid) for volume in ordered),
        affine=grid.affine(),
        shape=(len(grid.positions_mm), frames[0].rows, frames[0].columns),
    )


def slices_of(instances: Sequence[InstanceFacts]) -> Stack:
    """Every slice once, in an order that does not depend on that of `instances`.

    Raises GeometryProblem when there is none, or when one of them cannot be located.
    """
    instances = one_copy(instances)
    told = sorted({instance.problem for instance in instances if instance.problem})
    if told:
        raise GeometryProblem(told[0])
    unique: dict[tuple[str, int | None, int | None], FrameFacts] = {}
    for instance in sorted(instances, key=lambda one: (one.sop_instance_uid, str(one.path))):
        for frame in instance.frames:
            unique.setdefault((frame.sop_instance_uid, frame.frame, frame.tile), frame)
    frames = list(unique.values())
    if not frames:
        raise GeometryProblem("The series holds no image.")
    if any(frame.position_mm is None or frame.normal is None for frame in frames):
        raise GeometryProblem("Images of the series have no position or orientation in the patient.")
    if any(frame.spacing_mm is None for frame in frames):
        raise GeometryProblem("Images of the series have no pixel spacing.")
    return with_unwritten_b0(frames, {instance.series.vendor for instance in instances})


def one_copy(instances: Sequence[InstanceFacts]) -> list[InstanceFacts]:
    """The images of one kind of object: the kind with most located slices, the multi-frame one of equals.

    A scanner may export a series twice under one UID, classic and enhanced, or add a screen shot to it.
    """
    kinds: dict[str, list[InstanceFacts]] = defaultdict(list)
    for instance in instances:
        if instance.frames:
            kinds[instance.sop_class_uid].append(instance)
    if not kinds:
        return []
    return kinds[max(kinds, key=lambda kind: (_located(kinds[kind]), kind))]


def _located(instances: list[InstanceFacts]) -> int:
    return sum(frame.position_mm is not None for instance in instances for frame in instance.frames)


def with_unwritten_b0(frames: Stack, vendors: Iterable[Vendor]) -> Stack:
    """Canon and GE write no b-value at b = 0: beside weighted siblings its absence means 0."""
    if not {Vendor.CANON, Vendor.GE} & set(vendors) or not any(frame.b_value for frame in frames):
        return frames
    source = next(frame.b_source for frame in frames if frame.b_value)
    return [
        replace(frame, b_value=0.0, b_source=source) if frame.b_value is None and not frame.is_map else frame
        for frame in frames
    ]


def split_stacks(frames: Stack) -> list[Stack]:
    """The slices by matrix, pixel spacing and orientation, the largest stack first."""
    stacks: list[Stack] = []
    for frame in frames:
        for stack in stacks:
            if _same_grid(stack[0], frame):
                stack.append(frame)
                break
        else:
            stacks.append([frame])
    return sorted(stacks, key=len, reverse=True)


def _same_grid(one: FrameFacts, other: FrameFacts) -> bool:
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    pairs = [(one.row, other.row), (one.column, other.column)]
    turned = any(
        abs(a - b) > SAME_ORIENTATION_WITHIN for u, v in pairs for a, b in zip(u or (), v or (), strict=True)
    )
    spaced = zip(one.spacing_mm or (), other.spacing_mm or (), strict=True)
    return not turned and all(abs(a - b) <= 1e-3 * a for a, b in spaced)


def _mixed(stacks: list[Stack]) -> str:
    normals = distinct_normals(stacks)
    if normals > 1:
        return f"The series mixes {normals} slice orientations."
    matrices = sorted({f"{stack[0].columns} × {stack[0].rows}" for stack in stacks})
    return f"The series mixes images of different matrix, pixel spacing or rotation ({', '.join(matrices)})."


def distinct_normals(stacks: list[Stack]) -> int:
    """How many different slice normals there are, up to their sign, within about 3°."""
    found: list[Vec3] = []
    for stack in stacks:
        normal = stack[0].normal
        if normal is not None and all(abs(dot(normal, other)) < 0.9986 for other in found):
            found.append(normal)
    return len(found)


# -- the grid


@dataclass(frozen=True, slots=True)
class _Grid:
    """One stack's geometry. Positions are along row × column, ascending."""

    row: Vec3
    column: Vec3
    normal: Vec3
    spacing_mm: tuple[float, float]  # between rows, between columns
    origin_mm: Vec3  # centre of the first voxel of the lowest slice
    positions_mm: tuple[float, ...]
    thickness_mm: float

    @classmethod
    def of(cls, frames: Stack) -> _Grid:
        first = frames[0]
        row, column, normal, spacing_mm = first.row, first.column, first.normal, first.spacing_mm
        if row is None or column is None or normal is None or spacing_mm is None:
            raise GeometryProblem("Images of the series have no orientation or pixel spacing.")
        lowest = min(frames, key=lambda frame: _along(normal, frame))
        positions = _cluster(sorted(_along(normal, frame) for frame in frames))
        origin_mm, thickness_mm = lowest.position_mm or (0.0, 0.0, 0.0), first.thickness_mm or 1.0
        grid = cls(row, column, normal, spacing_mm, origin_mm, tuple(positions), thickness_mm)
        grid._check_stacked(frames)
        return grid

    @property
    def step_mm(self) -> float:
        """Mean distance of neighbouring slices; the thickness where there is only one."""
        count = len(self.positions_mm)
        return (
            (self.positions_mm[-1] - self.positions_mm[0]) / (count - 1) if count > 1 else self.thickness_mm
        )

    def index(self, frame: FrameFacts) -> int:
        """The slice index of a frame."""
        place = _along(self.normal, frame)
        above = bisect_left(self.positions_mm, place)
        if above == 0 or above == len(self.positions_mm):
            return min(above, len(self.positions_mm) - 1)
        nearer_below = place - self.positions_mm[above - 1] < self.positions_mm[above] - place
        return above - 1 if nearer_below else above

    def affine(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """(4, 4): voxel (x, y, z, 1) to LPS mm."""
        affine = np.eye(4)
        affine[:3, 0] = np.multiply(self.row, self.spacing_mm[1])
        affine[:3, 1] = np.multiply(self.column, self.spacing_mm[0])
        affine[:3, 2] = np.multiply(self.normal, self.step_mm)
        affine[:3, 3] = self.origin_mm
        return affine

    def _check_stacked(self, frames: Stack) -> None:
        """Slices must lie above each other: a sheared or interleaved stack is no grid."""
        for axis, spacing in ((self.row, self.spacing_mm[1]), (self.column, self.spacing_mm[0])):
            places = [_along(axis, frame) for frame in frames]
            if max(places) - min(places) > max(SAME_POSITION_WITHIN * spacing, _SAME_PLACE_MM):
                raise GeometryProblem(
                    "The slices do not lie above each other: they are shifted within their plane."
                )

    def check_uniform(self) -> None:
        """Raises MissingSlices where the distance between slices jumps."""
        gaps = np.diff(self.positions_mm)
        if len(gaps) < 2:
            return
        usual = float(np.median(gaps))
        worst = int(np.argmax(np.abs(gaps - usual)))
        if abs(gaps[worst] - usual) > UNIFORM_WITHIN * usual:
            low, high = self.positions_mm[worst : worst + 2]
            raise MissingSlices(
                f"The slices are not evenly spaced: {gaps[worst]:.1f} mm between {low:.1f} and {high:.1f} mm "
                f"where {usual:.1f} mm is usual, as when a slice is missing."
            )


def _along(axis: Vec3, frame: FrameFacts) -> float:
    return dot(axis, frame.position_mm or (0.0, 0.0, 0.0))


def _cluster(ascending: Sequence[float]) -> list[float]:
    """The distinct positions among `ascending`, told apart by a tenth of their usual distance."""
    gaps = np.diff(ascending)
    steps = gaps[gaps > _SAME_PLACE_MM]
    tolerance = max(SAME_POSITION_WITHIN * float(np.median(steps)), _SAME_PLACE_MM) if len(steps) else np.inf
    clusters = np.split(np.asarray(ascending), np.flatnonzero(gaps > tolerance) + 1)
    return [float(np.mean(cluster)) for cluster in clusters]


# -- volumes


def _weightings(frames: Stack) -> list[Stack]:
    """The slices that share b-value, direction, kind, echo and component."""
    groups: dict[Hashable, Stack] = defaultdict(list)
    for frame in frames:
        groups[_weighting(frame)].append(frame)
    return list(groups.values())


def _weighting(frame: FrameFacts) -> Hashable:
    # rounded: b-values and times are decimal text in one file and doubles in the next; + 0.0 turns −0 into 0
    return (
        None if frame.b_value is None else round(frame.b_value, 4),
        None if frame.direction is None else tuple(round(value, 3) + 0.0 for value in frame.direction),
        frame.directionality,
        None if frame.echo_time_ms is None else round(frame.echo_time_ms, 2),
        frame.component,
        frame.image_type,
        frame.volume_order,
    )


def _repeats(frames: Stack, grid: _Grid) -> list[Stack]:
    """One weighting's slices as one stack a repeat.

    Told apart by the first attribute that makes complete stacks: temporal position, acquisition number,
    instance of a multi-frame object, and last the order of time and number at each position. Where none
    does, by the first that leaves one slice a position, so that the missing ones can be named.
    """
    if not _doubled(frames, grid):
        return [frames]
    splits = [_split(frames, told_by) for told_by in _DISCRIMINATORS] + [_by_age(frames, grid)]
    single = [split for split in splits if not any(_doubled(part, grid) for part in split)]
    slices = len({grid.index(frame) for frame in frames})
    complete = [split for split in single if all(len(part) == slices for part in split)]
    return (complete or single)[0]  # by age leaves one slice a position in any case


_DISCRIMINATORS: tuple[Callable[[FrameFacts], Hashable], ...] = (
    lambda frame: frame.temporal_position,
    lambda frame: frame.acquisition_number,
    lambda frame: frame.sop_instance_uid if frame.frame is not None or frame.tile is not None else None,
)


def _split(frames: Stack, told_by: Callable[[FrameFacts], Hashable]) -> list[Stack]:
    parts: dict[Hashable, Stack] = defaultdict(list)
    for frame in frames:
        parts[told_by(frame)].append(frame)
    return list(parts.values())


def _by_age(frames: Stack, grid: _Grid) -> list[Stack]:
    """The oldest slice of every position, then the second oldest, and so on."""
    positions = [sorted(stack, key=_age) for stack in _split(frames, grid.index)]
    return [
        [stack[number] for stack in positions if number < len(stack)]
        for number in range(max(map(len, positions)))
    ]


def _doubled(frames: Stack, grid: _Grid) -> bool:
    return len({grid.index(frame) for frame in frames}) < len(frames)


def _age(frame: FrameFacts) -> tuple[datetime, int, int, str]:
    return (
        frame.acquired or datetime.min,
        frame.instance_number or 0,
        frame.frame or 0,
        frame.sop_instance_uid,
    )


def _check_complete(volumes: list[Stack], grid: _Grid) -> None:
    """Raises MissingSlices naming the cells of the volume × position table that are empty."""
    missing = []
    for number, volume in enumerate(_acquisition_order(volumes, grid), start=1):
        present = {grid.index(frame) for frame in volume}
        weighting = "" if volume[0].b_value is None else f" (b={volume[0].b_value:g})"
        missing += [
            f"volume {number}{weighting} lacks the slice at {position:.1f} mm"
            for index, position in enumerate(grid.positions_mm)
            if index not in present
        ]
    if missing:
        more = f", and {len(missing) - _NAMED_CELLS} more" if len(missing) > _NAMED_CELLS else ""
        sentence = ", ".join(missing[:_NAMED_CELLS])
        raise MissingSlices(f"{sentence[0].upper()}{sentence[1:]}{more}.")


def _acquisition_order(volumes: list[Stack], grid: _Grid) -> list[Stack]:
    """The volumes as they were measured.

    By the vendor's own index, else by instance number where it ranks the volumes alike at every slice,
    else by acquisition time.
    """
    if all(volume[0].volume_order for volume in volumes):
        return sorted(volumes, key=lambda volume: (volume[0].volume_order, *_earliest(volume)))
    by_instance = sorted(volumes, key=lambda volume: (_lowest_number(volume), *_earliest(volume)))
    if _ranked_alike(by_instance, grid):
        return by_instance
    return sorted(volumes, key=_earliest)


def _ranked_alike(volumes: list[Stack], grid: _Grid) -> bool:
    """Whether instance and frame numbers rise from volume to volume at every slice position."""
    last: dict[int, tuple[int, int]] = {}
    for volume in volumes:
        for frame in volume:
            index, number = grid.index(frame), (frame.instance_number or 0, frame.frame or 0)
            if number <= last.get(index, (-1, -1)):
                return False
            last[index] = number
    return True


def _lowest_number(volume: Stack) -> tuple[int, int]:
    return min((frame.instance_number or 0, frame.frame or 0) for frame in volume)


def _earliest(volume: Stack) -> tuple[datetime, tuple[int, int], float, str]:
    return (
        min(frame.acquired or datetime.min for frame in volume),
        _lowest_number(volume),
        volume[0].b_value or 0.0,
        min(frame.sop_instance_uid for frame in volume),
    )


def _volume(frames: Stack, grid: _Grid) -> VolumeFacts:
    stacked = tuple(sorted(frames, key=grid.index))
    first = stacked[0]
    times = [frame.acquired for frame in stacked if frame.acquired]
    return VolumeFacts(
        frames=stacked,
        b_value=first.b_value,
        direction=first.direction,
        directionality=first.directionality,
        echo_time_ms=first.echo_time_ms,
        component=first.component,
        image_type=first.image_type,
        acquired=min(times, default=None),
    )
