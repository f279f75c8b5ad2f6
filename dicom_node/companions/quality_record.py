"""The figures of a correction as a Comprehensive SR: TID 1500, one group of measurements.

Standard codes where there are some; for the figures of this program a private coding scheme. Its codes are
the names that report.json uses, shortened to the sixteen characters of a code value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage

from dicom_node.companions.document import evidence
from dicom_node.companions.finished import Finished
from dicom_node.derive.instance_file import put
from dicom_node.derive.provenance import uid_of
from dicom_node.headers.scan import PRODUCT

SCHEME = "99DICOMNODE"
MM = CodedConcept("mm", "UCUM", "millimeter")
RATIO = CodedConcept("1", "UCUM", "no units")
PROCEDURE = CodedConcept("110002", "DCM", "Quality Control")
DEVICE = CodedConcept("121007", "DCM", "Device")
QUALITY = CodedConcept("111050", "DCM", "Quality Assessment")
COMMENT = CodedConcept("121106", "DCM", "Comment")
VERDICTS = {
    level: CodedConcept(f"verdict-{level}", SCHEME, text)
    for level, text in (
        ("pass", "Correction accepted"),
        ("review", "Correction to be reviewed"),
        ("reject", "Correction rejected"),
    )
}
# (part of report.json, key): code value, meaning, unit
FIGURES: Mapping[tuple[str, str], tuple[str, str, CodedConcept]] = {
    ("displacement_mm", "rms"): ("shift-rms", "Displacement, root mean square", MM),
    ("displacement_mm", "p95"): ("shift-p95", "Displacement, 95th percentile", MM),
    ("displacement_mm", "max"): ("shift-max", "Displacement, largest", MM),
    ("jacobian", "min"): ("jacobian-min", "Jacobian determinant, smallest", RATIO),
    ("jacobian", "max"): ("jacobian-max", "Jacobian determinant, largest", RATIO),
    ("jacobian", "folded_fraction"): ("folded", "Folded share of the volume", RATIO),
    ("quality", "agreement_before"): ("agreement-before", "Agreement with reference before", RATIO),
    ("quality", "agreement_after"): ("agreement-after", "Agreement with reference after", RATIO),
    ("quality", "structure_before"): ("structure-before", "Structural difference before", RATIO),
    ("quality", "structure_after"): ("structure-after", "Structural difference after", RATIO),
    ("quality", "remaining_along_before_mm"): ("left-before", "Left to move along phase encode before", MM),
    ("quality", "remaining_along_after_mm"): ("left-after", "Left to move along phase encode after", MM),
    ("quality", "remaining_across_mm"): ("left-across", "Left to move across phase encode", MM),
    ("quality", "covered_fraction"): ("covered", "Share of the anatomy that the reference shows", RATIO),
    ("quality", "strained_fraction"): ("strained", "Share deformed more than twofold", RATIO),
}


def quality_record(finished: Finished) -> Dataset:
    """The record, naming the derived images that it is about."""
    made = finished.new_object(ComprehensiveSRStorage, "SR", "RECORD", "quality-record")
    content = MeasurementReport(
        ObservationContext(observer_device_context=_observer(finished.made_by.version)),
        procedure_reported=PROCEDURE,
        imaging_measurements=[_measurements(finished, str(made.SOPInstanceUID))],
    )
    for element in content[0]:
        made[element.tag] = element
    put(made, "CompletionFlag", "COMPLETE")
    put(made, "VerificationFlag", "UNVERIFIED")
    put(made, "PreliminaryFlag", "FINAL")
    put(made, "ReferencedPerformedProcedureStepSequence", [])
    put(made, "PerformedProcedureCodeSequence", [])
    named = evidence(finished.source.facts.study_uid, finished.written)
    put(made, "CurrentRequestedProcedureEvidenceSequence", named)
    scheme = Dataset()
    put(scheme, "CodingSchemeDesignator", SCHEME)
    put(scheme, "CodingSchemeName", f"Figures of {PRODUCT}")
    put(made, "CodingSchemeIdentificationSequence", [scheme])
    return made


def _observer(version: str) -> ObserverContext:
    return ObserverContext(
        DEVICE,
        DeviceObserverIdentifyingAttributes(
            uid_of(f"device|{PRODUCT}|{version}"), name=PRODUCT, manufacturer_name=PRODUCT, model_name=PRODUCT
        ),
    )


def _measurements(finished: Finished, record_uid: str) -> MeasurementsAndQualitativeEvaluations:
    document = finished.report
    first_volume = [
        SourceImageForMeasurementGroup(one.sop_class_uid, one.sop_uid)
        for one in finished.written[: finished.corrected.shape[1]]
    ]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid_of(f"tracking|{record_uid}"), "Distortion correction"),
        algorithm_id=AlgorithmIdentification(
            f"{PRODUCT} EPI distortion correction", finished.made_by.version, [f"method={document['method']}"]
        ),
        measurements=[
            Measurement(CodedConcept(code, SCHEME, meaning), value, unit)
            for (part, key), (code, meaning, unit) in FIGURES.items()
            if (value := _number(document, part, key)) is not None
        ],
        qualitative_evaluations=[QualitativeEvaluation(QUALITY, VERDICTS[document["verdict"]["level"]])],
        source_images=first_volume,
    )
    for reason in document["verdict"]["reasons"]:
        text = reason["text"].encode("ascii", "replace").decode()
        group[0].ContentSequence.append(TextContentItem(COMMENT, text, RelationshipTypeValues.CONTAINS))
    return group


def _number(document: Mapping[str, Any], part: str, key: str) -> float | None:
    """A figure of report.json, to the digits that a DS holds; None where it could not be measured."""
    value = document.get(part, {}).get(key)
    return None if value is None else float(f"{value:.6g}")
