from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from quick_correction import RECIPE, coarse_head, write_head_study
from received_study import variant

from dicom_node.nifti import NiftiProblem, write_volumes
from dicom_node.offline import InputProblem, Report, Request, WrongOption, correct_input
from dicom_node.phantom_study import PhantomStudy
from dicom_node.recipe import Recipe

REPORT_FIELDS = {
    "schema",
    "version",
    "method",
    "settings",
    "seed",
    "device",
    "inputs",
    "phase_encoding",
    "landmarks",
    "displacement_mm",
    "jacobian",
    "quality",
    "verdict",
    "seconds",
    "peak_memory_bytes",
}
NIFTI_FILES = {"corrected.nii.gz", "displacement.nii.gz", "jacobian.nii.gz", "report.json", "qc.png"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def correct(request: Request) -> Report:
    return correct_input(request, lambda series, stage, fraction: None)


def report_of(out: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((out / "report.json").read_text())
    return document


def array(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


# ------------------------------------------------------------------------------------------------- DICOM


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_head_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def folder(study: PhantomStudy) -> Path:
    return study.dwi_files[0].parent.parent


@pytest.fixture(scope="module")
def corrected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the study, its phase-encode direction given as j."""
    out = tmp_path_factory.mktemp("corrected")
    report = correct(Request((folder,), out, recipe=RECIPE, phase_encoding="j", total_readout_s=0.05))
    assert [result.out for result in report.results] == [out]
    assert report.results[0].reference == "series 2 'T2w TSE 3D'"
    return out


def test_a_study_gives_every_contracted_file(corrected: Path, study: PhantomStudy) -> None:
    assert {path.name for path in corrected.iterdir()} == NIFTI_FILES | {"derived"}
    assert len(list((corrected / "derived").glob("*.dcm"))) == len(study.dwi_files)
    assert array(corrected / "corrected.nii.gz").shape[3] == 2


def test_the_report_has_every_contracted_field(corrected: Path, study: PhantomStudy) -> None:
    report = report_of(corrected)
    assert set(report) >= REPORT_FIELDS
    assert report["inputs"] == {
        "dwi_series_uid": study.dwi_series_uid,
        "reference_series_uid": study.reference_series_uid,
    }
    assert report["phase_encoding"] == {"axis": "j", "polarity": "+", "source": "--phase-encoding"}
    assert set(report["landmarks"]) >= {"matcher", "found", "kept", "dropped"}  # type: ignore[call-overload]
    assert set(report["displacement_mm"]) == {"rms", "p95", "max"}  # type: ignore[call-overload]
    assert set(report["jacobian"]) == {"min", "max", "folded_fraction"}  # type: ignore[call-overload]
    assert "total" in report["seconds"]  # type: ignore[operator]
    assert report["verdict"]["level"] in ("pass", "review", "reject")  # type: ignore[index]


def test_no_patient_is_named_in_the_report(corrected: Path) -> None:
    told = (corrected / "report.json").read_text()
    assert "PHANTOM" not in told
    assert "DEMO-0001" not in told


def assert_same_but_for_what_is_held(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Ours never goes beyond the voxels around, a plain spline does at edges and in noise."""
    assert np.percentile(np.abs(ours - theirs), 80) < 0.001 * ours.max()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_itk_with_the_displacement_makes_the_corrected_image_of_the_distorted_one(
    corrected: Path, study: PhantomStudy, tmp_path: Path
) -> None:
    """corrected(x) = distorted(x + u(x)): applied by another program."""
    corrected_image = sitk.ReadImage(str(corrected / "corrected.nii.gz"))
    b0 = corrected_image[:, :, :, 0]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in study.dwi_files[: b0.GetSize()[2]]])
    distorted = sitk.Cast(reader.Execute(), sitk.sitkFloat32)
    field = sitk.ReadImage(str(corrected / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    by_itk = sitk.Resample(distorted, b0, sitk.DisplacementFieldTransform(field), sitk.sitkBSpline, 0.0)
    inside = np.s_[2:-2, 4:-4, 4:-4]
    ours, theirs = sitk.GetArrayFromImage(b0)[inside], sitk.GetArrayFromImage(by_itk)[inside]
    assert_same_but_for_what_is_held(ours, theirs)
    still = sitk.GetArrayFromImage(sitk.Resample(distorted, b0))[inside]
    assert np.abs(still - ours).max() > 0.05 * ours.max()  # the field does move something


def test_the_opposite_direction_on_the_same_axis_gives_the_same_field(
    corrected: Path, folder: Path, tmp_path: Path
) -> None:
    correct(Request((folder,), tmp_path, recipe=RECIPE, phase_encoding="j-", total_readout_s=0.05))
    assert report_of(tmp_path)["phase_encoding"]["polarity"] == "-"  # type: ignore[index]
    np.testing.assert_allclose(
        array(tmp_path / "displacement.nii.gz"), array(corrected / "displacement.nii.gz"), atol=1e-4
    )


def test_the_field_lies_along_the_named_axis(corrected: Path) -> None:
    along = np.abs(array(corrected / "displacement.nii.gz")).max(axis=(0, 1, 2, 3))
    assert along[1] > 1  # the phantom's j is patient y
    assert max(along[0], along[2]) < 1e-4


def test_several_dwi_give_sub_folders_by_number_and_a_broken_one_stops_no_other(
    study: PhantomStudy, folder: Path, tmp_path: Path
) -> None:
    variant(study.dwi_files, tmp_path / "in" / "second", 7, SeriesDescription="DWI again")
    broken = variant(study.dwi_files, tmp_path / "in" / "third", 8)[0]
    broken.write_bytes(broken.read_bytes()[:-500])
    out = tmp_path / "out"
    report = correct(Request((folder, tmp_path / "in"), out, recipe=RECIPE))
    assert [result.out for result in report.results] == [out / "3", out / "7"]
    for name in ("3", "7"):
        assert {path.name for path in (out / name).iterdir()} == NIFTI_FILES | {"derived"}
    assert [(item.name, item.code) for item in report.skipped] == [("series 8 'DWI EPI'", "unreadable")]


def test_two_dwi_of_the_same_number_do_not_overwrite_each_other(
    study: PhantomStudy, folder: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    for path in variant(study.dwi_files, inputs, 8):
        dataset = pydicom.dcmread(path)
        dataset.SeriesNumber = 3
        dataset.save_as(path)
    report = correct(Request((folder, inputs), tmp_path / "out", recipe=RECIPE))
    outs = {result.out for result in report.results}
    assert len(outs) == 2
    assert all(out.name.startswith("3-") for out in outs)


def test_a_second_run_replaces_the_derived_series_of_the_first(
    corrected: Path, folder: Path, study: PhantomStudy, tmp_path: Path
) -> None:
    derived = tmp_path / "derived"
    derived.mkdir()
    for path in (corrected / "derived").iterdir():
        (derived / f"earlier-{path.name}").write_bytes(path.read_bytes())
    correct(Request((folder,), tmp_path, recipe=RECIPE))
    assert len(list(derived.iterdir())) == len(study.dwi_files)


def test_files_of_others_in_the_output_folder_are_never_deleted(
    folder: Path, study: PhantomStudy, tmp_path: Path
) -> None:
    kept = tmp_path / "derived" / "mine.dcm"
    kept.parent.mkdir()
    kept.write_bytes(study.dwi_files[0].read_bytes())
    with pytest.raises(WrongOption, match=r"mine\.dcm"):
        correct(Request((folder,), tmp_path, recipe=RECIPE))
    assert kept.exists()


def test_a_named_reference_is_used(folder: Path, study: PhantomStudy, tmp_path: Path) -> None:
    other = variant(study.reference_files, tmp_path / "t2", 9, SeriesDescription="T2 again")
    report = correct(Request((folder,), tmp_path / "out", reference=other[0].parent, recipe=RECIPE))
    assert [result.reference for result in report.results] == ["series 9 'T2 again'"]
    derived = pydicom.dcmread(next((tmp_path / "out" / "derived").iterdir()))
    assert "to T2 reference, series no. 9" in derived.DerivationDescription


def test_a_folder_without_dwi_says_what_there_is(study: PhantomStudy, tmp_path: Path) -> None:
    with pytest.raises(InputProblem, match=r"series 2 'T2w TSE 3D' \(anatomical\)"):
        correct(Request((study.reference_files[0].parent,), tmp_path, recipe=RECIPE))


def test_a_dwi_without_reference_says_so(study: PhantomStudy, tmp_path: Path) -> None:
    with pytest.raises(InputProblem, match="no suitable anatomical series"):
        correct(Request((study.dwi_files[0].parent,), tmp_path, recipe=RECIPE))


def test_a_reference_of_several_series_is_refused(folder: Path, study: PhantomStudy, tmp_path: Path) -> None:
    with pytest.raises(InputProblem, match="2 DICOM series"):
        correct(Request((study.dwi_files[0].parent,), tmp_path, reference=folder, recipe=RECIPE))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(InputProblem, match="no readable DICOM image"):
        correct(Request((tmp_path,), tmp_path / "out", recipe=RECIPE))


def test_a_folder_of_nifti_images_is_told_to_name_them(study: PhantomStudy, tmp_path: Path) -> None:
    for name in ("b_dwi.nii.gz", "a_t1.nii"):
        (tmp_path / name).write_bytes(b"an image")
    with pytest.raises(InputProblem, match=r"but a_t1\.nii, b_dwi\.nii\.gz; name .*--reference .*--bval"):
        correct(Request((tmp_path,), tmp_path / "out", recipe=RECIPE))
    with pytest.raises(InputProblem, match="no readable DICOM image"):
        correct(Request((study.dwi_files[0].parent,), tmp_path / "out", reference=tmp_path, recipe=RECIPE))


# ------------------------------------------------------------------------------------------------- NIfTI


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """`images(2)` writes reference.nii.gz and a dwi.nii.gz of two volumes; the folder."""

    def written(volumes: int = 1) -> Path:
        case = coarse_head()
        b0, reference = case.b0, case.reference
        voxels = np.stack([b0.data.numpy() * factor for factor in (1.0, 0.4, 0.2)[:volumes]])
        write_volumes(tmp_path / "dwi.nii.gz", voxels, b0.affine, flip_rows=False)
        write_volumes(
            tmp_path / "reference.nii.gz",
            reference.data.numpy()[np.newaxis],
            reference.affine,
            flip_rows=False,
        )
        return tmp_path

    return written


def request(folder: Path, **changes: object) -> Request:
    made = Request(
        (folder / "dwi.nii.gz",), folder / "out", reference=folder / "reference.nii.gz", recipe=RECIPE
    )
    return replace(made, **{"phase_encoding": "j", **changes})  # type: ignore[arg-type]


def test_a_3d_image_is_taken_as_b0(images: Callable[..., Path]) -> None:
    folder = images()
    (result,) = correct(request(folder)).results
    assert {path.name for path in result.out.iterdir()} == NIFTI_FILES
    report = report_of(result.out)
    assert set(report) >= REPORT_FIELDS
    assert report["inputs"] == {"dwi": "dwi.nii.gz", "reference": "reference.nii.gz"}
    source, corrected = (
        nibabel.load(path) for path in (folder / "dwi.nii.gz", result.out / "corrected.nii.gz")
    )
    assert corrected.shape == source.shape
    np.testing.assert_allclose(corrected.affine, source.affine, atol=1e-4)


def test_itk_reproduces_the_corrected_image_from_the_files(images: Callable[..., Path]) -> None:
    folder = images()
    correct(request(folder))
    distorted, corrected = (
        sitk.ReadImage(str(path)) for path in (folder / "dwi.nii.gz", folder / "out" / "corrected.nii.gz")
    )
    field = sitk.ReadImage(str(folder / "out" / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    by_itk = sitk.Resample(
        distorted, distorted, sitk.DisplacementFieldTransform(field), sitk.sitkBSpline, 0.0
    )
    inside = np.s_[2:-2, 4:-4, 4:-4]
    ours, theirs = (sitk.GetArrayFromImage(image)[inside] for image in (corrected, by_itk))
    assert_same_but_for_what_is_held(ours, theirs)


def test_a_4d_image_has_its_b_values_beside_it(images: Callable[..., Path]) -> None:
    folder = images(3)
    (folder / "dwi.bval").write_text("0 500 1000\n")
    (folder / "dwi.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    correct(request(folder))
    assert array(folder / "out" / "corrected.nii.gz").shape[3] == 3
    assert (folder / "out" / "corrected.bval").read_text() == "0 500 1000\n"
    assert (folder / "out" / "corrected.bvec").read_text() == (folder / "dwi.bvec").read_text()


def test_every_volume_is_moved_by_the_field_of_the_lowest(images: Callable[..., Path]) -> None:
    folder = images(2)
    (folder / "b").write_text("1000 0")  # the weighted volume first
    correct(request(folder, b_values=folder / "b"))
    first, second = np.moveaxis(array(folder / "out" / "corrected.nii.gz"), 3, 0)
    np.testing.assert_allclose(first * 0.4, second, rtol=1e-3, atol=0.01)


def test_several_volumes_without_b_values_are_refused(images: Callable[..., Path]) -> None:
    folder = images(2)
    with pytest.raises(NiftiProblem, match="2 volumes and no b-values; give them with --bval"):
        correct(request(folder))


def test_a_wrong_number_of_b_values_is_refused(images: Callable[..., Path]) -> None:
    folder = images(2)
    (folder / "dwi.bval").write_text("0 500 1000")
    with pytest.raises(NiftiProblem, match="3 b-values, but the image has 2 volumes"):
        correct(request(folder))


def test_a_b_vector_file_that_is_not_there_is_named(images: Callable[..., Path]) -> None:
    folder = images()
    with pytest.raises(InputProblem, match=r"no\.bvec does not exist"):
        correct(request(folder, b_vectors=folder / "no.bvec"))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05}, ("j", "-", "dwi.json")),
        ({"PhaseEncodingAxis": "j"}, ("j", None, "dwi.json")),
        ({"EchoTime": 0.08}, (None, None, "not given")),
    ],
)
def test_the_axis_comes_from_the_sidecar_of_dcm2niix(
    images: Callable[..., Path], said: dict[str, object], told: tuple[str | None, ...]
) -> None:
    folder = images()
    (folder / "dwi.json").write_text(json.dumps(said))
    correct(request(folder, phase_encoding=None))
    axis, polarity, source = told
    expected = {"axis": axis, "polarity": polarity, "source": source}
    report = report_of(folder / "out")
    assert report["phase_encoding"] == expected
    assert (report["quality"]["hz_p99"] is not None) == ("TotalReadoutTime" in said)  # type: ignore[index]


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_sidecar_that_is_no_json_object_is_named(images: Callable[..., Path], content: str) -> None:
    folder = images()
    (folder / "dwi.json").write_text(content)
    with pytest.raises(NiftiProblem, match=r"dwi\.json"):
        correct(request(folder, phase_encoding=None))


def test_a_nifti_needs_a_reference_and_one_that_is_nifti(
    images: Callable[..., Path], study: PhantomStudy
) -> None:
    folder = images()
    with pytest.raises(InputProblem, match="--reference"):
        correct(request(folder, reference=None))
    with pytest.raises(InputProblem, match="must be too"):
        correct(request(folder, reference=study.reference_files[0].parent))


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phase_encoding": "y"}, "'y' is no phase-encoding axis; write one of: i, i-, j"),
        ({"total_readout_s": -1.0}, "no total readout time"),
        ({"recipe": Recipe(device="gpu")}, "'gpu' is no device"),
        ({"recipe": Recipe(device="cuda:77")}, "no GPU 'cuda:77'"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_read(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(WrongOption, match=sentence):
        correct(request(tmp_path, **changes))


def test_an_output_folder_that_is_a_file_is_told_before_the_computation(
    images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images()
    (folder / "out").write_text("a file")
    monkeypatch.setattr("dicom_node.offline.nifti.correct_volumes", lambda *_: pytest.fail("computed"))
    with pytest.raises(WrongOption, match="out is a file"):
        correct(request(folder))


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputProblem, match=r"dwi\.nii\.gz does not exist"):
        correct(request(tmp_path))
