"""Derived series of every vendor, judged by others: dciodvfy and dcentvfy (dicom3tools), and dcm2niix.

The correction is the identity, so that everything which differs from the source is ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from derived_series import Bench, instances_of, load_files, write_study
from finished_correction import ALL, finished

from dicom_node.companions import write_companions
from dicom_node.derive import DerivePolicy, OutputGrid
from dicom_node.headers import FrameFacts

pytestmark = pytest.mark.peers

# Unavoidable in a classic MR image that carries diffusion and scaling.
ALLOWED = (
    *("(0018,9075)", "(0018,9076)", "(0018,9087)", "(0018,9089)"),
    *("(0028,1052)", "(0028,1053)", "(0028,1054)"),
)


@dataclass(frozen=True)
class Case:
    """A DWI series in the data, its reference, and which of its files are enough for a test."""

    data: str
    dwi: str
    reference: str
    keep: Callable[[pydicom.Dataset], bool] | None = None


def _volumes(keyword: str, wanted: Sequence[int]) -> Callable[[pydicom.Dataset], bool]:
    return lambda header: int(header.get(keyword, 0)) in wanted


def _first(count: int) -> Callable[[pydicom.Dataset], bool]:
    return _volumes("InstanceNumber", range(1, count + 1))


def _philips_volumes(header: pydicom.Dataset) -> bool:
    """b = 0 and the first three directions of a classic series whose InstanceNumbers run slice by slice."""
    return int(header[0x20051413].value) <= 3 if 0x20051413 in header else False


CASES = {
    "siemens-xa30-enhanced": Case("siemens-xa30-enhanced", "17_*", "6_*", _first(4)),
    "siemens-xa30-classic": Case("siemens-xa30-classic", "11001_*", "6001_*", _first(117)),
    "siemens-e11-mosaic": Case("siemens-e11-mosaic", "4_*", "2_*", _first(4)),
    "siemens-xa61": Case("siemens-xa61-noref", "16", "14"),
    "siemens-xa61-trace": Case("siemens-xa61-noref", "14", "16"),
    "prostatex-0218-trace": Case("prostatex-0218", "8.*", "5.*"),
    "prostatex-0000-trace": Case("prostatex-0000", "6.*", "4.*"),
    "philips-classic": Case("philips-classic", "2201", "1301", _philips_volumes),
    "philips-enhanced": Case("vendor-mini", "philips_enhanced/dti/001", "philips_enhanced/anatomical/001"),
    "philips-implicit": Case(
        "vendor-mini", "philips_enhanced/dti/001_implicit", "philips_enhanced/anatomical/001"
    ),
    "philips-mini": Case("vendor-mini", "philips/dti/001", "philips_enhanced/anatomical/001"),
    "ge": Case("ge-phantom", "04_*", "05_*"),
    "ge-mini": Case("vendor-mini", "ge/dti/001", "ge/anatomical/001"),
    "canon-classic": Case("canon-classic", "3000", "4000", _first(120)),
    "canon-enhanced": Case("canon-enhanced", "3000", "3000"),
    "uih": Case("uih", "DTI_134434/dti_tra_dir16_AP*", "DTI_134434/t1*", _first(4)),
}


@dataclass(frozen=True)
class Derived:
    """A source series as a folder of its own, and the files derived from it."""

    case: str
    source_folder: Path
    frames: tuple[FrameFacts, ...]
    files: tuple[Path, ...]

    def sample(self, count: int = 8) -> list[tuple[FrameFacts, Path]]:
        """Some slices spread over the series, the first and the last among them."""
        chosen = sorted(set(np.linspace(0, len(self.files) - 1, count).round().astype(int).tolist()))
        return [(self.frames[index], self.files[index]) for index in chosen]


@pytest.fixture(scope="module")
def derived_of(
    data_set: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Derived]:
    made: dict[str, Derived] = {}

    def derive(name: str) -> Derived:
        if name not in made:
            case = CASES[name]
            folder = tmp_path_factory.mktemp(name)
            source = _copied(next(data_set(case.data).glob(case.dwi)), folder / "source", case.keep)
            reference = next(data_set(case.data).glob(case.reference))
            bench = Bench(
                load_files(source.iterdir()), instances_of(reference.rglob("*")), folder / "derived"
            )
            bench.derive()
            frames = tuple(f for volume in bench.source.arrangement.volumes for f in volume.frames)
            made[name] = Derived(name, source, frames, tuple(sorted(bench.out.iterdir())))
        return made[name]

    return derive


def _copied(folder: Path, to: Path, keep: Callable[[pydicom.Dataset], bool] | None) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if keep is None or keep(pydicom.dcmread(path, stop_before_pixels=True)):
            shutil.copy(path, to / path.name)
    return to


def _complaints(path: Path, kind: str) -> dict[str, str]:
    """dciodvfy's lines of a kind, by attribute and message, wherever that is nested."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    result = subprocess.run(
        [tool, "-new", path], capture_output=True, text=True, errors="replace", check=False
    )
    found = {}
    for line in (result.stdout + result.stderr).splitlines():
        match = re.match(rf"{kind} - </?(?P<path>.*?)> - (?P<message>.*)", line)
        if match:
            attribute = match["path"].split("/")[-1]
            found[f"{attribute}: {match['message'].split(' - Module=')[0]}"] = line
    return found


