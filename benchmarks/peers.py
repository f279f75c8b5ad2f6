"""Other programs on our cases: one function each, Pair → displacement along the b = 0's voxel axes.

All get the same: the reference resampled to the b = 0's grid (around the head; voxels below 1 mm in pairs),
both images windowed to 0.5–99.5 % of the head, on an axis-aligned frame (the voxel axes themselves, so that
"phase encode only" means just that for programs that restrict along world axes), one thread. No rigid stage:
same session. What else a careful user would set is said at each function. unpile also gets the true brain
mask, since it cannot do without one.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.cases import Case
from correction import Volume, preprocess
from correction.grid import Frame, Grid, resample, sample

Array = npt.NDArray[np.float64]
_UNPILE = ("--levels", "24,12,6", "--iters", "15")  # its own 3 mm level and 60 iterations take ten minutes
READOUT_S = 0.05  # unpile asks for one; its answer is taken in mm, where it cancels


@dataclass(frozen=True)
class Pair:
    """fixed: the reference, moving: the b = 0, both (Z, Y, X) in 0…1 on one grid; head: of the reference,
    brain: the truth's. spacing_mm: x, y, z. axis: 0, 1, 2 for phase encode along x, y, z."""

    fixed: npt.NDArray[np.float32]
    moving: npt.NDArray[np.float32]
    head: npt.NDArray[np.bool_]
    brain: npt.NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    axis: int
    decreasing: bool

    @classmethod
    def of(cls, case: Case, grid: Grid) -> Pair:
        frame = Frame.of(case.b0, None)
        reference, seen = resample(case.reference, frame, grid)
        reference = reference * seen
        moving, _ = resample(case.b0, frame, grid)
        brain, _ = resample(case.b0.with_data(case.brain.float()), frame, grid)
        head, moving_head = (
            preprocess.head_mask(image, grid.spacing_mm, 0.12, 7.0).numpy() for image in (reference, moving)
        )
        z, y, x = grid.spacing_mm
        return cls(
            _windowed(reference.numpy(), head), _windowed(moving.numpy(), moving_head), head,
            brain.numpy() > 0.5, (x, y, z), "ijk".index(case.phase_encoding[0]),
            case.phase_encoding.endswith("-"),
        )  # fmt: skip


Peer = Callable[[Pair], Array]  # (3, Z, Y, X): mm along x, y, z of the grid, fixed(x) ~ moving(x + u(x))


def displacement_lps(case: Case, peer: Peer) -> Tensor:
    """What a peer finds, (3, Z, Y, X) patient LPS mm on b0's grid, as the engine's `displacement`."""
    grid = working_grid(case.b0)
    found = torch.from_numpy(np.ascontiguousarray(peer(Pair.of(case, grid)), dtype=np.float32))
    own = Frame.of(case.b0, None).grid()
    index = [(own.coordinates(k) - grid.first_mm[k]) / grid.spacing_mm[k] for k in range(3)]
    along_axes = sample(found, torch.stack(torch.meshgrid(*index, indexing="ij")).float())
    return torch.einsum("ij,j...->i...", torch.from_numpy(case.b0.axes).float(), along_axes)


