"""One NIfTI image and its reference, with b-values and phase encoding from the files beside it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from correction import Volume
from dicom_node.distortion import Distorted, PhaseEncodingChoice, correct_volumes
from dicom_node.nifti import NiftiProblem, lowest_shell, read_b_values, read_nifti, write_displacement
from dicom_node.offline.request import (
    AXES,
    NIFTI_ENDINGS,
    InputProblem,
    Request,
    Result,
    SeriesProgress,
    output_folder,
)
from dicom_node.outputs import Described, report, write_images, write_picture, write_report


def correct_nifti(path: Path, request: Request, progress: SeriesProgress) -> Result:
    """Correct the image `path`. Raises InputProblem, NiftiProblem and correction.errors.CorrectionError."""
    if request.reference is None:
        raise InputProblem("A NIfTI input needs --reference, the undistorted anatomical image.")
    if not request.reference.name.endswith(NIFTI_ENDINGS):
        raise InputProblem(f"The input is NIfTI, so the reference must be too; {request.reference} is not.")
    started = time.monotonic()
    image = read_nifti(path)
    reference_image = read_nifti(request.reference)
    if len(reference_image.voxels) != 1:
        raise NiftiProblem(
            f"{request.reference} has {len(reference_image.voxels)} volumes; give one with one."
        )
    b_values = _b_values(path, len(image.voxels), request)
    encoding = _nifti_phase_encoding(path, request)
    distorted = Distorted(image.voxels, image.affine, lowest_shell(b_values), encoding)
    reference = Volume.from_numpy(reference_image.voxels[0], reference_image.affine)
    output_folder(request.out)
    read_s = time.monotonic() - started
    name = path.name
    corrected = correct_volumes(
        distorted, reference, request.recipe, lambda stage, fraction: progress(name, stage, fraction)
    )
    document = report(
        corrected.correction,
        Described(
            inputs={"dwi": path.name, "reference": request.reference.name},
            method=request.recipe.method,
            seed=request.recipe.seed,
            phase_encoding=encoding.described(),
            seconds={"read": read_s, **corrected.seconds},
            modulated=request.recipe.modulate,
        ),
    )
    write_displacement(
        request.out / "displacement.nii.gz", corrected.correction.displacement, image.affine, flip_rows=False
    )
    write_images(request.out, corrected.correction, corrected.voxels, image.affine, flip_rows=False)
    notice = request.derive.companions.notice
    write_picture(request.out, corrected.correction, distorted.b0(), document, notice)
    write_report(request.out, document)
    _copy_gradients(path, request)
    return Result(
        name,
        request.out,
        request.reference.name,
        document["verdict"]["level"],
        " ".join(reason["text"] for reason in document["verdict"]["reasons"]),
        document["displacement_mm"]["rms"],
        document["displacement_mm"]["max"],
        time.monotonic() - started,
    )


def _sidecar(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ending)


def _b_values(path: Path, volumes: int, request: Request) -> tuple[float, ...]:
    """From --bval, else the .bval beside the image; a 3-D image is taken as b = 0."""
    beside = _sidecar(path, ".bval")
    if request.b_values is not None:
        return read_b_values(request.b_values, volumes)
    if volumes == 1:
        return (0.0,)
    if not beside.exists():
        raise NiftiProblem(f"{path} has {volumes} volumes and no b-values; give them with --bval FILE.")
    return read_b_values(beside, volumes)


def _nifti_phase_encoding(path: Path, request: Request) -> PhaseEncodingChoice:
    """From the option, else from the JSON sidecar that dcm2niix writes."""
    asked, readout_s = request.phase_encoding, request.total_readout_s
    if asked == "none":
        return PhaseEncodingChoice(None, None, "--phase-encoding", False, readout_s)
    if asked is not None:
        return PhaseEncodingChoice(asked, asked, "--phase-encoding", True, readout_s)
    sidecar = _sidecar(path, ".json")
    said: dict[str, Any] = {}
    if sidecar.exists():
        try:
            said = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            raise NiftiProblem(f"{sidecar} is not JSON; mend it, or give --phase-encoding.") from error
        if not isinstance(said, dict):
            raise NiftiProblem(f"{sidecar} is no JSON object; mend it, or give --phase-encoding.")
    if readout_s is None and isinstance(said.get("TotalReadoutTime"), int | float):
        readout_s = float(said["TotalReadoutTime"])
    for key, polarity_known in (("PhaseEncodingDirection", True), ("PhaseEncodingAxis", False)):
        if said.get(key) in AXES[:-1]:
            return PhaseEncodingChoice(said[key], said[key], sidecar.name, polarity_known, readout_s)
    return PhaseEncodingChoice(None, None, "not given", False, readout_s)


def _copy_gradients(path: Path, request: Request) -> None:
    """b-values and vectors beside the corrected image: what is along phase encode only, turns no gradient."""
    for given, ending in ((request.b_values, ".bval"), (request.b_vectors, ".bvec")):
        source = given or _sidecar(path, ending)
        if source.exists():
            shutil.copyfile(source, request.out / f"corrected{ending}")
