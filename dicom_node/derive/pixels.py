"""Stored pixels of the derived series: one scale for the whole series, and the windows of its b-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dicom_node.derive.shells import Shell

Array = npt.NDArray[np.float32]
Stored = npt.NDArray[np.integer[Any]]

COMMON_SCALE_MAX = 32767  # stored value of the series' maximum where the source's slices differ in scale
WINDOW_PERCENTILES = (1.0, 99.5)
WINDOW_SAMPLES = 2_000_000  # voxels that a window is measured on; more do not move a percentile


@dataclass(frozen=True, slots=True)
class Scale:
    """How real-world values become stored ones: value = stored · slope + intercept.

    `as_source` says that slope and intercept are those of every source slice, so that their text can be kept.
    `floor`: the smallest real-world value that may be written; below it an interpolator has undershot.
    """

    slope: float
    intercept: float
    bits_stored: int
    signed: bool
    floor: float
    as_source: bool

    @property
    def trivial(self) -> bool:
        """Stored values are the real-world values, so that Rescale attributes say nothing."""
        return self.slope == 1.0 and self.intercept == 0.0

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest stored value that the pixel description can hold."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    def stored(self, values: Array) -> Stored:
        """Real-world `values` of any shape as stored pixels: rounded half to even, clipped, NaN as 0."""
        low, high = self.range
        exact = np.maximum(np.nan_to_num(values.astype(np.float64)), self.floor)
        exact = np.clip(np.rint((exact - self.intercept) / self.slope), low, high)
        return exact.astype(np.int16 if self.signed else np.uint16)

    def clipped(self, values: Array) -> int:
        """How many of `values` lie more than half a stored step outside of what can be written."""
        low, high = self.range
        floor = max(self.floor, low * self.slope + self.intercept)
        ceiling = high * self.slope + self.intercept
        half = 0.5 * self.slope
        return int(np.count_nonzero((values < floor - half) | (values > ceiling + half)))


def scale_for(
    source: Array,
    corrected: Array,
    slopes_and_intercepts: Sequence[tuple[float, float]],
    bits_stored: int,
    signed: bool,
) -> Scale:
    """The one scale of the series.

    source, corrected: (V, Z, Y, X) real-world values. slopes_and_intercepts: of every source slice.
    bits_stored, signed: the source's pixel description. Where all slices share one scale it is kept, so that
    an identity correction gives back the stored pixels; the bits grow to 16 where the values need it.
    Otherwise (Philips scales each slice) a slope that just holds the maximum.
    """
    floor = min(0.0, float(np.nanmin(source)))
    low, high = max(floor, float(np.nanmin(corrected))), float(np.nanmax(corrected))
    if len(set(slopes_and_intercepts)) == 1:
        slope, intercept = slopes_and_intercepts[0]
        scale = Scale(slope, intercept, bits_stored, signed, floor, as_source=True)
        if _holds(scale, low, high) or scale.bits_stored == 16:
            return scale
        return Scale(slope, intercept, 16, signed, floor, as_source=True)
    largest = max(abs(low), abs(high)) or 1.0
    return Scale(_rounded_up(largest / COMMON_SCALE_MAX), 0.0, 16, floor < 0.0, floor, as_source=False)


def _holds(scale: Scale, low: float, high: float) -> bool:
    stored = sorted(np.rint((np.asarray([low, high]) - scale.intercept) / scale.slope))
    return bool(stored[0] >= scale.range[0] and stored[1] <= scale.range[1])


def _rounded_up(value: float, digits: int = 6) -> float:
    """`value` rounded up to so many significant digits: a slope that is exact in sixteen characters."""
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / step) * step:.{digits - 1}e}")


def windows(corrected: Array, shells: Sequence[Shell]) -> dict[int, tuple[float, float]]:
    """Window centre and width of each volume, in real-world units; volumes of one shell share theirs.

    corrected: (V, Z, Y, X). A window of its own for each b-value, because b = 0 is many times brighter.
    """
    found: dict[int, tuple[float, float]] = {}
    for shell in shells:
        stride = max(1, math.ceil(len(shell.volumes) * corrected[0].size / WINDOW_SAMPLES))
        sample = np.concatenate([corrected[v].ravel()[::stride] for v in shell.volumes])
        low, high = np.nanpercentile(sample, WINDOW_PERCENTILES)
        width = max(1.0, round(float(high - low), 2))
        window = (round(float(low) + width / 2.0, 2), width)
        found.update(dict.fromkeys(shell.volumes, window))
    return found