def working_grid(b0: Volume) -> Grid:
    """The b = 0's voxels around its head, in pairs where they are below 1 mm: peers are slow on air."""
    frame = Frame.of(b0, None)
    head = preprocess.head_mask(b0.data, frame.spacing_mm, 0.12, 7.0)
    first, spacing, shape = [], [], []
    for axis, (low, high) in enumerate(preprocess.bounding_box(head)):
        step, size = frame.spacing_mm[axis], frame.shape[axis]
        margin = round(14.0 / step)
        low, high = max(0, low - margin), min(size - 1, high + margin)
        pooled = 2 if step < 1.0 else 1
        first.append(step * (low + (pooled - 1) / 2))
        spacing.append(step * pooled)
        shape.append((high - low + 1) // pooled)
    return Grid(
        (first[0], first[1], first[2]), (spacing[0], spacing[1], spacing[2]), (shape[0], shape[1], shape[2])
    )


def missing() -> dict[str, str]:
    """Peers that cannot run here, and why."""
    absent: dict[str, str] = {}
    for name, module in _MODULES.items():
        if importlib.util.find_spec(module) is None:
            absent[name] = f"the package of module {module!r} is not installed"
    return absent


def syn(pair: Pair) -> Array:
    """antspyx SyN, free: Mattes MI of 32 bins, ANTsPy's own iterations (40, 20, 0), head mask."""
    return _ants(pair, restrict=None, iterations=(40, 20, 0))


def syn_phase_encode(pair: Pair) -> Array:
    """antspyx SyN along phase encode only; 60 and 40 iterations."""
    restrict = tuple(int(k == pair.axis) for k in range(3))
    return _ants(pair, restrict=restrict, iterations=(60, 40, 0))


def _ants(pair: Pair, restrict: tuple[int, ...] | None, iterations: tuple[int, ...]) -> Array:
    import ants

    fixed, moving = (
        ants.from_numpy(np.ascontiguousarray(image.T), spacing=pair.spacing_mm)
        for image in (pair.fixed, pair.moving)
    )
    mask = ants.from_numpy(np.ascontiguousarray(pair.head.T.astype(np.float32)), spacing=pair.spacing_mm)
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed, moving, "SyNOnly", initial_transform="Identity", outprefix=f"{folder}/", mask=mask,
            mask_all_stages=True, syn_metric="mattes", syn_sampling=32, reg_iterations=iterations,
            restrict_transformation=restrict, random_seed=1,
        )  # fmt: skip
        warps = [name for name in found["fwdtransforms"] if name.endswith("Warp.nii.gz")]
        field = ants.image_read(warps[0]).numpy()
    return np.asarray(field.transpose(3, 2, 1, 0), dtype=np.float64)


def elastix(pair: Pair) -> Array:
    """itk-elastix B-spline: its default map (Mattes MI, bending energy) but for what a tune case asked for.

    Two levels, a final grid of 30 mm and bending × 50: 2.8 mm there. Its four levels with 15 or 30 mm, with
    or without the head mask, more samples, shorter steps or more bending end at 19 to 26 mm.
    """
    import itk

    fixed, moving = (_itk(itk, image, pair.spacing_mm) for image in (pair.fixed, pair.moving))
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap("bspline", 2)
    chosen["FinalGridSpacingInPhysicalUnits"] = ["30"]
    chosen["Metric1Weight"] = ["50"]
    chosen["MaximumNumberOfIterations"] = ["250"]
    chosen["RandomSeed"] = ["1"]
    chosen["ErodeMask"] = ["false"]
    parameters.AddParameterMap(chosen)
    mask = _itk(itk, pair.head.astype(np.uint8), pair.spacing_mm)
    _, transform = itk.elastix_registration_method(
        fixed, moving, parameter_object=parameters, fixed_mask=mask, log_to_console=False
    )
    with tempfile.TemporaryDirectory() as folder:
        field = itk.transformix_deformation_field(moving, transform, output_directory=folder)
    return np.moveaxis(np.asarray(itk.array_from_image(field), dtype=np.float64), -1, 0)


def convex_adam(pair: Pair) -> Array:
    """convexAdam 0.2 with MIND as it comes (grid 6, half width 4, λ 1.25, 80 steps)."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    voxels = convex_adam_pt(
        torch.from_numpy(pair.fixed), torch.from_numpy(pair.moving),
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    along = np.moveaxis(voxels, -1, 0)[::-1]  # array order z, y, x → x, y, z
    return np.asarray(along * np.array(pair.spacing_mm)[:, None, None, None])


def free_form(pair: Pair) -> Array:
    """SimpleITK B-spline FFD: Mattes MI of 50 bins on 20 % of the head, mesh of 60 → 15 mm, L-BFGS."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    images = []
    for array in (pair.fixed, pair.moving, pair.head.astype(np.uint8)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(pair.spacing_mm)
        images.append(image)
    fixed, moving, mask = images
    extent = np.array(pair.fixed.shape[::-1]) * pair.spacing_mm
    mesh = [max(1, round(e / 60.0)) for e in extent]
    transform = sitk.BSplineTransformInitializer(fixed, mesh, 3)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGS2(solutionAccuracy=1e-3, numberOfIterations=40, deltaConvergenceTolerance=1e-3)
    method.SetInitialTransformAsBSpline(transform, inPlace=True, scaleFactors=[1, 2, 4])
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    found = method.Execute(fixed, moving)
    field = sitk.TransformToDisplacementField(
        found, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(),
        fixed.GetDirection(),
    )  # fmt: skip
    return np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)


