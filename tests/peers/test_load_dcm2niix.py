"""Every voxel, the affine, the diffusion scheme and the phase encoding of real series, against dcm2niix.

dcm2niix writes NIfTI in RAS with rows flipped, gradients in FSL's convention, and scales like `load`
(display values: `-p n` for Philips).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from dicom_node.headers import InstanceFacts, Unreadable, read_instance
from dicom_node.load import LoadedSeries, load

pytestmark = pytest.mark.peers

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

DWI = [
    ("siemens-xa30-enhanced", "17_DWI_dir80_AP"),
    ("siemens-xa30-classic", "11001_DWI_dir80_AP"),
    ("siemens-xa30-classic", "13001_DWI_dir80_AP"),
    ("siemens-e11-mosaic", "4_DWI_SagAPmosaic"),
    ("siemens-xa61-noref", "14"),
    ("siemens-xa61-noref", "16"),
    ("prostatex-0218", "8.000000-ep2dadvdiff3Scan4bvalspair511b-12670"),
    ("prostatex-0218", "13.000000-ep2dadvdiffMDDW12dirspair511bTRACEW-39788"),
    ("prostatex-0218", "17.000000-ep2dadvdiff3Scanhigh bvalue 100-46786"),
    ("prostatex-0000", "6.000000-ep2ddifftraDYNDIST-69284"),
    ("philips-classic", "2201"),
    ("philips-dwi-noref", "DICOM"),
    ("ge-phantom", "01_Ax_DWI_TENSOR_R2"),
    ("ge-phantom", "02_Ax_DWI_TENSOR_R3"),
    ("ge-phantom", "03_Ax_DWI_TENSOR_R1p5"),
    ("ge-phantom", "04_Ax_DWI_TENSOR_R2MB2"),
    ("canon-classic", "3000"),
    ("canon-classic", "4000"),
    ("canon-enhanced", "3000"),
    ("uih", "DTI_134434/dti_tra_dir16_PA_SaveBySlc__135612"),
    ("uih", "DTI_134434/dti_tra_dir16_AP_SaveBySlc__140028"),
    ("vendor-mini", "philips/dti/001"),
    ("vendor-mini", "philips_enhanced/dti/001"),
    ("vendor-mini", "philips_enhanced/dti/001_implicit"),
]
# of stacks against row × column dcm2niix writes the opposite vectors, which weight alike
OPPOSITE = {"4_DWI_SagAPmosaic"}
ANATOMICAL = [
    ("siemens-xa30-enhanced", "6_anat-T1w_acq-tfl"),
    ("siemens-xa30-classic", "6001_anat-T1w_acq-tfl"),
    ("siemens-xa30-classic", "1001_AAHead_Scout"),
    ("prostatex-0218", "5.000000-t2tsetra320p2-09906"),
    ("prostatex-0000", "3.000000-t2tsesag-87368"),
    ("prostatex-0000", "4.000000-t2tsetra-00702"),
    ("prostatex-0000", "5.000000-t2tsecor-03471"),
    ("philips-classic", "1301"),
    ("ge-phantom", "05_3D_Ax_T1_MP_RAGE_R22"),
    ("uih", "DTI_134434/t1_gre_fsp_3d_sag__134917"),
    ("vendor-mini", "philips_enhanced/anatomical/001"),
    ("vendor-mini", "ge/anatomical/001"),
    ("vendor-mini", "hitachi/anatomical/001"),
    ("vendor-mini", "generic/compressed_j2k/001"),
    ("vendor-mini", "generic/compressed_jpeg/001"),
    ("vendor-mini", "generic/compressed_jpegls/001"),
    ("vendor-mini", "generic/compressed_rle/001"),
]
ECHOES = [
    ("siemens-xa30-enhanced", "8_gre_field_mapping"),
    ("philips-classic", "2001"),
    ("prostatex-0218", "7.000000-tfl2D36slcres64iPAT-85915"),
]


@dataclass(frozen=True)
class Converted:
    """What dcm2niix made of one series.

    data: (X, Y, Z, V). affine: voxel to LPS mm. gradients: (V, 3), in FSL's convention.
    """

    data: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    sidecar: dict[str, Any]
    b_values: npt.NDArray[np.float64]
    gradients: npt.NDArray[np.float64]


def _instances(folder: Path) -> list[InstanceFacts]:
    """The images of the folder: licence files and other objects lie between them."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            instance = read_instance(path)
        except Unreadable:
            continue
        if instance.frames:
            found.append(instance)
    return found


