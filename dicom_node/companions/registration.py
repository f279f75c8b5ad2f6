"""The displacement field as a Deformable Spatial Registration (PS3.3 C.20.3).

The object says where each point of the corrected image comes from in the distorted one: the field of the
correction as it is, which pulls as well. No matrix goes with it: both images have the same coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.uid import DeformableSpatialRegistrationStorage
from pydicom.valuerep import format_number_as_ds

from dicom_node.companions.document import put_body_part
from dicom_node.companions.finished import Finished
from dicom_node.derive import provenance
from dicom_node.derive.instance_file import put, put_given

IMAGE_CONTENT = CodedConcept("125024", "DCM", "Image Content-based Alignment")


def registration(finished: Finished) -> Dataset:
    """Distorted diffusion series → corrected coordinates, for the images of this source series only.

    Its own ReferencedImageSequence is needed: other series in the same frame of reference are not distorted,
    or not alike.
    """
    facts, made_by, grid = finished.source.facts, finished.made_by, finished.policy.grid
    made = finished.new_object(DeformableSpatialRegistrationStorage, "REG", "FIELD", "registration")
    put_given(made, "FrameOfReferenceUID", provenance.frame_of_reference(facts, made_by, grid))
    put(made, "PositionReferenceIndicator", "")
    put_body_part(made, finished.headers.first)
    put(made, "ContentLabel", "EPI_DISTORTION")
    put(made, "ContentDescription", f"Displacement field, EPI distortion of series {facts.series_number}")
    put(made, "ContentCreatorName", "")  # no person
    sources = [
        provenance.image_reference(class_uid, sop_uid, None, None)
        for class_uid, sop_uid in sorted(_source_images(finished))
    ]
    field = Dataset()
    put_given(field, "SourceFrameOfReferenceUID", provenance.source_frame_of_reference(facts))
    put(field, "ReferencedImageSequence", sources)
    put(field, "RegistrationTypeCodeSequence", [IMAGE_CONTENT])
    put(field, "DeformableRegistrationGridSequence", [_grid(finished)])
    put(made, "DeformableRegistrationSequence", [field])
    series = Dataset()
    put_given(series, "SeriesInstanceUID", facts.series_uid)
    put(series, "ReferencedInstanceSequence", sources)
    put(made, "ReferencedSeriesSequence", [series])
    return made


def _source_images(finished: Finished) -> Iterable[tuple[str, str]]:
    """(class, instance) UIDs of the distorted images, each once."""
    return {
        (finished.headers.sop_class_of(frame.path), frame.sop_instance_uid)
        for volume in finished.source.arrangement.volumes
        for frame in volume.frames
    }


def _grid(finished: Finished) -> Dataset:
    """The field on the voxels of the source, X fastest, three float32 of LPS millimetres each."""
    affine = finished.source.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    _, z, y, x = finished.displacement_mm.shape
    grid = Dataset()
    put(
        grid,
        "ImageOrientationPatient",
        [format_number_as_ds(float(value)) for value in (*axes[:, 0], *axes[:, 1])],
    )
    put(grid, "ImagePositionPatient", [format_number_as_ds(float(value)) for value in affine[:3, 3]])
    put(grid, "GridDimensions", [x, y, z])
    put(grid, "GridResolution", [float(step) for step in spacing])
    vectors = np.moveaxis(finished.displacement_mm, 0, -1).astype("<f4")
    grid.add_new("VectorGridData", "OF", np.ascontiguousarray(vectors).tobytes())
    return grid
