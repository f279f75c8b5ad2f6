from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from derived_series import OBLIQUE, ball, instances_of, load_files, orthogonal, write_study

from correction.volume import Volume
from dicom_node.headers import summarise
from dicom_node.load import load_reference
from dicom_node.phantom_study import PhantomStudy, weighted, write_phantom_study
from rules.classify import SeriesClass, classify
from rules.contrast import Contrast
from rules.facts import PhaseAxis
from rules.pair import Pairing, pair


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_study(tmp_path_factory.mktemp("phantom"))


def test_the_node_takes_it_for_a_dwi_and_a_t2_reference(study: PhantomStudy) -> None:
    dwi = summarise(instances_of(study.dwi_files))
    anatomical = summarise(instances_of(study.reference_files))

    assert classify(dwi).series_class is SeriesClass.DWI
    kind = classify(anatomical)
    assert (kind.series_class, kind.contrast) == (SeriesClass.ANATOMICAL, Contrast.T2)
    assert dwi.b_values == (0.0, 1000.0, 1000.0, 1000.0)
    assert dwi.phase_encoding is not None
    assert dwi.phase_encoding.axis is PhaseAxis.COLUMN
    assert (dwi.study_uid, dwi.frame_of_reference_uid) == (
        anatomical.study_uid,
        anatomical.frame_of_reference_uid,
    )


def test_it_lies_where_its_affine_says_and_keeps_its_intensities(tmp_path: Path) -> None:
    affine = orthogonal(OBLIQUE)
    reference = ball((12, 20, 24), affine)
    b0 = ball((4, 12, 14), affine)

    study = write_phantom_study(tmp_path, reference, weighted(b0))
    dwi = load_files(study.dwi_files)
    t2 = load_reference(instances_of(study.reference_files))

    for loaded, original in ((dwi.affine, affine), (t2.affine, affine)):
        assert np.abs(loaded - original).max() < 1e-6
    factor = 4000.0 / float(b0.data.max())
    assert np.abs(dwi.voxels[0] - b0.data.numpy() * factor).max() <= 0.501
    assert torch.abs(t2.data - reference.data * 4000.0 / reference.data.max()).max() <= 0.501


def test_weighting_takes_more_signal_the_higher_b_and_most_from_fluid(tmp_path: Path) -> None:
    b0 = Volume.from_numpy(np.array([[[100.0, 30.0, 0.0]] * 4] * 4), np.diag([2.0, 2.0, 2.0, 1.0]))

    volumes = weighted(b0, (500.0, 1000.0))

    assert [w.b_value for w in volumes] == [0.0, 500.0, 500.0, 500.0, 1000.0, 1000.0, 1000.0]
    kept = [w.volume.data[0, 0] / b0.data[0, 0] for w in (volumes[1], volumes[4])]
    assert (kept[0][:2] > kept[1][:2]).all()
    assert (kept[0][0], kept[1][0]) == (pytest.approx(np.exp(-1.5)), pytest.approx(np.exp(-3.0)))
    assert kept[1][1] == pytest.approx(np.exp(-0.75 * 0.875))


def test_the_same_seed_gives_the_same_files_and_another_seed_another_study(tmp_path: Path) -> None:
    b0 = ball((2, 6, 6), np.diag([3.0, 3.0, 3.0, 1.0]))
    first, again, other = (
        write_phantom_study(tmp_path / name, b0, weighted(b0), seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert [p.read_bytes() for p in first.dwi_files] == [p.read_bytes() for p in again.dwi_files]
    assert first.study_uid == again.study_uid != other.study_uid
    assert first.dwi_series_uid != first.reference_series_uid


def test_it_carries_no_private_element_and_no_real_name(study: PhantomStudy) -> None:
    for path in (*study.reference_files, *study.dwi_files):
        dataset = pydicom.dcmread(path)
        assert not [element for element in dataset if element.tag.is_private]
        assert (str(dataset.PatientName), dataset.PatientID) == ("PHANTOM^DEMO", "DEMO-0001")


def test_a_sheared_volume_is_refused(tmp_path: Path) -> None:
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 0.5

    with pytest.raises(ValueError, match="orthogonal"):
        write_phantom_study(tmp_path, ball((2, 4, 4), sheared), [])


def test_a_head_sized_study_is_paired_with_its_t2(tmp_path: Path) -> None:
    dwi_affine = np.diag([4.0, 4.0, 4.0, 1.0])
    t2_affine = np.diag([1.6, 1.6, 4.0, 1.0])
    reference, b0 = ball((10, 30, 30), t2_affine), ball((10, 12, 12), dwi_affine)
    study = write_phantom_study(tmp_path, reference, weighted(b0, (1000.0,)))
    dwi = summarise(instances_of(study.dwi_files))
    anatomical = summarise(instances_of(study.reference_files))

    chosen = pair(dwi, [(anatomical, classify(anatomical))])

    assert isinstance(chosen, Pairing), chosen
    assert chosen.reference.series_uid == study.reference_series_uid
