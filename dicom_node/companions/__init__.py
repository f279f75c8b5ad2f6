"""What goes with a derived series, each by a switch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset

from dicom_node.companions.adc import adc_images
from dicom_node.companions.finished import Finished
from dicom_node.companions.picture import qc_capture
from dicom_node.companions.quality_record import quality_record
from dicom_node.companions.registration import registration
from dicom_node.derive.instance_file import COMPANION
from dicom_node.derive.series import Written, next_paths, write

__all__ = ["Finished", "write_companions"]


def write_companions(finished: Finished, out: Path) -> list[Written]:
    """Write what `finished.policy.companions` asks for into `out`, behind the images that lie there."""
    paths = next_paths(out, COMPANION)
    return [write(made, next(paths)) for made in _companions(finished)]


def _companions(finished: Finished) -> Iterator[Dataset]:
    """In this order, so that SeriesNumbers do not depend on anything but the switches."""
    wanted = finished.policy.companions
    if wanted.adc:
        yield from adc_images(finished)
    if wanted.qc:
        yield qc_capture(finished)
    if wanted.registration:
        yield registration(finished)
    if wanted.quality_record:
        yield quality_record(finished)