def _converted(folder: Path, out: Path) -> list[Converted]:
    """dcm2niix's volumes of the folder, one entry a NIfTI file."""
    tool = shutil.which("dcm2niix", path=sysconfig.get_path("scripts")) or shutil.which("dcm2niix")
    assert tool, "dcm2niix is not installed"
    command = [tool, "-z", "n", "-b", "y", "-ba", "n", "-p", "n", "-f", "%s_%e_%p", "-o", out, folder]
    subprocess.run(command, check=True, capture_output=True)
    results = []
    for path in sorted(out.glob("*.nii")):
        image = nibabel.load(path)
        data = np.asarray(image.get_fdata(dtype=np.float32))
        data = data[..., None] if data.ndim == 3 else data
        scheme = path.with_suffix(".bval")
        b_values = np.atleast_1d(np.loadtxt(scheme)) if scheme.exists() else np.zeros(0)
        gradients = np.loadtxt(path.with_suffix(".bvec"), ndmin=2).T if scheme.exists() else np.zeros((0, 3))
        sidecar = json.loads(path.with_suffix(".json").read_text())
        results.append(Converted(data, LPS_TO_RAS @ image.affine, sidecar, b_values, gradients))
    return results


def _on_our_grid(theirs: Converted, ours: LoadedSeries) -> npt.NDArray[np.float32]:
    """Their volumes as (V, Z, Y, X) on our grid; asserts that the two grids have the same voxel centres."""
    shape = ours.arrangement.shape
    to_theirs = np.linalg.inv(theirs.affine) @ ours.affine
    corners = np.array(
        [[x, y, z, 1] for x in (0, shape[2] - 1) for y in (0, shape[1] - 1) for z in (0, shape[0] - 1)]
    )
    indices = (to_theirs @ corners.T).T[:, :3]
    assert np.abs(indices - np.rint(indices)).max() < 0.02, "voxel centres differ"
    assert indices.min() > -0.5
    assert np.all(np.rint(indices.max(axis=0)) == np.array(theirs.data.shape[:3]) - 1)
    turn = np.rint(to_theirs[:3, :3]).astype(int)
    assert np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1])
    assert np.array_equal(np.abs(turn).sum(axis=1), [1, 1, 1])
    axes = [int(np.flatnonzero(turn[:, axis])[0]) for axis in range(3)]
    data = np.transpose(theirs.data, (3, *(axes[axis] for axis in (2, 1, 0))))
    flipped = [3 - axis for axis in range(3) if turn[axes[axis], axis] < 0]
    return np.asarray(np.flip(data, flipped))


def _order(theirs: npt.NDArray[np.float32], ours: LoadedSeries) -> list[int]:
    """For each of our volumes the index of theirs with the same voxels, its own index where that fits."""
    found = []
    for number, volume in enumerate(ours.voxels):
        scale = max(float(np.abs(volume).max()), 1.0)
        same = [i for i, other in enumerate(theirs) if np.abs(other - volume).max() <= 1e-5 * scale]
        assert same, f"no volume of dcm2niix has the voxels of our volume {number}"
        found.append(number if number in same else same[0])
    return found


def _fsl_gradients(ours: LoadedSeries, theirs: Converted) -> npt.NDArray[np.float64]:
    """(V, 3): our directions along the axes of dcm2niix's image, x turned over as FSL wants it."""
    patient = np.array([volume.direction or (0.0, 0.0, 0.0) for volume in ours.arrangement.volumes])
    axes = theirs.affine[:3, :3] / np.linalg.norm(theirs.affine[:3, :3], axis=0)
    gradients = patient @ axes
    if np.linalg.det(axes) > 0:  # LPS and RAS have the same handedness
        gradients[:, 0] *= -1
    return np.asarray(gradients)


