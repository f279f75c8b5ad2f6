"""The main job with real peers: every study of the collection in, corrected derived series in the PACS.

storescu is the scanner, Orthanc the PACS, dcm2niix and dciodvfy the arbiters. What should become of each
series is what the collection's README says of it. The engine has settings of a few seconds: how good a field
is, other tests ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hospital import Orthanc, RunningNode, dcm2niix, errors_of, node, orthanc, storescu
from quick_correction import SETTINGS

pytestmark = pytest.mark.peers

STUDIES = (
    "siemens-xa30-enhanced",
    "siemens-xa30-classic",
    "siemens-e11-mosaic",
    "prostatex-0218",
    "philips-classic",
    "prostatex-0000",
    "uih",
    "ge-phantom",
    "siemens-xa61-noref",
    "philips-dwi-noref",
    "canon-classic",
    "canon-enhanced",  # a series of canon-classic once more, in one file and under the same UIDs
    "parser-fixtures",
)
# one series under the same UIDs in four compressed transfer syntaxes, and how storescu offers each
COMPRESSED = {"jpeg": "-xs", "jpegls": "-xt", "j2k": "-xv", "rle": "-xr"}
FRAGMENTS = ("ge", "hitachi", "hyperfine", "philips", "philips_enhanced")
# (study, SeriesNumber) of the DWI series with an acceptable reference → the reference's SeriesNumber
CORRECTED = {
    ("siemens-xa30-enhanced", 17): 6,
    ("siemens-xa30-classic", 11001): 6001,
    ("prostatex-0218", 8): 5,
    ("prostatex-0218", 11): 5,
    ("prostatex-0218", 17): 5,
    ("philips-classic", 2201): 1301,
    ("prostatex-0000", 6): 4,
    ("uih", 6): 2,
    ("uih", 9): 2,
    ("ge-phantom", 4): 5,
}
# trace-weighted series that take over the field of a DWI: they have no job of their own
SIBLINGS = {
    ("siemens-xa30-enhanced", 17): 20,
    ("siemens-xa30-classic", 11001): 13001,
    ("prostatex-0218", 11): 13,
}
# a mosaic without CSA header: dcm2niix leaves it one picture a volume
UNKNOWN_TO_DCM2NIIX = ("prostatex-0218", 11)
SKIPPED = {
    ("siemens-e11-mosaic", 4): "no-reference",
    ("prostatex-0218", 18): "no-low-b",
    ("prostatex-0218", 19): "no-low-b",
    ("ge-phantom", 1): "too-few-slices",
    ("ge-phantom", 2): "too-few-slices",
    ("ge-phantom", 3): "too-few-slices",
    ("siemens-xa61-noref", 14): "no-reference",
    ("siemens-xa61-noref", 16): "no-reference",
    ("philips-dwi-noref", 701): "no-reference",
    ("canon-classic", 3000): "no-reference",
    ("canon-classic", 4000): "no-reference",
    ("vendor-mini", 10): "no-reference",
    ("vendor-mini", 801): "too-few-slices",
    ("vendor-mini", 501): "no-reference",
}
# two copies of one series, in explicit and implicit VR and under UIDs of their own
TWICE = ("vendor-mini", 501)
SETTLE_S = 1500.0


@dataclass(frozen=True, slots=True)
class Day:
    """One day at the hospital: what was sent and what became of it."""

    node: RunningNode
    pacs: Orthanc
    sources: dict[str, Path]
    jobs: list[dict[str, Any]]
    study_of: dict[str, str]  # SeriesInstanceUID → name of the study


@pytest.fixture(scope="module")
def day(data_set: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    sources = {name: data_set(name) for name in STUDIES}
    folder = tmp_path_factory.mktemp("hospital")
    with (
        orthanc(folder / "orthanc") as pacs,
        node(
            folder / "node",
            pacs.dicom_port,
            # what is delivered here is everything; the verdict has tests of its own
            DICOM_NODE__CORRECTION__ON_POOR_QUALITY="flag",
            DICOM_NODE__CORRECTION__MATCHER="none",
            DICOM_NODE__CORRECTION__SETTINGS=json.dumps(dict(SETTINGS)),
        ) as running,
    ):
        storescu(running.port, *sources.values())
        mini = data_set("vendor-mini")
        storescu(running.port, *(mini / vendor for vendor in FRAGMENTS))
        for name, propose in COMPRESSED.items():
            storescu(running.port, mini / "generic" / f"compressed_{name}", propose=propose)
        sources["vendor-mini"] = mini
        jobs = running.wait_until_settled(SETTLE_S)
        yield Day(running, pacs, sources, jobs, _studies(sources))


def _studies(sources: dict[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, folder in sources.items():
        for path in folder.rglob("*"):
            if path.is_file() and pydicom.misc.is_dicom(path):
                header = pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
                found.setdefault(str(header.get("SeriesInstanceUID", "")), name)
    return found


def _key(day: Day, job: dict[str, Any]) -> tuple[str, int]:
    return day.study_of[job["series_uid"]], job["series_number"]


def _derived(day: Day, key: tuple[str, int]) -> dict[str, Any]:
    """The derived series of a source, by the RelatedSeries that it names."""
    job = next(job for job in day.jobs if _key(day, job) == key)
    document = day.node.http.get(f"/api/jobs/{job['id']}").json()
    found = [
        series
        for series in day.pacs.series()
        if series["MainDicomTags"]["SeriesInstanceUID"] == document["output_series_uid"]
    ]
    assert len(found) == 1
    return found[0]


def test_every_dwi_series_ends_once_and_nothing_else_has_a_job(day: Day) -> None:
    assert sorted(_key(day, job) for job in day.jobs) == sorted([*CORRECTED, *SKIPPED, TWICE])


def test_dwi_series_with_a_reference_are_delivered(day: Day) -> None:
    ended = {_key(day, job): job["state"] for job in day.jobs if _key(day, job) in CORRECTED}
    assert ended == dict.fromkeys(CORRECTED, "sent")


def test_every_other_dwi_series_is_skipped_with_its_reason(day: Day) -> None:
    ended = {
        _key(day, job): (job["state"], job["reason"]["code"]) for job in day.jobs if _key(day, job) in SKIPPED
    }
    assert ended == {key: ("skipped", code) for key, code in SKIPPED.items()}


def test_the_reference_is_the_one_a_physicist_would_take(day: Day) -> None:
    for job in day.jobs:
        if _key(day, job) in CORRECTED:
            choice = day.node.http.get(f"/api/jobs/{job['id']}").json()["choice"]
            assert choice[0]["series_number"] == CORRECTED[_key(day, job)]


def test_the_pacs_holds_one_derived_series_for_each_and_nothing_else(day: Day) -> None:
    found = [series["MainDicomTags"] for series in day.pacs.series()]
    assert len(found) == len(CORRECTED) + len(SIBLINGS)
    # vendors that write no description leave it to our suffix
    assert all("DISTCORR" in tags["SeriesDescription"] for tags in found)


def test_a_trace_series_goes_to_the_pacs_with_the_field_of_its_dwi(day: Day, tmp_path: Path) -> None:
    series = {item["MainDicomTags"]["SeriesInstanceUID"]: item for item in day.pacs.series()}
    for key, number in SIBLINGS.items():
        job = next(job for job in day.jobs if _key(day, job) == key)
        figures = day.node.http.get(f"/api/jobs/{job['id']}").json()["figures"]
        (taken,) = figures["siblings"]
        files = day.pacs.download(series[taken["derived"]], tmp_path / str(number))
        image = pydicom.dcmread(files[0])
        related = {str(item.SeriesInstanceUID) for item in image.RelatedSeriesSequence}
        assert taken["source"] in related
        assert image.ImageType[3] == "TRACEW"
        assert (
            image.FrameOfReferenceUID
            == pydicom.dcmread(
                day.pacs.download(_derived(day, key), tmp_path / f"lead-{number}")[0], stop_before_pixels=True
            ).FrameOfReferenceUID
        )


def test_strange_and_damaged_files_leave_the_node_healthy(day: Day) -> None:
    health = day.node.http.get("/health").json()
    assert health["status"] == "ok", health
    log = (day.node.config.parent / "serve.log").read_text()
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "key", sorted(CORRECTED.keys() - {UNKNOWN_TO_DCM2NIIX}), ids=lambda key: f"{key[0]}-{key[1]}"
)
def test_derived_series_have_the_grid_and_b_values_of_their_source(
    day: Day, key: tuple[str, int], tmp_path: Path
) -> None:
    study, number = key
    source = dcm2niix(day.sources[study], tmp_path / "source")[number]
    day.pacs.download(_derived(day, key), tmp_path / "derived")
    ((_, b_values, derived),) = dcm2niix(tmp_path / "derived", tmp_path / "nifti").values()
    before, after = nibabel.load(source[2]), nibabel.load(derived)
    assert after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-3)
    assert sorted(b_values) == sorted(source[1])


@pytest.mark.parametrize("key", CORRECTED, ids=lambda key: f"{key[0]}-{key[1]}")
def test_dciodvfy_finds_no_error_that_the_source_does_not_have(
    day: Day, key: tuple[str, int], tmp_path: Path
) -> None:
    files = day.pacs.download(_derived(day, key), tmp_path)
    job = next(job for job in day.jobs if _key(day, job) == key)
    source = next(
        path
        for path in sorted(day.sources[key[0]].rglob("*"))
        if path.is_file()
        and pydicom.misc.is_dicom(path)
        and pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID")
        == job["series_uid"]
    )
    allowed = errors_of(["dciodvfy", "-new"], source)
    for path in (files[0], files[len(files) // 2], files[-1]):
        assert errors_of(["dciodvfy", "-new"], path) <= allowed


def test_sending_a_study_again_changes_nothing(day: Day) -> None:
    before = day.pacs.count_instances()
    storescu(day.node.port, day.sources["siemens-xa30-enhanced"], day.sources["prostatex-0218"])
    again = day.node.wait_until_settled(SETTLE_S)
    assert [(job["id"], job["state"]) for job in again] == [(job["id"], job["state"]) for job in day.jobs]
    assert [job["attempts"] for job in again] == [job["attempts"] for job in day.jobs]
    assert day.pacs.count_instances() == before


def test_our_own_output_is_never_taken_as_input(day: Day, tmp_path: Path) -> None:
    day.pacs.download(_derived(day, ("prostatex-0218", 8)), tmp_path)
    storescu(day.node.port, tmp_path)
    jobs = day.node.wait_until_settled(SETTLE_S)
    assert len(jobs) == len(day.jobs)
    received = day.node.http.get("/api/series", params={"limit": 1000}).json()["series"]
    assert [series["class"] for series in received].count("own-output") == 1
