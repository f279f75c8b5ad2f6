"""The derived series as files: corrected volumes in source order, in one series or one for each b-value.

Files are written plainly; making them durable is the spool's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from pydicom import Dataset

from dicom_node.derive import pixels, provenance
from dicom_node.derive.instance_file import write_instance
from dicom_node.derive.instances import (
    Headers,
    Images,
    image_type_of,
    put_diffusion,
    put_pixels,
    put_window,
    scale_of,
)
from dicom_node.derive.pixels import Array
from dicom_node.derive.places import Place, numbering, own_places, reference_places
from dicom_node.derive.policy import DerivePolicy, OutputGrid
from dicom_node.derive.provenance import Provenance, ReferenceSlices
from dicom_node.derive.series_header import SeriesLabel, series_header, series_numbers
from dicom_node.derive.shells import Shell, shells_of
from dicom_node.headers import FrameFacts, Unreadable, VolumeFacts
from dicom_node.load import LoadedSeries, reference_stack


@dataclass(frozen=True, slots=True)
class Written:
    """One derived object on disk."""

    path: Path
    sop_class_uid: str
    sop_uid: str
    series_uid: str
    series_number: int


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the series that a correction becomes: which volumes are in it, and what it is called."""

    volumes: tuple[int, ...]
    label: SeriesLabel


def derived_series_uid(source: LoadedSeries, made_by: Provenance, part: str = "") -> str:
    """SeriesInstanceUID of the output: the same for the same inputs, program and settings.

    part: which of several series of one correction; empty where all b-values are in one.
    """
    sops = (frame.sop_instance_uid for volume in source.arrangement.volumes for frame in volume.frames)
    return provenance.series_uid(source.facts.series_uid, sops, made_by, part)


def derive(
    source: LoadedSeries,
    corrected: Array,
    made_by: Provenance,
    policy: DerivePolicy,
    out: Path,
    now: datetime,
) -> list[Written]:
    """Write the derived series into the folder `out`, behind what lies there, volume by volume along +s.

    corrected: (V, Z, Y, X) real-world values on the output's grid: that of `source`, or with
    `policy.grid` reference that of the stack which `load.reference_stack` finds. Maps among the volumes are
    left out: a warped map is no measurement. InstanceNumbers are in the order of the source's.
    Raises headers.Unreadable when a source file has gone or a volume has no b-value, ValueError when the
    shapes differ.
    """
    stack = reference_stack(made_by.reference).frames if policy.grid is OutputGrid.REFERENCE else None
    _check_shape(corrected, source, stack)
    b_values = b_values_of(source)
    headers = Headers.of(source)
    scale = scale_of(source, corrected, headers.first)
    clipped = sum(scale.clipped(corrected[index]) for index in b_values)
    shells = shells_of(b_values)
    windows = pixels.windows(corrected, shells)
    reference = ReferenceSlices.of(made_by)
    paths = next_paths(out)
    written: list[Written] = []
    for part in _parts(source, shells, made_by, policy):
        elements = series_header(headers.first, source.facts, made_by, policy.grid, part.label, clipped, now)
        images = Images(source, part.label.uid, scale, elements, reference, headers)
        numbers = iter(numbering([source.arrangement.volumes[index] for index in part.volumes], stack))
        for index in part.volumes:
            volume = source.arrangement.volumes[index]
            slices = zip(places_of(volume, stack), next(numbers), scale.stored(corrected[index]), strict=True)
            for place, number, stored in slices:
                instance = images.image(place, number, image_type_of(volume))
                put_diffusion(instance, volume, source.facts.vendor)
                put_window(instance, windows[index])
                put_pixels(instance, stored, scale)
                written.append(write(instance, next(paths)))
    return written


def places_of(volume: VolumeFacts, stack: Sequence[FrameFacts] | None) -> list[Place]:
    """The slices of an output volume: on the source's own grid, or on that of the reference's `stack`."""
    return own_places(volume) if stack is None else reference_places(volume, stack)


def next_paths(out: Path, prefix: str = "") -> Iterator[Path]:
    """Names for further objects in `out`, in the order of those that lie there."""
    return (out / f"{prefix}{number:05d}.dcm" for number in count(1 + len(list(out.glob("*.dcm")))))


def write(instance: Dataset, path: Path) -> Written:
    """Write a derived object and tell what it is."""
    write_instance(instance, path)
    return Written(
        path,
        str(instance.SOPClassUID),
        str(instance.SOPInstanceUID),
        str(instance.SeriesInstanceUID),
        int(instance.SeriesNumber),
    )


def _check_shape(corrected: Array, source: LoadedSeries, stack: Sequence[FrameFacts] | None) -> None:
    wanted = source.voxels.shape
    if stack is not None:
        wanted = (wanted[0], len(stack), stack[0].rows, stack[0].columns)
    if corrected.shape != wanted:
        raise ValueError(f"derive() got {corrected.shape} for images of {wanted}")


def b_values_of(source: LoadedSeries) -> dict[int, float]:
    """The exact b-value of each volume that is no map. Raises Unreadable where there is none."""
    b_values = {}
    for index, volume in enumerate(source.arrangement.volumes):
        if volume.frames[0].is_map:
            continue
        if volume.b_value is None:
            raise Unreadable(f"Series {source.facts.series_number}: one of its volumes carries no b-value.")
        b_values[index] = volume.b_value
    return b_values


def _parts(
    source: LoadedSeries, shells: Sequence[Shell], made_by: Provenance, policy: DerivePolicy
) -> Iterator[_Part]:
    numbers = series_numbers(source.facts.series_number, policy, made_by.taken_numbers)
    if not policy.one_series_per_b_value:
        volumes = tuple(sorted(index for shell in shells for index in shell.volumes))
        uid = derived_series_uid(source, made_by)
        yield _Part(volumes, SeriesLabel(uid, next(numbers), policy.description_suffix))
        return
    for shell in shells:
        name = f"b{shell.label}"
        uid = derived_series_uid(source, made_by, name)
        yield _Part(shell.volumes, SeriesLabel(uid, next(numbers), f" {name}{policy.description_suffix}"))
