"""QC secondary capture: the picture of before and after, where a radiologist sees it."""

from __future__ import annotations

import numpy as np
from matplotlib.image import imread
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.companions.document import put_body_part
from dicom_node.companions.finished import Finished
from dicom_node.derive import provenance
from dicom_node.derive.instance_file import put
from dicom_node.headers.scan import OWN_IMAGE_TYPE, PRODUCT


def qc_capture(finished: Finished) -> Dataset:
    """The QC picture as an RGB secondary capture. No patient data are in its pixels."""
    pixels = np.rint(imread(finished.picture)[:, :, :3] * 255).astype(np.uint8)
    notice = finished.policy.companions.notice
    capture = finished.new_object(SecondaryCaptureImageStorage, "OT", "QC", f"qc|{notice}")
    put_body_part(capture, finished.headers.first)
    facts, made_by = finished.source.facts, finished.made_by
    for keyword, value in (
        ("ImageType", ["DERIVED", "SECONDARY", "OTHER", "QC", OWN_IMAGE_TYPE]),
        ("ConversionType", "WSD"),
        ("SecondaryCaptureDeviceManufacturer", PRODUCT),
        ("SecondaryCaptureDeviceManufacturerModelName", PRODUCT),
        ("SecondaryCaptureDeviceSoftwareVersions", made_by.version),
        ("BurnedInAnnotation", "NO"),
        ("PatientOrientation", ""),
        ("ImageComments", provenance.image_comments(facts, made_by)),
        ("DerivationDescription", provenance.derivation_description(facts, made_by, finished.policy.grid, 0)),
        ("RelatedSeriesSequence", provenance.related_series(facts, made_by)),
        ("SamplesPerPixel", 3),
        ("PhotometricInterpretation", "RGB"),
        ("PlanarConfiguration", 0),
        ("Rows", pixels.shape[0]),
        ("Columns", pixels.shape[1]),
        ("BitsAllocated", 8),
        ("BitsStored", 8),
        ("HighBit", 7),
        ("PixelRepresentation", 0),
    ):
        put(capture, keyword, value)
    content = pixels.tobytes()
    capture.add_new("PixelData", "OB", content + b"\0" * (len(content) % 2))
    return capture
