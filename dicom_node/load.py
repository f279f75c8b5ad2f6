"""Pixels of a series → volumes in patient coordinates, with real-world values.

Every file is decoded once, frame by frame, into one array; nothing of it is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian

from correction.volume import Volume
from dicom_node.headers import (
    Arrangement,
    FrameFacts,
    GeometryProblem,
    InstanceFacts,
    Unreadable,
    VolumeFacts,
    arrange,
    summarise,
)
from rules.facts import SeriesFacts

B0_UP_TO = 20.0  # s/mm²: at and below this, b-values are one shell, b = 0
SAME_SHELL_WITHIN = 5.0  # s/mm²

Cell = tuple[int, int, FrameFacts]  # volume index, slice index, the slice
Stored = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class LoadedSeries:
    """A series as volumes on one grid.

    voxels: (V, Z, Y, X) float32, real-world values (stored × slope + intercept), in acquisition order.
    affine: (4, 4) float64, voxel (x, y, z, 1) to patient LPS mm.
    """

    facts: SeriesFacts
    arrangement: Arrangement
    voxels: npt.NDArray[np.float32] = field(repr=False)
    affine: npt.NDArray[np.float64] = field(repr=False)
    lowest_value: float | None = None  # of `voxels` as they were read: a correction may take their place

    def volume(self, index: int) -> Volume:
        """Volume `index`, as the engine takes it."""
        return Volume.from_numpy(self.voxels[index], self.affine)

    def lowest_b(self) -> tuple[int, ...]:
        """Indices of the volumes of the lowest shell: b up to 20 s/mm², else those nearest the lowest.

        Volumes without a b-value count only where no volume has one; maps and phase images never count.
        """
        volumes = self.arrangement.volumes
        magnitude = [
            index
            for index, volume in enumerate(volumes)
            if volume.component in ("", "MAGNITUDE") and not volume.frames[0].is_map
        ]
        weighted = {index: b for index in magnitude if (b := volumes[index].b_value) is not None}
        if not weighted:
            return tuple(magnitude)
        lowest = min(weighted.values())
        limit = B0_UP_TO if lowest <= B0_UP_TO else lowest + SAME_SHELL_WITHIN
        return tuple(index for index, b_value in weighted.items() if b_value <= limit)


def load(instances: Sequence[InstanceFacts]) -> LoadedSeries:
    """All volumes of one series.

    Raises GeometryProblem when its images form no volumes, Unreadable when pixels cannot be decoded.
    """
    arrangement = arrange(instances)
    facts = summarise(instances, arrangement)
    if facts.colour:
        raise GeometryProblem("The series is in colour, which carries no measured values.")
    shape = (len(arrangement.volumes), *arrangement.shape)
    cells = [
        (number, index, frame)
        for number, volume in enumerate(arrangement.volumes)
        for index, frame in enumerate(volume.frames)
    ]
    voxels = _read(cells, shape, instances)
    return LoadedSeries(facts, arrangement, voxels, arrangement.affine, float(np.nanmin(voxels)))


def load_reference(instances: Sequence[InstanceFacts]) -> Volume:
    """An anatomical series as one volume, that of `reference_stack`.

    Raises GeometryProblem when its images form no volume, Unreadable when pixels cannot be decoded.
    """
    arrangement = arrange(instances)
    first = _reference_stack(instances, arrangement)
    cells = [(0, index, frame) for index, frame in enumerate(first.frames)]
    voxels = _read(cells, (1, *arrangement.shape), instances)
    return Volume.from_numpy(voxels[0], arrangement.affine)


def reference_stack(instances: Sequence[InstanceFacts]) -> VolumeFacts:
    """The slices of an anatomical series that are registered: its first magnitude stack at its shortest TE.

    Raises GeometryProblem when its images form no volume.
    """
    return _reference_stack(instances, arrange(instances))


def _reference_stack(instances: Sequence[InstanceFacts], arrangement: Arrangement) -> VolumeFacts:
    if any(instance.series.colour for instance in instances):
        raise GeometryProblem("The series is in colour, which carries no measured values.")
    magnitude = [volume for volume in arrangement.volumes if volume.component in ("", "MAGNITUDE")]
    if not magnitude:
        raise GeometryProblem("The series holds no magnitude images.")
    return min(magnitude, key=lambda volume: volume.echo_time_ms or 0.0)


def _read(
    cells: Iterable[Cell], shape: tuple[int, int, int, int], instances: Sequence[InstanceFacts]
) -> npt.NDArray[np.float32]:
    """The cells' slices in one (V, Z, Y, X) array."""
    voxels = np.empty(shape, dtype=np.float32)
    files = {instance.path: instance for instance in instances}
    by_file: dict[Path, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        by_file[cell[2].path][cell[2].frame or 0].append(cell)
    for path, wanted in by_file.items():
        for number, picture in _pictures(files[path], sorted(wanted)):
            for volume, index, frame in wanted[number]:
                stored = _slice_of(picture, frame)
                target = voxels[volume, index]
                np.multiply(stored, np.float32(frame.slope), out=target, casting="unsafe")
                if frame.intercept:
                    target += np.float32(frame.intercept)
    return voxels


def _pictures(instance: InstanceFacts, numbers: list[int]) -> Iterator[tuple[int, Stored]]:
    """Stored pixel values of some frames of one file in ascending order, each (rows, columns)."""
    path = instance.path
    try:
        if instance.stored is not None:
            yield from ((number, instance.stored.frame(path, number)) for number in numbers)
            return
        # a file that is deflated as a whole cannot be sought, only inflated
        inflate = instance.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
        source = pydicom.dcmread(path) if inflate else path
        yield from zip(numbers, iter_pixels(source, indices=numbers), strict=True)
    except (MemoryError, Unreadable):
        raise
    except OSError as error:
        raise Unreadable(
            f"{path.name} cannot be opened: {error.strerror or type(error).__name__}."
        ) from error
    except Exception as error:  # decoders are foreign code and raise what they like on damaged data
        raise Unreadable(
            f"The pixels of {path.name} cannot be decoded ({type(error).__name__}): the file is damaged, "
            "or its compression is not supported."
        ) from error


def _slice_of(picture: Stored, frame: FrameFacts) -> Stored:
    """The part of a picture that is one slice: all of it, or a tile of a mosaic."""
    if frame.tile is None:
        part = picture
    else:
        across = picture.shape[1] // frame.columns
        top, left = (frame.tile // across) * frame.rows, (frame.tile % across) * frame.columns
        part = picture[top : top + frame.rows, left : left + frame.columns]
    if part.shape != (frame.rows, frame.columns):
        raise Unreadable(
            f"{frame.path.name} holds pixels of {picture.shape}, where its header says "
            f"{frame.rows} rows and {frame.columns} columns."
        )
    return part
