"""The slices of one file: a classic image is one, a multi-frame object or a mosaic holds many."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from dicom_node.headers import tags
from dicom_node.headers.elements import Header, moment
from dicom_node.headers.instance import FrameFacts
from dicom_node.headers.problems import GeometryProblem
from dicom_node.headers.public import Plane, PublicReader, three
from dicom_node.headers.space import cross, plane
from dicom_node.headers.stored import StoredPixels
from dicom_node.headers.vendors import READERS
from rules.facts import SeriesFacts

MOST_FRAMES = 100_000  # without a header for each; a number in a hostile file costs no memory


def read_frames(
    path: Path,
    sop_instance_uid: str,
    scan: SeriesFacts,
    shared: Header,
    frames: list[Header],
    stored: StoredPixels | None,
) -> tuple[tuple[FrameFacts, ...], str]:
    """The slices of one file in stored order, none when it holds no picture; and why they cannot be located.

    shared: the header of all frames. frames: one header a frame of a multi-frame object, else empty.
    stored: where its pixels lie, for a mosaic whose header does not tell its slices.
    A mosaic whose layout is not in the header is given as the one picture it is, without a position.
    """
    rows, columns = shared.integer(tags.ROWS), shared.integer(tags.COLUMNS)
    if not rows or not columns or not shared.integer(tags.BITS_ALLOCATED):
        return (), ""
    reader = READERS[scan.vendor]
    if frames:
        slices = tuple(
            _slice(reader, path, sop_instance_uid, header, rows, columns, number)
            for number, header in enumerate(frames)
        )
        said = shared.integer(tags.NUMBER_OF_FRAMES)
        whole = said is None or said == len(slices)
        return slices, "" if whole else f"The file says {said} frames and describes {len(slices)} of them."
    count = shared.integer(tags.NUMBER_OF_FRAMES) or 1
    if count > 1:  # a multi-frame picture without functional groups: its frames have no place
        bare = FrameFacts(sop_instance_uid, path, rows=rows, columns=columns)
        if count > MOST_FRAMES:
            return (bare,), f"The file says {count} frames, more than any picture has."
        return tuple(replace(bare, frame=number) for number in range(count)), ""
    single = _slice(reader, path, sop_instance_uid, shared, rows, columns, None)
    try:
        picture = (lambda: None) if stored is None else partial(stored.frame, path, 0)
        tiling = reader.tiling(shared, scan.image_type, _plane(shared), picture)
    except GeometryProblem as problem:
        return (replace(single, position_mm=None),), str(problem)
    if tiling is None:
        return (single,), ""
    tiles = (
        replace(single, tile=number, rows=tiling.rows, columns=tiling.columns, position_mm=position)
        for number, position in enumerate(tiling.positions_mm)
    )
    return tuple(tiles), ""


def _plane(header: Header) -> Plane | None:
    axes = plane(header.numbers(tags.IMAGE_ORIENTATION_PATIENT))
    return None if axes is None else Plane(*axes, cross(*axes))


def _slice(
    reader: PublicReader,
    path: Path,
    sop_instance_uid: str,
    header: Header,
    rows: int,
    columns: int,
    frame: int | None,
) -> FrameFacts:
    slice_plane = _plane(header)
    diffusion = reader.diffusion(header, slice_plane)
    image_type = frame_image_type(reader, header)
    spacing = header.numbers(tags.PIXEL_SPACING)
    slope = header.number(tags.RESCALE_SLOPE)
    return FrameFacts(
        sop_instance_uid=sop_instance_uid,
        path=path,
        frame=frame,
        rows=rows,
        columns=columns,
        position_mm=three(header.numbers(tags.IMAGE_POSITION_PATIENT)),
        row=slice_plane.row if slice_plane else None,
        column=slice_plane.column if slice_plane else None,
        spacing_mm=(spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None,
        thickness_mm=header.number(tags.SPACING_BETWEEN_SLICES) or header.number(tags.SLICE_THICKNESS),
        b_value=diffusion.b_value,
        b_source=diffusion.source,
        direction=diffusion.direction,
        directionality=diffusion.directionality,
        image_type=image_type,
        echo_time_ms=echo_time_ms(header),
        component=reader.component(header, image_type),
        instance_number=header.integer(tags.INSTANCE_NUMBER),
        acquisition_number=header.integer(tags.FRAME_ACQUISITION_NUMBER)
        or header.integer(tags.ACQUISITION_NUMBER),
        temporal_position=header.integer(tags.TEMPORAL_POSITION_INDEX)
        or header.integer(tags.TEMPORAL_POSITION_IDENTIFIER),
        volume_order=reader.volume_order(header),
        acquired=acquisition_time(header),
        slope=1.0 if slope in (None, 0.0) else float(slope or 1.0),
        intercept=header.number(tags.RESCALE_INTERCEPT) or 0.0,
    )


def frame_image_type(reader: PublicReader, header: Header) -> tuple[str, ...]:
    """ImageType or FrameType in upper case, with the tokens that the vendor keeps elsewhere appended once."""
    tokens = header.tokens(tags.FRAME_TYPE) or header.tokens(tags.IMAGE_TYPE)
    return tokens + tuple(token for token in reader.extra_image_type(header) if token not in tokens)


def echo_time_ms(header: Header) -> float | None:
    """Effective echo time of a frame, else EchoTime."""
    return header.number(tags.EFFECTIVE_ECHO_TIME) or header.number(tags.ECHO_TIME)


def acquisition_time(header: Header) -> datetime | None:
    """When the slice was measured."""
    for date, time in (
        (tags.FRAME_ACQUISITION_DATE_TIME, None),
        (tags.ACQUISITION_DATE_TIME, None),
        (tags.ACQUISITION_DATE, tags.ACQUISITION_TIME),
        (tags.CONTENT_DATE, tags.CONTENT_TIME),
        (tags.SERIES_DATE, tags.SERIES_TIME),
        # de-identification may remove every date but this one
        (tags.INSTANCE_CREATION_DATE, tags.ACQUISITION_TIME),
        (tags.INSTANCE_CREATION_DATE, tags.SERIES_TIME),
    ):
        clock = header.text(time) if time else ""
        if (found := moment(header.text(date), clock)) is not None and (clock or not time):
            return found
    return None
