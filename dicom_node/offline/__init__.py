"""`dicom-node correct`: the same correction without a network, from a DICOM folder or NIfTI files."""

from __future__ import annotations

from dicom_node.offline.nifti import correct_nifti
from dicom_node.offline.request import (
    NIFTI_ENDINGS,
    InputProblem,
    Report,
    Request,
    SeriesProgress,
    WrongOption,
    check_options,
)
from dicom_node.offline.study import correct_study

__all__ = ["InputProblem", "Report", "Request", "SeriesProgress", "WrongOption", "correct_input"]


def correct_input(request: Request, progress: SeriesProgress) -> Report:
    """Correct what `request` names.

    Raises WrongOption, InputProblem, NiftiProblem, headers.HeaderError and correction.errors.CorrectionError,
    each with a sentence for people. Options are looked at first: reading a study takes its time.
    """
    check_options(request)
    named = (*request.inputs, request.reference, request.b_values, request.b_vectors)
    missing = [path for path in named if path and not path.exists()]
    if missing:
        raise InputProblem(f"{missing[0]} does not exist.")
    nifti = [path for path in request.inputs if path.name.endswith(NIFTI_ENDINGS)]
    if not nifti:
        return correct_study(request, progress)
    if len(request.inputs) > 1:
        raise InputProblem(
            "Give one NIfTI file, or DICOM folders, not several inputs with a NIfTI among them."
        )
    return Report((correct_nifti(nifti[0], request, progress),))
