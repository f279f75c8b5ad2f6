"""How good a displacement field is on a case with a known one, and who is better over many cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.stats import wilcoxon
from torch import Tensor

from benchmarks.cases import Case
from correction import apply

Array = npt.NDArray[np.float64]


def figures(case: Case, displacement_mm: Tensor) -> dict[str, float]:
    """Errors of a field and likeness of what it makes of the b = 0, in the brain.

    displacement_mm: (3, Z, Y, X) LPS mm on b0's grid. rmse_mm, p95_mm: length of the error vector;
    demeaned_rmse_mm: less its mean; off_axis_rmse_mm: its part across phase encode; folded: share of
    voxels with det ∂(x + u) ≤ 0. psnr_db, ncc, ssim: corrected against undistorted; modulated by the
    Jacobian where the case piles signal up.
    """
    error = (displacement_mm - case.displacement_mm)[:, case.brain].double()
    along = torch.from_numpy(case.b0.axes[:, "ijk".index(case.phase_encoding[0])])
    across = error - along[:, None] * (along @ error)
    length = torch.linalg.vector_norm(error, dim=0)
    jacobian = determinant(case, displacement_mm)
    corrected = apply.warp(case.b0, displacement_mm).data.numpy()
    if case.modulated:
        corrected = corrected * np.clip(jacobian, 0, None)
    brain = case.brain.numpy()
    return {
        "rmse_mm": float(length.square().mean().sqrt()),
        "p95_mm": float(np.percentile(length.numpy(), 95)),
        "demeaned_rmse_mm": float((error - error.mean(1, keepdim=True)).square().sum(0).mean().sqrt()),
        "off_axis_rmse_mm": float(across.square().sum(0).mean().sqrt()),
        "folded": float((jacobian[brain] <= 0).mean()),
        **likeness(case.undistorted.data.numpy(), corrected, brain),
    }


def determinant(case: Case, displacement_mm: Tensor) -> Array:
    """det ∂(x + u)/∂x at b0's voxels by central differences, (Z, Y, X)."""
    along = np.tensordot(np.linalg.inv(case.b0.axes), displacement_mm.double().numpy(), 1)
    spacing = case.b0.spacing_mm
    # rows: component along x, y, z; columns: derivative along x, y, z
    gradient = np.empty((*case.b0.shape, 3, 3))
    for component in range(3):
        for axis in range(3):
            gradient[..., component, axis] = np.gradient(along[component], spacing[axis], axis=2 - axis)
    return np.asarray(np.linalg.det(gradient + np.eye(3)))


def likeness(truth: npt.NDArray[np.float32], image: Array, brain: npt.NDArray[np.bool_]) -> dict[str, float]:
    """PSNR over the truth's range, Pearson's correlation and mean SSIM (7³ window), all inside the brain.

    The image is first scaled by the one factor that fits it best: scanners' units are arbitrary.
    """
    from skimage.metrics import structural_similarity  # of the bench extra

    around = ndimage.find_objects(ndimage.binary_dilation(brain, iterations=4).astype(int))[0]
    truth, image, brain = truth[around], image[around], brain[around]
    wanted, found = truth[brain].astype(float), image[brain].astype(float)
    scale = float(found @ wanted / max(found @ found, 1e-12))
    reach = float(np.percentile(wanted, 99.9))
    square = float(((scale * found - wanted) ** 2).mean())
    _, ssim = structural_similarity(truth.astype(float), scale * image, data_range=reach, full=True)
    return {
        "psnr_db": float(10 * np.log10(reach**2 / max(square, 1e-12))),
        "ncc": float(np.corrcoef(wanted, found)[0, 1]),
        "ssim": float(ssim[brain].mean()),
    }


def signed_rank(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """p of Wilcoxon's two-sided signed-rank test over paired cases; None below five pairs."""
    if len(ours) < 5 or np.allclose(ours, theirs):
        return None
    return float(wilcoxon(ours, theirs).pvalue)


def summary(rows: Sequence[Mapping[str, object]], figure: str) -> dict[str, float]:
    """Mean of one figure by method, over the rows that have it."""
    by_method: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(figure)
        if isinstance(value, float):
            by_method.setdefault(str(row["method"]), []).append(value)
    return {method: float(np.mean(values)) for method, values in by_method.items()}
