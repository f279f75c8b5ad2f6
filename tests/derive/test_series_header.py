from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from derived_series import DESCRIPTIONS, NAMES, Bench, made_by, put_raw, raw
from pydicom import Dataset

from dicom_node.derive import DerivePolicy, derive

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]


@pytest.mark.parametrize(
    ("number", "policy", "taken", "expected"),
    [
        (5, DerivePolicy(), (), 590),
        (5, DerivePolicy(), (590, 591), 592),
        (11001, DerivePolicy(), (), 1100190),
        (22_000_123, DerivePolicy(), (), 9123),
        (None, DerivePolicy(), (), 9000),
        (5, DerivePolicy(series_number_offset=1000), (), 1005),
        (5, DerivePolicy(series_number_offset=1000), (1005,), 1006),
    ],
)
def test_the_series_number_lies_behind_the_source_and_is_free(
    bench: Bench, number: int | None, policy: DerivePolicy, taken: tuple[int, ...], expected: int
) -> None:
    bench.source = replace(bench.source, facts=replace(bench.source.facts, series_number=number))

    derived = bench.derive(policy=policy, taken_numbers=frozenset(taken))

    assert {instance.SeriesNumber for instance in derived} == {expected}


@pytest.mark.parametrize(
    ("verdict", "description", "comment"),
    [
        ("pass", "DWI EPI DISTCORR", "QC=PASS"),
        ("review", "DWI EPI DISTCORR QC!", "QC=WARN"),
        ("reject", "DWI EPI DISTCORR QC FAIL", "QC=FAIL"),
    ],
)
def test_the_verdict_can_be_read_on_every_image(
    bench: Bench, verdict: str, description: str, comment: str
) -> None:
    derived = bench.derive(verdict=verdict)

    assert {instance.SeriesDescription for instance in derived} == {description}
    assert all(comment in instance.ImageComments for instance in derived)


def test_processing_times_are_told_on_the_scanner_clock(bench_of: BenchOf) -> None:
    bench = bench_of(lambda dataset, index: setattr(dataset, "TimezoneOffsetFromUTC", "-0530"))
    bench.out.mkdir()
    files = derive(
        bench.source,
        bench.source.voxels,
        made_by(bench.reference),
        DerivePolicy(),
        bench.out,
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
    )

    instance = pydicom.dcmread(files[0].path)
    assert (instance.SeriesDate, instance.SeriesTime) == ("20260202", "223506.000000")
    assert (instance.ContentDate, instance.InstanceCreationTime) == ("20260202", "223506.000000")
    assert instance.AcquisitionTime == "100800"


def in_script(script: str, description: bytes) -> Callable[[Dataset, int], None]:
    charset, name = NAMES[script]

    def edit(dataset: Dataset, index: int) -> None:
        put_raw(dataset, "SpecificCharacterSet", "CS", charset)
        put_raw(dataset, "PatientName", "PN", name)
        put_raw(dataset, "SeriesDescription", "LO", description)
        dataset.set_original_encoding(False, True, dataset._character_set)

    return edit


@pytest.mark.parametrize("script", NAMES)
def test_names_in_any_character_set_keep_their_bytes(script: str, bench_of: BenchOf) -> None:
    charset, name = NAMES[script]
    bench = bench_of(in_script(script, DESCRIPTIONS[script]))

    for instance in bench.derive():
        if charset is None:
            assert "SpecificCharacterSet" not in instance
        else:
            element = instance.get("SpecificCharacterSet")
            text = "\\".join(element) if not isinstance(element, str) else element
            assert text.encode() == charset
        assert raw(instance, "PatientName").rstrip(b" ") == name
        assert raw(instance, "SeriesDescription").rstrip(b" ") == DESCRIPTIONS[script] + b" DISTCORR"


KOREAN = "\x1b$)C"  # designates KS X 1001, which Python's codec does not write
CODECS = {
    "ISO 2022 IR 87": "iso2022_jp",
    "ISO 2022 IR 149": "euc_kr",
    "GB18030": "gb18030",
    "UTF-8": "utf-8",
}


@pytest.mark.filterwarnings("ignore:The value length")  # of the source's, with its padding
@pytest.mark.parametrize("script", [script for script in NAMES if script != "undeclared"])
def test_a_long_description_is_cut_by_characters_and_keeps_its_suffix(script: str, bench_of: BenchOf) -> None:
    codec = CODECS.get(script, "latin-1")
    last = DESCRIPTIONS[script].decode(codec)[4:].removeprefix(KOREAN)
    long = ("DWI " + last * 40)[:64]
    encoded = long.encode(codec)
    if script == "ISO 2022 IR 149":
        encoded = encoded.replace(b"DWI ", b"DWI " + KOREAN.encode())
    bench = bench_of(in_script(script, encoded))

    descriptions = {instance.SeriesDescription for instance in bench.derive()}

    (description,) = descriptions
    assert len(description) == 64
    assert description == long[: 64 - len(" DISTCORR")].rstrip() + " DISTCORR"


@pytest.mark.parametrize("script", NAMES)
def test_the_descriptions_of_several_series_all_keep_their_bytes(script: str, bench_of: BenchOf) -> None:
    bench = bench_of(in_script(script, DESCRIPTIONS[script]))

    derived = bench.derive(policy=DerivePolicy(one_series_per_b_value=True))

    kept = {raw(instance, "SeriesDescription").rstrip(b" ") for instance in derived}
    assert kept == {DESCRIPTIONS[script] + f" {b} DISTCORR".encode() for b in ("b0", "b1000")}


def test_a_series_without_description_is_still_named(bench_of: BenchOf) -> None:
    def nameless(dataset: Dataset, index: int) -> None:
        del dataset.SeriesDescription

    assert {i.SeriesDescription for i in bench_of(nameless).derive()} == {"DISTCORR"}
