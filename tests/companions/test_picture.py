from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from finished_correction import ALL, companions

from dicom_node.companions import Finished, write_companions


def test_the_capture_shows_the_picture_of_the_review_page(done: Finished) -> None:
    (capture,) = companions(done, qc=True)

    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(done.picture)))[:, :, :3]
    assert np.array_equal(capture.pixel_array, picture)


def test_the_capture_says_what_it_is_and_that_no_name_is_in_its_pixels(done: Finished) -> None:
    (capture,) = companions(done, qc=True)

    assert (capture.ConversionType, capture.BurnedInAnnotation, capture.Modality) == ("WSD", "NO", "OT")
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "QC", "DISTCORR"]
    assert "QC=PASS" in capture.ImageComments
    assert capture.SeriesDescription == "DWI EPI QC DISTCORR"


def test_another_notice_is_another_picture(done: Finished) -> None:
    changed = replace(done, policy=replace(done.policy, companions=replace(ALL, notice="RESEARCH ONLY")))
    uids = set()
    for one in (done, changed):
        objects = write_companions(one, one.written[0].path.parent)
        uids.add(next(o.sop_uid for o in objects if o.sop_class_uid.endswith("1.1.7")))
    assert len(uids) == 2