def unpile_t2_like(pair: Pair) -> Array:
    """unpile without field map: LNCC, jointly with a rigid pose, λ 60 mm, reference inverted if T1-like."""
    inside = pair.brain
    opposite = np.corrcoef(pair.fixed[inside], pair.moving[inside])[0, 1] < 0
    reference = np.where(pair.head, 1.0 - pair.fixed, 0.0) if opposite else pair.fixed
    return _unpile(pair, reference, ("--metric", "lncc", "--pose", "--lam-mm", "60", *_UNPILE))


def unpile_b0_like(pair: Pair) -> Array:
    """unpile with a b0-like reference, as a synthesis network gives: E[b0 | reference] in the brain; SSD."""
    inside, bins = pair.brain, 32
    index = np.clip((pair.fixed * bins).astype(int), 0, bins - 1)
    count = np.bincount(index[inside], minlength=bins)
    total = np.bincount(index[inside], weights=pair.moving[inside], minlength=bins)
    level = np.where(count > 50, total / np.maximum(count, 1), 0.0)
    return _unpile(pair, np.where(inside, level[index], 0.0), ("--metric", "ssd", "--lam-mm", "60", *_UNPILE))


def _unpile(pair: Pair, reference: Array, options: tuple[str, ...]) -> Array:
    import nibabel
    from unpile.api import run

    # unpile wants LAS: our axes are L, P, S, so rows are turned round and so is the sign along y
    x, y, z = pair.spacing_mm
    affine = np.diag([-x, y, z, 1.0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, image in (("epi", pair.moving), ("reference", reference), ("mask", pair.brain)):
            array = np.ascontiguousarray(np.asarray(image, dtype=np.float32).T[:, ::-1])
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{file}.nii.gz")
        decreasing = pair.decreasing != (pair.axis == 1)
        encoding = "ijk"[pair.axis] + ("-" if decreasing else "")
        run(
            ["fit", "--epi", str(folder / "epi.nii.gz"), "--reference", str(folder / "reference.nii.gz"),
             "--mask", str(folder / "mask.nii.gz"), "--out", str(folder / "out"), "--pe-dir", encoding,
             "--total-readout-time", str(READOUT_S), *options],
            threads=1,
        )  # fmt: skip
        warp = np.asarray(nibabel.load(folder / "out" / "sdc_warp.nii.gz").dataobj, dtype=np.float64)
    # ITK vectors are patient LPS, as our axes here; (X, Y, Z, 1, 3) → (3, Z, Y, X)
    return np.ascontiguousarray(np.squeeze(warp)[:, ::-1].transpose(3, 2, 1, 0))


def _windowed(image: npt.NDArray[np.float32], head: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    low, high = np.percentile(image[head], [0.5, 99.5])
    return np.clip((image - min(low, 0.0)) / (high - min(low, 0.0)), 0, 1).astype(np.float32)


def _itk(itk: object, array: npt.NDArray[np.generic], spacing: tuple[float, float, float]) -> object:
    image = itk.image_from_array(np.ascontiguousarray(array))  # type: ignore[attr-defined]
    image.SetSpacing(spacing)
    return image


PEERS: dict[str, Peer] = {
    "convexAdam": convex_adam,
    "SyN, phase encode": syn_phase_encode,
    "SyN": syn,
    "unpile, T2-like": unpile_t2_like,
    "unpile, b0-like": unpile_b0_like,
    "elastix": elastix,
    "SimpleITK FFD": free_form,
}
_MODULES = {
    "convexAdam": "convexAdam",
    "SyN, phase encode": "ants",
    "SyN": "ants",
    "unpile, T2-like": "unpile",
    "unpile, b0-like": "unpile",
    "elastix": "itk",
    "SimpleITK FFD": "SimpleITK",
}
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # before any of them is imported