@pytest.mark.parametrize("name", CASES)
def test_dciodvfy_finds_no_error_that_the_source_does_not_have(
    name: str, derived_of: Callable[[str], Derived]
) -> None:
    for frame, path in derived_of(name).sample():
        errors = _complaints(path, "Error")
        known = _complaints(frame.path, "Error") if errors else {}
        assert not [line for key, line in errors.items() if key not in known], path.name


@pytest.mark.parametrize("name", CASES)
def test_dciodvfy_warns_only_of_what_the_source_brought_or_diffusion_needs(
    name: str, derived_of: Callable[[str], Derived]
) -> None:
    for frame, path in derived_of(name).sample(3):
        known = _complaints(frame.path, "Warning")
        new = [line for key, line in _complaints(path, "Warning").items() if key not in known]
        unexpected = [
            line
            for line in new
            if not any(tag in line for tag in ALLOWED)
            and "only permitted to be empty when actually unknown" not in line  # Laterality, no body part
        ]
        assert not unexpected, path.name


@pytest.mark.parametrize("name", CASES)
def test_dcentvfy_finds_one_patient_study_series_and_frame_of_reference(
    name: str, derived_of: Callable[[str], Derived]
) -> None:
    tool = shutil.which("dcentvfy")
    if tool is None:
        pytest.skip("dcentvfy is not installed (Debian package dicom3tools)")
    result = subprocess.run(
        [tool, *derived_of(name).files], capture_output=True, text=True, errors="replace", check=False
    )

    assert result.stdout + result.stderr == ""


# -- companions, and the other layouts of the derived series

