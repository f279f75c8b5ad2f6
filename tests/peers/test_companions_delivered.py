"""Companions and their withdrawal through a running node, with Orthanc as the PACS."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hospital import Orthanc, RunningNode, errors_of, node, orthanc, storescu, until
from pydicom import Dataset
from quick_correction import SETTINGS, write_head_study

pytestmark = pytest.mark.peers

SETTLE_S = 300.0
MR, CAPTURE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
FIELD, RECORD = "1.2.840.10008.5.1.4.1.1.66.3", "1.2.840.10008.5.1.4.1.1.88.33"
NOTE = "1.2.840.10008.5.1.4.1.1.88.59"
SWITCHES = ("QC", "REGISTRATION", "ADC", "QUALITY_RECORD")


@dataclass(frozen=True, slots=True)
class Day:
    """What a node with every companion made of one study."""

    node: RunningNode
    pacs: Orthanc
    job: dict[str, Any]
    folder: Path
    slices: int

    def archived(self, folder: str) -> list[Dataset]:
        """Everything that the PACS has."""
        return [
            pydicom.dcmread(path)
            for number, series in enumerate(self.pacs.series())
            for path in self.pacs.download(series, self.folder / folder / str(number))
        ]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    folder = tmp_path_factory.mktemp("companions")
    (folder / "study").mkdir()
    study = write_head_study(folder / "study")
    changes = {f"DICOM_NODE__DERIVE__COMPANIONS__{switch}": "true" for switch in SWITCHES}
    changes |= {
        "DICOM_NODE__CORRECTION__SETTINGS": json.dumps(dict(SETTINGS)),
        "DICOM_NODE__CORRECTION__ON_POOR_QUALITY": "flag",
        "DICOM_NODE__CORRECTION__DEVICE": "cpu",
    }
    with orthanc(folder / "orthanc") as pacs, node(folder / "node", pacs.dicom_port, **changes) as running:
        storescu(running.port, folder / "study")
        (job,) = running.wait_until_settled(SETTLE_S)
        yield Day(running, pacs, job, folder, len(study.dwi_files) // 2)


def test_every_companion_arrives_with_the_series_and_is_without_error(day: Day) -> None:
    assert day.job["state"] == "sent"
    assert [(one["destination"], one["state"]) for one in day.job["deliveries"]] == [("pacs", "sent")]
    archived = day.archived("sent")
    assert Counter(str(one.SOPClassUID) for one in archived) == {
        MR: 2 * day.slices + day.slices,  # b = 0 and 1000, and the ADC map
        CAPTURE: 1,
        FIELD: 1,
        RECORD: 1,
    }
    assert len({one.StudyInstanceUID for one in archived}) == 1
    for class_uid in (MR, CAPTURE, FIELD, RECORD):
        one = next(one for one in archived if one.SOPClassUID == class_uid)
        assert errors_of(["dciodvfy", "-new"], Path(one.filename)) == set()


def test_what_was_sent_and_comes_back_is_not_corrected_again(day: Day) -> None:
    storescu(day.node.port, day.folder / "sent")

    assert len(day.node.wait_until_settled(SETTLE_S)) == 1


def test_what_is_withdrawn_is_rejected_in_the_archive(day: Day) -> None:
    sent = {str(one.SOPInstanceUID) for one in day.archived("before")}
    day.node.command("withdraw", str(day.job["id"]))

    def told() -> bool:
        document = day.node.http.get(f"/api/jobs/{day.job['id']}").json()
        return [one["state"] for one in document["withdrawals"]] == ["sent"]

    until(told, 60, "the PACS was not told")
    (note,) = (one for one in day.archived("after") if one.SOPClassUID == NOTE)
    assert errors_of(["dciodvfy", "-new"], Path(note.filename)) == set()
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    named = {
        one.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert named == sent
    said = day.node.command("jobs", str(day.job["id"])).stdout
    assert "withdrawn by" in said
    assert "rejection to pacs: sent" in said
    refused = day.node.command("release", str(day.job["id"]), check=False)
    assert (refused.returncode, "was withdrawn" in refused.stderr) == (3, True)
