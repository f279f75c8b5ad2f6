"""The instances of one series → SeriesFacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dicom_node.headers.arrange import (
    arrange,
    distinct_normals,
    one_copy,
    split_stacks,
    with_unwritten_b0,
)
from dicom_node.headers.instance import Arrangement, FrameFacts, InstanceFacts
from dicom_node.headers.problems import GeometryProblem, MissingSlices
from dicom_node.headers.space import dot
from rules.facts import Box, Directionality, SeriesFacts, Vec3
from rules.patient import disagree


def summarise(instances: Sequence[InstanceFacts], arranged: Arrangement | None = None) -> SeriesFacts:
    """What the headers of one series say together; never raises for strange content.

    `arranged`: their volumes, where they are known already.

    Where its images form no volumes, `geometry_problem` says why and the other facts stay as far as known.
    Raises ValueError for no instances at all.
    """
    if not instances:
        raise ValueError("summarise() needs at least one instance")
    instances = sorted(instances, key=_order)
    images = one_copy(instances)
    said = _combined(images or instances)
    frames = [frame for instance in images for frame in instance.frames]
    said = replace(
        said,
        instances=len({instance.sop_instance_uid for instance in instances}),
        own_output=next((one.series.own_output for one in instances if one.series.own_output), ""),
        mosaic_tiles=max((1 + frame.tile for frame in frames if frame.tile is not None), default=0),
        echo_times_ms=tuple(sorted({round(f.echo_time_ms, 3) for f in frames if f.echo_time_ms is not None})),
        complex_components=tuple(sorted({frame.component for frame in frames if frame.component})),
    )
    try:
        return _with_volumes(said, arranged or arrange(instances))
    except GeometryProblem as problem:
        lacking = isinstance(problem, MissingSlices)
        return _without_volumes(replace(said, geometry_problem=str(problem), incomplete=lacking), frames)


def _order(instance: InstanceFacts) -> tuple[int, str, str]:
    return (instance.instance_number or 0, instance.sop_instance_uid, str(instance.path))


def _combined(instances: Sequence[InstanceFacts]) -> SeriesFacts:
    """The first instance's facts, with what must be gathered over all of them."""
    images = [instance.series for instance in instances]
    return replace(
        images[0],
        acquired=min((one.acquired for one in images if one.acquired), default=None),
        image_type=Counter(one.image_type for one in images).most_common(1)[0][0],
        contrast_agent=any(one.contrast_agent for one in images),
        mixed_patients=disagree(one.patient_key for one in images),
        colour=any(one.colour for one in images),
        anisotropy_map=any(one.anisotropy_map for one in images),
    )


def _with_volumes(said: SeriesFacts, arranged: Arrangement) -> SeriesFacts:
    slices, rows, columns = arranged.shape
    size = np.linalg.norm(arranged.affine[:3, :3], axis=0)
    weighted = any(volume.b_value is not None for volume in arranged.volumes)
    return replace(
        said,
        rows=rows,
        columns=columns,
        slices=slices,
        orientations=1,
        voxel_mm=_vector(size),
        box=_box(arranged, size),
        b_values=tuple(volume.b_value for volume in arranged.volumes) if weighted else (),
        b_source=_b_source([volume.frames[0] for volume in arranged.volumes]),
        directionalities=tuple(volume.directionality for volume in arranged.volumes) if weighted else (),
    )


def _box(arranged: Arrangement, size_mm: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Box:
    slices, rows, columns = arranged.shape
    count = np.array([columns, rows, slices])
    axes = arranged.affine[:3, :3] / size_mm
    centre = arranged.affine[:3, 3] + arranged.affine[:3, :3] @ ((count - 1) / 2)
    along_row, along_column, through = (_vector(axes[:, axis]) for axis in range(3))
    return Box(_vector(centre), (along_row, along_column, through), _vector(size_mm * count))


def _without_volumes(said: SeriesFacts, frames: Sequence[FrameFacts]) -> SeriesFacts:
    """The counts that can be given although the images form no volumes."""
    placed = [frame for frame in frames if frame.position_mm and frame.normal and frame.spacing_mm]
    placed = with_unwritten_b0(
        sorted(placed, key=lambda f: (f.sop_instance_uid, f.frame or 0)), {said.vendor}
    )
    weightings: dict[tuple[float, Vec3 | None, Directionality], None] = {}
    for frame in placed or frames:
        if frame.b_value is not None:
            weightings[frame.b_value, frame.direction, frame.directionality] = None
    said = replace(
        said,
        b_values=tuple(b_value for b_value, _, _ in sorted(weightings, key=lambda one: one[0])),
        b_source=_b_source(frames),
        directionalities=tuple(kind for _, _, kind in sorted(weightings, key=lambda one: one[0])),
    )
    if not placed:
        return said
    stacks = split_stacks(placed)
    first = stacks[0][0]
    spacing = first.spacing_mm or (0.0, 0.0)
    positions = {
        round(dot(first.normal or (0, 0, 1), frame.position_mm or (0, 0, 0)), 1) for frame in stacks[0]
    }
    steps = np.diff(sorted(positions))
    step_mm = float(np.median(steps)) if len(steps) else first.thickness_mm or 0.0
    return replace(
        said,
        rows=first.rows,
        columns=first.columns,
        slices=len(positions),
        orientations=distinct_normals(stacks),
        voxel_mm=(spacing[1], spacing[0], step_mm),
    )


def _b_source(frames: Sequence[FrameFacts]) -> str:
    """The attribute behind the highest b-value: at b = 0 it may be another, or none."""
    weighted = [frame for frame in frames if frame.b_value is not None]
    return max(weighted, key=lambda frame: frame.b_value or 0.0).b_source if weighted else ""


def _vector(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Vec3:
    x, y, z = (float(value) for value in values)
    return (x, y, z)
