"""What a site sets about derived objects: labels, grid, how many series, which companions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class OutputGrid(StrEnum):
    """On whose voxels the corrected images lie."""

    DWI = "dwi"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class CompanionPolicy:
    """Which objects go with the corrected series. notice: the line on top of the QC picture."""

    qc: bool = False
    registration: bool = False
    adc: bool = False
    quality_record: bool = False
    notice: str = "DERIVED: not for primary diagnosis"


@dataclass(frozen=True, slots=True)
class DerivePolicy:
    """How the derived series is labelled and laid out.

    series_number_offset None: SeriesNumber is source × 100 + 90.
    """

    description_suffix: str = " DISTCORR"
    series_number_offset: int | None = None
    grid: OutputGrid = OutputGrid.DWI
    one_series_per_b_value: bool = False
    companions: CompanionPolicy = CompanionPolicy()
