"""Where the slices of an output volume lie, and which source slices they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import TypeVar

import numpy as np

from dicom_node.derive.provenance import Point, slice_centre
from dicom_node.headers import FrameFacts, GeometryProblem, VolumeFacts

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Place:
    """One output slice.

    source: the slice whose header it takes. plane: the reference's slice in whose plane it lies; None: its
    source's own. sources: every slice that its pixels come from. key: what tells it apart in its series.
    """

    source: FrameFacts
    plane: FrameFacts | None
    sources: tuple[FrameFacts, ...]
    key: str


def source_key(frame: FrameFacts) -> str:
    """A source slice by its instance, and its frame or tile in that."""
    index = frame.frame if frame.frame is not None else frame.tile or 0
    return f"{frame.sop_instance_uid}|{index}"


def own_places(volume: VolumeFacts) -> list[Place]:
    """On the diffusion series' own grid: a slice for each of its slices."""
    return [Place(frame, None, (frame,), source_key(frame)) for frame in volume.frames]


def numbering(volumes: Sequence[VolumeFacts], stack: Sequence[FrameFacts] | None) -> list[list[int]]:
    """InstanceNumbers 1…N of a series: for each of its volumes those of its slices along +s.

    In the order in which the source counts its own slices, so that both series scroll in step; scanners
    count from head to feet too, and slice by slice through all volumes. Volume by volume along +s where the
    source's numbers repeat or jump about, and on the grid of the reference (`stack`).
    """
    if stack is None:
        order = [[_counted(frame) for frame in volume.frames] for volume in volumes]
        told = sorted(key for volume in order for key in volume)
        rank = {key: number for number, key in enumerate(told, start=1)}
        in_space = all(volume in (sorted(volume), sorted(volume, reverse=True)) for volume in order)
        if in_space and len(rank) == len(told):
            return [[rank[key] for key in volume] for volume in order]
    slices = [len(volume.frames if stack is None else stack) for volume in volumes]
    starts = accumulate(slices, initial=1)
    return [list(range(start, start + length)) for start, length in zip(starts, slices, strict=False)]


def _counted(frame: FrameFacts) -> tuple[int, int]:
    return frame.instance_number or 0, frame.frame if frame.frame is not None else frame.tile or 0


def reference_places(volume: VolumeFacts, stack: Sequence[FrameFacts]) -> list[Place]:
    """On the grid of the reference: a slice for each slice of `stack`, with the source slices that it cuts.

    Raises GeometryProblem when a slice has no position.
    """
    first = source_key(volume.frames[0])
    normal = np.asarray(_placed(volume.frames[0].normal))
    depths = np.asarray([normal @ _placed(slice_centre(frame)) for frame in volume.frames])
    places = []
    for plane in stack:
        at = np.asarray([normal @ corner for corner in _corners(plane)])
        nearest = int(np.argmin(np.abs(depths - normal @ _placed(slice_centre(plane)))))
        step = float(np.diff(depths).mean()) if len(depths) > 1 else 0.0
        cut = np.flatnonzero((depths > at.min() - step) & (depths < at.max() + step))
        sources = [volume.frames[index] for index in cut if index != nearest]
        source = volume.frames[nearest]
        places.append(Place(source, plane, (source, *sources), f"{first}|onto|{source_key(plane)}"))
    return places


def _corners(frame: FrameFacts) -> list[Point]:
    """Patient LPS points of the centres of a slice's corner voxels."""
    origin, row, column = (np.asarray(_placed(v)) for v in (frame.position_mm, frame.row, frame.column))
    row_spacing, column_spacing = _placed(frame.spacing_mm)
    return [
        origin + i * column_spacing * row + j * row_spacing * column
        for i, j in product((0, frame.columns - 1), (0, frame.rows - 1))
    ]


def _placed(value: Value | None) -> Value:
    if value is None:
        raise GeometryProblem("A slice has no position, so that nothing can be put on its plane.")
    return value