TOGETHER = DerivePolicy(companions=ALL)
APART = DerivePolicy(grid=OutputGrid.REFERENCE, one_series_per_b_value=True, companions=ALL)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("siemens-xa30-enhanced", TOGETHER),
        ("siemens-e11-mosaic", TOGETHER),
        ("siemens-e11-mosaic", APART),
        ("prostatex-0000-trace", APART),
        ("ge", TOGETHER),
        ("canon-classic", TOGETHER),
        ("uih", TOGETHER),
    ],
)
def test_companions_of_every_vendor_are_without_error_and_of_one_patient_and_study(
    name: str, policy: DerivePolicy, data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    source = _copied(next(data_set(case.data).glob(case.dwi)), tmp_path / "source", case.keep)
    reference = instances_of(next(data_set(case.data).glob(case.reference)).rglob("*"))
    done = finished(load_files(source.iterdir()), reference, tmp_path / "derived", policy)
    made = write_companions(done, tmp_path / "derived")

    known = _complaints(done.source.arrangement.volumes[0].frames[0].path, "Error")
    assert len({one.sop_class_uid for one in made}) == 4
    for one in (done.written[0], done.written[-1], made[0], *made[-3:]):
        errors = _complaints(one.path, "Error")
        assert not [line for key, line in errors.items() if key not in known], one.sop_class_uid
    tool = shutil.which("dcentvfy")
    assert tool
    sample = [one.path for one in (*done.written[:5], *done.written[-5:], *made)]
    result = subprocess.run([tool, *sample], capture_output=True, text=True, errors="replace", check=False)
    # AccessionNumber stands in RequestAttributesSequence of the images too; the tool takes both for one
    told = (result.stdout + result.stderr).splitlines()
    assert not [line for line in told if "Different information entities" not in line]


def test_companions_of_the_phantom_study_give_no_warning_beyond_the_private_codes(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    reference = instances_of(study.reference_files)
    done = finished(load_files(study.dwi_files), reference, tmp_path / "derived")

    for one in write_companions(done, tmp_path / "derived"):
        assert _complaints(one.path, "Error") == {}
        unexpected = [
            line
            for line in _complaints(one.path, "Warning").values()
            if "99DICOMNODE" not in line and "only permitted to be empty when actually unknown" not in line
        ]
        assert not unexpected


def test_dsrdump_reads_the_quality_record(tmp_path: Path) -> None:
    tool = shutil.which("dsrdump")
    if tool is None:
        pytest.skip("dsrdump is not installed (Debian package dcmtk)")
    study = write_study(tmp_path)
    reference = instances_of(study.reference_files)
    done = finished(load_files(study.dwi_files), reference, tmp_path / "derived")
    record = write_companions(done, tmp_path / "derived")[-1]

    result = subprocess.run([tool, record.path], capture_output=True, text=True, check=False)

    assert result.returncode == 0
    assert not [line for line in result.stderr.splitlines() if not line.startswith("W: The VR checker")]
    assert 'NUM:(,,"Displacement, root mean square")="1.23457" (mm' in result.stdout
    assert '"Correction accepted"' in result.stdout


# -- dcm2niix


@dataclass(frozen=True)
class Gradients:
    """What dcm2niix reads of one series. directions: (V, 3) in RAS; zero where there is none."""

    images: int
    shape: tuple[int, ...]
    b_values: npt.NDArray[np.float64]
    directions: npt.NDArray[np.float64]


def _gradients(folder: Path, out: Path) -> Gradients:
    tool = shutil.which("dcm2niix") or str(Path(sysconfig.get_path("scripts")) / "dcm2niix")
    out.mkdir()
    subprocess.run(
        [tool, "-b", "y", "-z", "n", "-f", "x", "-o", out, folder], check=True, stdout=subprocess.DEVNULL
    )
    images = sorted(out.glob("*.nii"))
    image = nibabel.load(images[0])
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    vectors = np.loadtxt(out / "x.bvec", ndmin=2).copy()
    if np.linalg.det(axes) > 0:  # FSL's convention: such an image is seen mirrored along x
        vectors[0] *= -1
    return Gradients(len(images), image.shape, np.loadtxt(out / "x.bval", ndmin=1), (axes @ vectors).T)


AGAINST_NORMAL = {"siemens-e11-mosaic"}  # dcm2niix turns all vectors of such a mosaic by 180°: same weighting


@pytest.mark.parametrize("name", CASES)
def test_dcm2niix_reads_the_same_gradients_from_source_and_derived(
    name: str, derived_of: Callable[[str], Derived], tmp_path: Path
) -> None:
    derived = derived_of(name)
    before = _gradients(derived.source_folder, tmp_path / "before")
    after = _gradients(derived.files[0].parent, tmp_path / "after")

    assert (after.images, after.shape) == (before.images, before.shape)
    order, again = _order(before), _order(after)
    assert after.b_values[again] == pytest.approx(before.b_values[order], abs=1e-3)
    sign = -1.0 if name in AGAINST_NORMAL else 1.0
    assert np.abs(after.directions[again] - sign * before.directions[order]).max() < 1e-3


def _order(gradients: Gradients) -> npt.NDArray[np.intp]:
    """By b-value: dcm2niix puts the b = 0 of enhanced Philips last, that of a classic series first."""
    return np.argsort(gradients.b_values, kind="stable")


# -- the phantom study, which the node's demo sends


def test_the_phantom_study_and_what_is_derived_from_it_are_without_error(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    bench = Bench(load_files(study.dwi_files), instances_of(study.reference_files), tmp_path / "derived")
    bench.derive()

    for path in (study.reference_files[0], *study.dwi_files[::5], *sorted(bench.out.iterdir())[::5]):
        assert _complaints(path, "Error") == {}
        for line in _complaints(path, "Warning").values():
            assert any(tag in line for tag in ALLOWED), line
