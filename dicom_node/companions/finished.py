"""A correction whose derived series is written: what its companions are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from dicom_node.companions.document import Identity, new_object
from dicom_node.derive import provenance
from dicom_node.derive.instances import Headers
from dicom_node.derive.policy import DerivePolicy, OutputGrid
from dicom_node.derive.provenance import Provenance
from dicom_node.derive.series import Written, derived_series_uid
from dicom_node.derive.series_header import QC_MARK, series_description, series_numbers
from dicom_node.headers import FrameFacts
from dicom_node.load import LoadedSeries, reference_stack

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished correction.

    corrected: (V, Z, Y, X) real-world values on the grid of the derived series. displacement_mm:
    (3, Z, Y, X), patient LPS, on the grid of `source`: corrected(x) = distorted(x + u(x)). report: the
    document of report.json. picture: qc.png. stack: the reference's slices where the derived series lies on
    them, else None. numbers: SeriesNumbers that are free. headers: of the source.
    """

    source: LoadedSeries
    corrected: Array
    displacement_mm: Array
    made_by: Provenance
    policy: DerivePolicy
    written: Sequence[Written]
    report: Mapping[str, Any]
    picture: Path
    now: datetime
    stack: Sequence[FrameFacts] | None
    numbers: Iterator[int]
    headers: Headers

    @classmethod
    def of(
        cls,
        source: LoadedSeries,
        corrected: Array,
        displacement_mm: Array,
        made_by: Provenance,
        policy: DerivePolicy,
        written: Sequence[Written],
        report: Mapping[str, Any],
        picture: Path,
        now: datetime,
    ) -> Finished:
        """With what follows from the rest. Raises headers.HeaderError when an input can no longer be read."""
        on_reference = policy.grid is OutputGrid.REFERENCE
        taken = made_by.taken_numbers | {one.series_number for one in written}
        return cls(
            source=source,
            corrected=corrected,
            displacement_mm=displacement_mm,
            made_by=made_by,
            policy=policy,
            written=tuple(written),
            report=report,
            picture=picture,
            now=now,
            stack=reference_stack(made_by.reference).frames if on_reference else None,
            numbers=series_numbers(source.facts.series_number, policy, taken),
            headers=Headers.of(source),
        )

    def series_uid(self, kind: str) -> str:
        """SeriesInstanceUID of a companion: one for each kind and correction."""
        return derived_series_uid(self.source, self.made_by, kind)

    def new_object(self, class_uid: str, modality: str, kind: str, key: str = "") -> Dataset:
        """The only object of a series of its own. kind: what its description says of it.

        key: what decides its content beyond the settings of the correction.
        """
        uid = self.series_uid(kind)
        first = self.headers.first
        ending = f" {kind}{self.policy.description_suffix}{QC_MARK[self.made_by.verdict]}"
        return new_object(
            first,
            Identity(class_uid, modality, provenance.instance_uid(uid, key), uid, next(self.numbers)),
            series_description(first, ending),
            self.made_by.version,
            self.now,
        )
