"""The distortion of one EPI: its field, estimated by the engine, and its volumes, moved by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from correction import Correction, Volume, correct
from correction.landmarks import find_landmarks
from dicom_node.derive import DerivePolicy, OutputGrid, on_reference_grid
from dicom_node.load import LoadedSeries
from dicom_node.recipe import NO_MATCHER, Recipe
from rules.facts import SeriesFacts

Array = npt.NDArray[np.float32]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class PhaseEncodingChoice:
    """The phase-encode axis as the engine takes it (voxel axes of the array), and as the report tells it.

    axis: `i`, `j`, `k`, with `-` when decreasing; None: unknown, the correction is free in 3-D.
    """

    axis: str | None
    bids: str | None
    source: str
    polarity_known: bool
    readout_s: float | None = None

    def described(self) -> dict[str, str | None]:
        """For report.json."""
        if self.bids is None:
            return {"axis": None, "polarity": None, "source": self.source}
        polarity = ("-" if self.bids.endswith("-") else "+") if self.polarity_known else None
        return {"axis": self.bids[0], "polarity": polarity, "source": self.source}


@dataclass(frozen=True, slots=True)
class Distorted:
    """What is corrected. voxels: (V, Z, Y, X), real-world values. lowest: the volumes to register."""

    voxels: Array
    affine: npt.NDArray[np.float64]
    lowest: tuple[int, ...]
    phase_encoding: PhaseEncodingChoice

    def b0(self) -> Volume:
        """The mean of the volumes of the lowest shell."""
        return Volume.from_numpy(self.voxels[list(self.lowest)].mean(axis=0), self.affine)


@dataclass(frozen=True, slots=True)
class Corrected:
    """A correction with the corrected voxels (V, Z, Y, X) and the seconds of each stage."""

    correction: Correction
    voxels: Array
    seconds: dict[str, float] = field(default_factory=dict)


def phase_encoding_of(facts: SeriesFacts) -> PhaseEncodingChoice:
    """What the header says of phase encoding."""
    encoding, readout_s = facts.phase_encoding, facts.total_readout_s
    if encoding is None:
        return PhaseEncodingChoice(None, None, "the header does not say", False, readout_s)
    polarity_known = encoding.increasing is not None
    return PhaseEncodingChoice(encoding.voxel_axis, encoding.bids, encoding.source, polarity_known, readout_s)


def correct_volumes(
    distorted: Distorted, reference: Volume, recipe: Recipe, progress: Progress | None = None
) -> Corrected:
    """Estimate on the lowest shell, apply to every volume. Raises correction.errors.CorrectionError."""
    correction, seconds = estimate_field(distorted, reference, recipe, progress)
    started = time.monotonic()
    voxels = apply_field(correction, distorted.voxels, distorted.affine, recipe, progress)
    return Corrected(correction, voxels, {**seconds, "apply": time.monotonic() - started})


def estimate_field(
    distorted: Distorted, reference: Volume, recipe: Recipe, progress: Progress | None = None
) -> tuple[Correction, dict[str, float]]:
    """The field of the lowest shell, and the seconds that each stage took.

    Raises correction.errors.CorrectionError.
    """
    axis, device, b0 = distorted.phase_encoding.axis, recipe.resolved_device(), distorted.b0()
    started = time.monotonic()
    landmarks = None
    # the free field of the clinical method takes no landmarks
    if recipe.matcher != NO_MATCHER and (axis is not None or recipe.method == "paper"):
        tell(progress, "landmarks", 0.0)
        weights_dir = Path(recipe.weights_dir) if recipe.weights_dir else None
        landmarks = find_landmarks(b0, reference, axis, recipe.matcher, weights_dir, device)
    found_s = time.monotonic() - started
    correction = correct(
        b0,
        reference,
        phase_encoding=axis,
        settings=recipe.settings(),
        landmarks=landmarks,
        readout_s=distorted.phase_encoding.readout_s,
        seed=recipe.seed,
        device=device,
        progress=progress,
    )
    return correction, {"landmarks": found_s, **correction.seconds}


def apply_field(
    correction: Correction,
    voxels: Array,
    affine: npt.NDArray[np.float64],
    recipe: Recipe,
    progress: Progress | None = None,
    out: Array | None = None,
) -> Array:
    """Every volume of `voxels` (V, Z, Y, X), which lie on the grid of the field, corrected.

    out: where they go, which may be `voxels` itself.
    """
    moved = np.empty_like(voxels) if out is None else out
    for index, volume in enumerate(voxels):
        tell(progress, "apply", index / len(voxels))
        shifted = correction.apply(Volume.from_numpy(volume, affine), modulate=recipe.modulate)
        moved[index] = shifted.data.cpu().numpy()
    return moved


def on_output_grid(
    source: LoadedSeries,
    moved: Array,
    correction: Correction,
    reference: Volume,
    recipe: Recipe,
    policy: DerivePolicy,
    scratch: Path,
) -> Array:
    """The corrected volumes on the grid that is asked for. moved: (V, Z, Y, X) on that of `source`."""
    if policy.grid is OutputGrid.DWI:
        return moved
    displacement_mm = correction.displacement.cpu().numpy()
    modulation = correction.jacobian.cpu().numpy() if recipe.modulate else None
    return on_reference_grid(source, displacement_mm, modulation, reference.affine, reference.shape, scratch)


def tell(progress: Progress | None, stage: str, fraction: float) -> None:
    """Progress for whoever watches."""
    if progress is not None:
        progress(stage, fraction)
