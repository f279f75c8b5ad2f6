from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from derived_series import (
    Bench,
    pixels_of,
    raw,
    stored_of,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.tag import Tag

from dicom_node.derive.pixels import scale_for

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]


def test_an_identity_correction_gives_back_the_stored_pixels(bench: Bench) -> None:
    derived = bench.derive()

    assert np.array_equal(pixels_of(derived, bench.source.voxels.shape), stored_of(bench.source))
    assert {instance.BitsStored for instance in derived} == {12}


def test_an_identity_correction_gives_back_the_stored_pixels_of_a_scaled_series(
    bench_of: BenchOf,
) -> None:
    def scale(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = (
            "1.07326007326007",
            "-12.5",
            "US",
        )

    bench = bench_of(scale)
    derived = bench.derive()

    assert np.array_equal(pixels_of(derived, bench.source.voxels.shape), stored_of(bench.source))
    assert {raw(instance, "RescaleSlope") for instance in derived} == {b"1.07326007326007"}


def test_a_trivial_scale_is_not_written(bench: Bench) -> None:
    assert not any("RescaleSlope" in instance for instance in bench.derive())


def test_slices_of_different_scale_get_one_slope_that_keeps_their_values(
    bench_of: BenchOf,
) -> None:
    def scale(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{1 + index / 10:g}", "0"

    bench = bench_of(scale)
    derived = bench.derive()

    slopes = {float(instance.RescaleSlope) for instance in derived}
    assert len(slopes) == 1
    values = pixels_of(derived, bench.source.voxels.shape) * slopes.pop()
    half_a_step = float(derived[0].RescaleSlope) / 2
    assert np.abs(values - bench.source.voxels).max() <= half_a_step * 1.001
    assert {float(instance.RescaleIntercept) for instance in derived} == {0.0}


def test_an_undershoot_of_the_interpolation_becomes_zero_and_is_counted(bench: Bench) -> None:
    corrected = bench.source.voxels.copy()
    corrected[1, 2, 3, 4:7] = -40.0

    derived = bench.derive(corrected)

    assert pixels_of(derived, corrected.shape)[1, 2, 3, 4:7].tolist() == [0, 0, 0]
    assert {instance.PixelRepresentation for instance in derived} == {0}
    assert "3 voxels clipped" in derived[0].DerivationDescription


def test_values_beyond_the_source_bits_get_more_bits(bench: Bench) -> None:
    corrected = bench.source.voxels * 3.0

    derived = bench.derive(corrected, modulated=True)

    assert {(instance.BitsStored, instance.HighBit) for instance in derived} == {(16, 15)}
    assert np.array_equal(pixels_of(derived, corrected.shape), stored_of(bench.source) * 3)
    assert "Jacobian modulation yes" in derived[0].DerivationDescription
    assert "clipped" not in derived[0].DerivationDescription


def test_signed_pixels_stay_signed(bench_of: BenchOf) -> None:
    def sign(dataset: Dataset, index: int) -> None:
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
        pixels = dataset.pixel_array.astype("<i2") - 50
        dataset.PixelData = pixels.tobytes()

    bench = bench_of(sign)
    derived = bench.derive()

    assert np.array_equal(pixels_of(derived, bench.source.voxels.shape), stored_of(bench.source))
    assert derived[0].SmallestImagePixelValue == derived[0].pixel_array.min() < 0
    assert derived[0].get_item(Tag("SmallestImagePixelValue")).VR == "SS"


def test_not_a_number_becomes_zero(bench: Bench) -> None:
    corrected = bench.source.voxels.copy()
    corrected[0, 0, 0, 0] = np.nan

    assert bench.derive(corrected)[0].pixel_array[0, 0] == 0


@given(
    slope=st.floats(1e-3, 1e3),
    intercept=st.floats(-1e3, 1e3),
    stored=st.lists(st.integers(0, 65535), min_size=4, max_size=4),
)
def test_any_scale_gives_back_what_was_stored(slope: float, intercept: float, stored: list[int]) -> None:
    values = (np.asarray(stored, np.float64) * slope + intercept).astype(np.float32).reshape(1, 1, 2, 2)

    scale = scale_for(values, values, [(slope, intercept)] * 3, bits_stored=16, signed=False)

    # float32 carries 24 bits: an intercept that dwarfs the slope cannot be undone by anyone
    assume(abs(intercept) + 65535 * slope < 2**22 * slope)
    assert scale.stored(values).ravel().tolist() == stored
    assert scale.clipped(values) == 0


@given(values=st.lists(st.floats(0.0, 1e6, width=32), min_size=4, max_size=4))
def test_a_common_scale_holds_its_maximum_within_half_a_step(values: list[float]) -> None:
    array = np.asarray(values, np.float32).reshape(1, 1, 2, 2)

    scale = scale_for(array, array, [(1.0, 0.0), (2.0, 0.0)], bits_stored=12, signed=False)

    again = scale.stored(array) * scale.slope
    assert np.abs(again - array).max() <= scale.slope * 0.5001
    assert len(f"{scale.slope:.6g}") <= 16
    assert (scale.bits_stored, scale.signed, scale.intercept) == (16, False, 0.0)


def test_each_b_value_has_its_own_window(bench: Bench) -> None:
    derived = bench.derive()

    windows = {float(i.DiffusionBValue): set() for i in derived}
    for instance in derived:
        windows[float(instance.DiffusionBValue)].add((instance.WindowCenter, instance.WindowWidth))
    assert [len(found) for found in windows.values()] == [1, 1]
    for b_value, ((centre, width),) in ((b, tuple(found)) for b, found in windows.items()):
        shell = bench.source.voxels[[0] if b_value == 0 else [1, 2, 3]]
        low, high = np.percentile(shell, (1.0, 99.5))
        assert (float(centre), float(width)) == pytest.approx(((low + high) / 2, high - low), abs=0.02)