@pytest.mark.parametrize(("study", "folder"), DWI)
def test_a_diffusion_series_is_what_dcm2niix_makes_of_it(
    study: str, folder: str, data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = load(_instances(data_set(study) / folder))
    (theirs,) = _converted(data_set(study) / folder, tmp_path)
    order = _order(_on_our_grid(theirs, ours), ours)
    assert sorted(order) == list(range(len(ours.voxels)))
    if not folder.startswith("philips_enhanced"):  # its frames have one time: dcm2niix puts the b = 0 last
        assert order == sorted(order)
    np.testing.assert_allclose(
        np.array(ours.facts.b_values, float), theirs.b_values[order], rtol=1e-5, atol=1e-6
    )
    weighted = theirs.b_values[order] > 50
    gradients, expected = _fsl_gradients(ours, theirs)[weighted], theirs.gradients[order][weighted]
    if folder in OPPOSITE:
        gradients = -gradients
    np.testing.assert_allclose(gradients, expected, atol=1e-3)
    _assert_phase_encoding(ours, theirs)


def _assert_phase_encoding(ours: LoadedSeries, theirs: Converted) -> None:
    encoding = ours.facts.phase_encoding
    sidecar = theirs.sidecar
    if "PhaseEncodingDirection" in sidecar:
        assert encoding is not None
        assert encoding.increasing is not None
        assert encoding.bids == sidecar["PhaseEncodingDirection"]
    elif "PhaseEncodingAxis" in sidecar:
        assert encoding is not None
        assert encoding.increasing is None
        assert encoding.voxel_axis == sidecar["PhaseEncodingAxis"]
    else:
        assert encoding is None
    for key, estimated in (("TotalReadoutTime", False), ("EstimatedTotalReadoutTime", True)):
        if key in sidecar:
            assert ours.facts.total_readout_s == pytest.approx(sidecar[key], rel=1e-4)
            # what dcm2niix calls the readout time of a UIH grid is the duration of its slice
            assert ours.facts.readout_estimated is (estimated or ours.facts.vendor == "uih")


@pytest.mark.parametrize(("study", "folder"), ANATOMICAL)
def test_an_anatomical_series_is_what_dcm2niix_makes_of_it(
    study: str, folder: str, data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = load(_instances(data_set(study) / folder))
    (theirs,) = _converted(data_set(study) / folder, tmp_path)
    assert len(ours.voxels) == 1
    assert _order(_on_our_grid(theirs, ours), ours) == [0]


@pytest.mark.parametrize(("study", "folder"), ECHOES)
def test_each_echo_and_component_is_one_volume(
    study: str, folder: str, data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = load(_instances(data_set(study) / folder))
    theirs = _converted(data_set(study) / folder, tmp_path)
    assert len(ours.voxels) == len(theirs)
    together = np.concatenate([_on_our_grid(one, ours) for one in theirs])
    order = _order(together, ours)
    assert sorted(order) == list(range(len(theirs)))
    for volume, index in zip(ours.arrangement.volumes, order, strict=True):
        assert volume.echo_time_ms == pytest.approx(1000 * theirs[index].sidecar["EchoTime"])


def test_canon_6_0_directions_in_the_comment_are_what_dcm2niix_makes_of_them(
    data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    """A real 6.1 series written as 6.0 did: the gradient in the frame of the image, and only as a comment."""
    (tmp_path / "series").mkdir()
    for path in sorted((data_set("canon-classic") / "4000").iterdir()):
        image = pydicom.dcmread(path)
        direction = image.get("DiffusionGradientOrientation")
        if direction is not None:
            x, y, z = direction
            image.ImageComments = f"b={image.DiffusionBValue:g}({y:.3f},{x:.3f},{-z:.3f})"
            del image.DiffusionGradientOrientation
        image.save_as(tmp_path / "series" / path.name)
    ours = load(_instances(tmp_path / "series"))
    (theirs,) = _converted(tmp_path / "series", tmp_path)
    weighted = theirs.b_values > 50
    assert weighted.sum() == 12
    np.testing.assert_allclose(np.array(ours.facts.b_values, float), theirs.b_values, rtol=1e-5)
    np.testing.assert_allclose(
        _fsl_gradients(ours, theirs)[weighted], theirs.gradients[weighted], atol=2e-3
    )  # three digits in the comment
