"""The facts of real series: what the rules decide on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from made_headers import dataset_of, mr_image, write
from pydicom.sequence import Sequence
from pydicom.uid import RawDataStorage

from dicom_node.headers import InstanceFacts, Unreadable, read_instance, summarise
from dicom_node.load import load
from rules.facts import Directionality, PhaseAxis, SeriesFacts


def _facts(folder: Path) -> SeriesFacts:
    return summarise(_instances(folder))


def _loaded(folder: Path) -> npt.NDArray[np.float32]:
    """(V, Z, Y, X)."""
    return load(_instances(folder)).voxels


def _instances(folder: Path) -> list[InstanceFacts]:
    instances: list[InstanceFacts] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            instances.append(read_instance(path))
        except Unreadable:
            continue
    assert len({instance.series_uid for instance in instances}) == 1
    return instances


def test_siemens_xa_enhanced_diffusion(data_set: Callable[[str], Path]) -> None:
    facts = _facts(data_set("siemens-xa30-enhanced") / "17_DWI_dir80_AP")
    assert facts.b_values == (0, *[2500] * 20)
    assert facts.directionalities == (Directionality.NONE, *[Directionality.BMATRIX] * 20)
    assert (facts.columns, facts.rows, facts.slices, facts.orientations) == (72, 72, 39, 1)
    assert facts.echo_planar is True
    assert facts.gradient_nonlinearity == "ND"
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "MB", "ND")
    assert facts.phase_encoding is not None
    assert (facts.phase_encoding.axis, facts.phase_encoding.increasing) == (PhaseAxis.COLUMN, True)
    assert facts.total_readout_s == pytest.approx(0.0475693, rel=1e-5)
    assert facts.box is not None
    assert facts.box.extent_mm == pytest.approx((216, 216, 117))
    assert not facts.geometry_problem


def test_normalised_and_plain_twins_differ_in_one_fact(data_set: Callable[[str], Path]) -> None:
    study = data_set("siemens-xa30-enhanced")
    plain, normalised = _facts(study / "5_anat-T1w_acq-tfl"), _facts(study / "6_anat-T1w_acq-tfl")
    assert (plain.prescan_normalised, normalised.prescan_normalised) == (False, True)
    assert (plain.gradient_nonlinearity, normalised.gradient_nonlinearity) == ("DIS2D", "DIS2D")
    assert normalised.box == plain.box
    assert normalised.inversion_time_ms == 900


def test_a_colour_map_and_a_tensor_object_have_facts(data_set: Callable[[str], Path]) -> None:
    enhanced = _facts(data_set("siemens-xa30-enhanced") / "22_DWI_dir80_AP")
    capture = _facts(data_set("siemens-xa30-classic") / "15001_DWI_dir80_AP")
    tensor = _facts(data_set("siemens-xa30-classic") / "16_DWI_dir80_AP")
    assert (enhanced.colour, capture.colour, tensor.colour) == (True, True, False)
    assert "no position" in capture.geometry_problem
    assert "no image" in tensor.geometry_problem
    assert "TENSOR" in tensor.image_type


def test_a_localizer_of_three_orientations_has_facts_and_a_problem(data_set: Callable[[str], Path]) -> None:
    facts = _facts(data_set("prostatex-0218") / "3.000000-t2localizer-14071")
    assert (facts.instances, facts.orientations, facts.slices) == (13, 3, 5)
    assert facts.geometry_problem == "The series mixes 3 slice orientations."
    assert facts.voxel_mm is not None


def test_a_mosaic_is_described_by_its_slices(data_set: Callable[[str], Path]) -> None:
    facts = _facts(data_set("siemens-e11-mosaic") / "4_DWI_SagAPmosaic")
    assert (facts.columns, facts.rows, facts.slices, facts.mosaic_tiles) == (82, 82, 48, 48)
    assert facts.b_values == (0, *[2000] * 8)
    assert facts.total_readout_s == pytest.approx(0.0502189, rel=1e-4)


def test_a_mosaic_without_its_csa_header_lies_where_the_maps_made_from_it_lie(
    data_set: Callable[[str], Path],
) -> None:
    facts = _facts(data_set("prostatex-0218") / "11.000000-ep2dadvdiffMDDW12dirspair511b-62762")
    assert facts.b_values == (0, *[800] * 12)
    adc = _facts(data_set("prostatex-0218") / "12.000000-ep2dadvdiffMDDW12dirspair511bADC-75591")
    assert (facts.columns, facts.rows, facts.slices) == (adc.columns, adc.rows, adc.slices)
    assert facts.box is not None
    assert adc.box is not None
    np.testing.assert_allclose(facts.box.centre, adc.box.centre, atol=1e-3)
    np.testing.assert_allclose(facts.box.extent_mm, adc.box.extent_mm, atol=1e-3)


def test_a_mosaic_without_its_csa_header_is_stacked_as_its_trace_images_are(
    data_set: Callable[[str], Path],
) -> None:
    study = data_set("prostatex-0218")
    mosaic = _loaded(study / "11.000000-ep2dadvdiffMDDW12dirspair511b-62762")
    (trace,) = _loaded(study / "13.000000-ep2dadvdiffMDDW12dirspair511bTRACEW-39788")
    mean = np.exp(np.log(mosaic[1:] + 1).mean(axis=0))  # the scanner's trace is the geometric mean
    alike = [[np.corrcoef(a.ravel(), b.ravel())[0, 1] for b in trace] for a in mean]
    assert np.argmax(alike, axis=1).tolist() == list(range(20))


def test_magnitude_and_phase_of_two_echoes_in_one_series(data_set: Callable[[str], Path]) -> None:
    facts = _facts(data_set("philips-classic") / "2001")
    assert facts.echo_times_ms == (2.3, 4.6)
    assert facts.complex_components == ("MAGNITUDE", "PHASE")
    assert (facts.slices, facts.geometry_problem) == (53, "")


def test_scattered_b_0_volumes_of_philips_keep_their_place(data_set: Callable[[str], Path]) -> None:
    instances = []
    for path in sorted((data_set("philips-dwi-noref") / "DICOM").iterdir()):
        instance = read_instance(path)
        if instance.series.series_number == 701:
            instances.append(instance)
    facts = summarise(instances)
    assert facts.instances == 205  # one of them is no image
    assert [round(b_value or 0, 3) for b_value in facts.b_values] == [
        *(0, 1000, 1000, 1000, 0.001, 1000, 1000, 1000, 0.002),
        *(1000, 1000, 1000, 0.003, 1000, 1000, 1000, 0.004),
    ]
    assert facts.readout_estimated is True


def test_a_uih_study_without_dates_still_has_times(data_set: Callable[[str], Path]) -> None:
    folder = "DTI_134434/dti_tra_dir16_PA_SaveBySlc__135612"
    facts = _facts(data_set("uih") / folder)
    assert facts.acquired is not None
    assert (facts.acquired.hour, facts.mosaic_tiles) == (13, 20)
    assert facts.b_values[0] == pytest.approx(1.2513, abs=1e-4)


def test_a_missing_slice_is_the_geometry_problem_of_the_series(data_set: Callable[[str], Path]) -> None:
    facts = _facts(data_set("prostatex-0000") / "variant-missing-slice")
    assert (facts.instances, facts.slices) == (18, 18)
    assert facts.geometry_problem.startswith("The slices are not evenly spaced: 6.0 mm between")


def test_a_series_was_acquired_when_its_first_image_was(tmp_path: Path) -> None:
    images = [mr_image(n, AcquisitionDate="20240101", AcquisitionTime=f"12{60 - n}00") for n in (1, 2, 3)]
    facts = summarise([read_instance(path) for path in write(tmp_path, *images)])
    assert facts.acquired == datetime(2024, 1, 1, 12, 57)


def test_objects_without_pixels_beside_the_images_only_count(tmp_path: Path) -> None:
    raw = mr_image(9, SOPClassUID=RawDataStorage, InstanceNumber=0, SeriesDescription="raw")
    del raw.Rows, raw.Columns, raw.PixelData
    images = [mr_image(number, SeriesDescription="T2") for number in (1, 2, 3)]
    facts = summarise([read_instance(path) for path in write(tmp_path, raw, *images)])
    assert (facts.instances, facts.slices, facts.description) == (4, 3, "T2")
    assert not facts.geometry_problem


def test_one_instance_of_ours_makes_the_series_ours(tmp_path: Path) -> None:
    equipment = dataset_of({"Manufacturer": "dicom-node"})
    ours = mr_image(1, ContributingEquipmentSequence=Sequence([equipment]))
    facts = summarise([read_instance(path) for path in write(tmp_path, mr_image(2), ours)])
    assert facts.own_output


def test_the_kind_of_most_images_is_the_kind_of_the_series(tmp_path: Path) -> None:
    odd = mr_image(1, ImageType=["DERIVED", "SECONDARY", "MPR"])
    rest = [mr_image(number) for number in (2, 3)]
    facts = summarise([read_instance(path) for path in write(tmp_path, odd, *rest)])
    assert facts.image_type == ("ORIGINAL", "PRIMARY", "M")


def test_no_instance_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarise([])
