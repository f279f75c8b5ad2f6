from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from derived_series import (
    Bench,
    made_by,
    raw,
)
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicom_node.derive import DerivePolicy, derive

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]

NAMES = {
    "ISO 2022 IR 87": (b"ISO 2022 IR 6\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B="),
    "GB18030": (b"GB18030", "Wang^XiaoDong=王^小东=".encode("gb18030")),
    "UTF-8": (b"ISO_IR 192", "Núñez^José=Δ^Ж=".encode()),
    "Latin-1": (b"ISO_IR 100", "Müller^Jürgen".encode("latin-1")),
    "undeclared": (None, "Müller^Jürgen".encode("latin-1")),
}
DESCRIPTIONS = {
    "ISO 2022 IR 87": b"DWI \x1b$B3H;6\x1b(B",
    "GB18030": "DWI 弥散加权成像".encode("gb18030"),
    "UTF-8": "DWI диффузия".encode(),
    "Latin-1": "DWI Schädel".encode("latin-1"),
    "undeclared": "DWI Schädel".encode("latin-1"),
}


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

    instance = pydicom.dcmread(files[0])
    assert (instance.SeriesDate, instance.SeriesTime) == ("20260202", "223506.000000")
    assert (instance.ContentDate, instance.InstanceCreationTime) == ("20260202", "223506.000000")
    assert instance.AcquisitionTime == "100800"


def put_raw(dataset: Dataset, keyword: str, vr: str, value: bytes | None) -> None:
    """Set the bytes of an element, whatever the data set thinks of them."""
    tag = Tag(tag_for_keyword(keyword))
    dataset.pop(tag, None)
    if value is not None:
        value += b" " * (len(value) % 2)
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


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


@pytest.mark.filterwarnings("ignore:The value length")  # of the source's, with its padding
@pytest.mark.parametrize("script", [script for script in NAMES if script != "undeclared"])
def test_a_long_description_is_cut_by_characters_and_keeps_its_suffix(script: str, bench_of: BenchOf) -> None:
    codec = {"ISO 2022 IR 87": "iso2022_jp", "GB18030": "gb18030", "UTF-8": "utf-8"}.get(script, "latin-1")
    last = DESCRIPTIONS[script].decode(codec)[4:]
    long = ("DWI " + last * 40)[:64]
    bench = bench_of(in_script(script, long.encode(codec)))

    descriptions = {instance.SeriesDescription for instance in bench.derive()}

    (description,) = descriptions
    assert len(description) == 64
    assert description == long[: 64 - len(" DISTCORR")].rstrip() + " DISTCORR"


def test_a_series_without_description_is_still_named(bench_of: BenchOf) -> None:
    def nameless(dataset: Dataset, index: int) -> None:
        del dataset.SeriesDescription

    assert {i.SeriesDescription for i in bench_of(nameless).derive()} == {"DISTCORR"}
