from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from finished_correction import REPORT, companions
from pydicom import Dataset

from dicom_node.companions import Finished


def items(content: Dataset) -> Iterator[Dataset]:
    for item in content.get("ContentSequence", ()):
        if "ConceptNameCodeSequence" in item:
            yield item
        yield from items(item)


def figures(record: Dataset) -> dict[str, tuple[float, str]]:
    """Code value → number and unit of every NUM item."""
    return {
        item.ConceptNameCodeSequence[0].CodeValue: (
            float(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in items(record)
        if item.ValueType == "NUM"
    }


def test_the_record_holds_the_figures_of_the_report_with_their_units(done: Finished) -> None:
    (record,) = companions(done, quality_record=True)

    found = figures(record)
    assert found["shift-rms"] == (1.23457, "mm")
    assert found["shift-max"] == (4.5, "mm")
    assert found["jacobian-min"] == (0.8, "1")
    assert found["agreement-after"] == (0.8, "1")
    assert "structure-after" not in found  # it could not be measured


@pytest.mark.parametrize("level", ["pass", "review", "reject"])
def test_the_verdict_is_coded_and_its_reasons_told(done: Finished, level: str) -> None:
    reasons = [{"code": "a", "text": "the head is cut off"}, {"code": "b", "text": "seven of nine"}]
    report = REPORT | {"verdict": {"level": level, "reasons": reasons}}
    (record,) = companions(replace(done, report=report), quality_record=True)

    codes = [i.ConceptCodeSequence[0].CodeValue for i in items(record) if i.ValueType == "CODE"]
    assert f"verdict-{level}" in codes
    comments = [i.TextValue for i in items(record) if i.ConceptNameCodeSequence[0].CodeValue == "121106"]
    assert comments == ["the head is cut off", "seven of nine"]


def test_the_record_names_every_derived_image(done: Finished) -> None:
    (record,) = companions(done, quality_record=True)

    (study,) = record.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == done.source.facts.study_uid
    named = {
        one.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert named == {one.sop_uid for one in done.written}
    assert (record.CompletionFlag, record.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
