"""Simulated cases with a known field, from real heads: what the engine and its peers are measured on.

    python -m benchmarks.cases --data FOLDER --save FOLDER [--split tune|test] [--only NAME] [--pictures]

EPI-like: `epi` draws a b = 0 of a real head, distorted by the head's own air; the reference is an image of
that head, displaced by at most half a millimetre and half a degree in some. Paper-like: a FLAIR under a
smooth random shift along phase encode, at most 20 of its voxels, without modulation.
Settings may be chosen on the split "tune" (heads uih and xa30) and are reported on "test" (philips and ms);
paper-like cases need three contrasts, so both splits warp the ms head, by other fields.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks import epi
from benchmarks.heads import Head, head, sampled
from correction import Volume
from correction.phantom import warped

Split = Literal["tune", "test"]


@dataclass(frozen=True)
class Case:
    """One pair with its truth.

    displacement_mm: (3, Z, Y, X) LPS on b0's grid, undistorted(x) = b0(x + u(x)) (· J with `modulated`).
    brain: (Z, Y, X) bool on b0's grid, where errors are taken. undistorted: b0's contrast, same grid,
    no noise. kind: "epi" or "paper".
    """

    name: str
    kind: str
    b0: Volume
    reference: Volume
    phase_encoding: str
    displacement_mm: Tensor
    brain: Tensor
    undistorted: Volume
    modulated: bool


def save_case(case: Case, path: Path) -> None:
    volumes = {
        name: (volume.data, torch.from_numpy(volume.affine))
        for name, volume in (
            ("b0", case.b0),
            ("reference", case.reference),
            ("undistorted", case.undistorted),
        )
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        volumes | {
            "name": case.name, "kind": case.kind, "phase_encoding": case.phase_encoding,
            "displacement_mm": case.displacement_mm, "brain": case.brain, "modulated": case.modulated,
        },
        path,
    )  # fmt: skip


def load_case(path: Path | str) -> Case:
    """A case that save_case() wrote."""
    stored = torch.load(path, weights_only=True)
    for name in ("b0", "reference", "undistorted"):
        data, affine = stored[name]
        stored[name] = Volume(data, affine.numpy())
    return Case(**stored)


@dataclass(frozen=True)
class EpiLike:
    """Recipe of one EPI-like case; offset: the reference is slightly displaced."""

    head: str
    contrast: str
    protocol: epi.Protocol
    offset: bool = False

    @property
    def name(self) -> str:
        protocol = self.protocol
        kind = "stripped" if protocol.stripped else "full"
        offset = "-offset" if self.offset else ""
        return f"{self.head}-{self.contrast}-{kind}-{protocol.phase_encoding}{offset}".lower()

    def make(self, made: Head) -> Case:
        protocol = self.protocol
        scan = epi.scan(made, protocol)
        reference = made.images[self.contrast]
        if protocol.stripped:
            inside = sampled(made.inside, reference.affine, reference.shape) > 0.5
            reference = reference.with_data(reference.data * torch.from_numpy(inside))
        if self.offset:
            random = np.random.default_rng([protocol.seed, 1])
            shift, turn = random.standard_normal((2, 3))
            shift *= 0.45 / np.linalg.norm(shift)
            turn *= 0.40 / np.linalg.norm(turn)
            reference = epi.moved(reference, shift, turn)
        return Case(
            self.name, "epi", scan.b0, reference, protocol.phase_encoding,
            torch.from_numpy(scan.displacement_mm), torch.from_numpy(scan.brain), scan.undistorted, True,
        )  # fmt: skip


@dataclass(frozen=True)
class PaperLike:
    """Recipe of one paper-like case; voxels: the largest shift, signed."""

    contrast: str
    voxels: float
    smoothness_mm: float
    seed: int
    head: str = "ms"

    @property
    def name(self) -> str:
        return f"paper-flair-{self.contrast}-{self.voxels:g}v-{self.smoothness_mm:g}mm".lower()

    def make(self, made: Head) -> Case:
        flair = made.images["FLAIR"]
        largest = self.voxels * flair.spacing_mm[1]
        distorted, truth = warped(flair, "j", largest, self.smoothness_mm, self.seed)
        brain = sampled(made.inside, flair.affine, flair.shape) > 0.5
        return Case(
            self.name, "paper", distorted, made.images[self.contrast], "j", truth,
            torch.from_numpy(brain), flair, False,
        )  # fmt: skip


Recipe = EpiLike | PaperLike
_P = epi.Protocol
RECIPES: dict[Split, tuple[Recipe, ...]] = {
    "tune": (
        EpiLike("uih", "T1", _P("j", 11, 2.6)),
        EpiLike("uih", "T1", _P("j-", 12, 4.2, (4.0, -3.0, -5.0), stripped=True), offset=True),
        EpiLike("uih", "FLAIR-like", _P("j-", 13, 3.0, (14.0, 0.0, 2.0), noise=0.05)),
        EpiLike("xa30", "T1", _P("j-", 14, 3.2, (-6.0, 3.0, 2.0)), offset=True),
        EpiLike("xa30", "T1", _P("i", 15, 2.6, (8.0, 2.0, -4.0))),
        EpiLike("xa30", "FLAIR-like", _P("j", 16, 4.4, (0.0, 4.0, -6.0), stripped=True)),
        PaperLike("T1", 20, 40.0, 17),
        PaperLike("T2", -14, 25.0, 18),
    ),
    "test": (
        EpiLike("philips", "T1", _P("j", 21, 2.8, (12.0, -2.0, 4.0)), offset=True),
        EpiLike("philips", "T1", _P("j-", 22, 4.4, (5.0, 3.0, -3.0), stripped=True)),
        EpiLike("philips", "FLAIR-like", _P("j-", 23, 2.6, (-4.0, 2.0, 6.0), noise=0.05)),
        EpiLike("philips", "T1", _P("i-", 24, 2.8, (9.0, 4.0, -2.0))),
        EpiLike("ms", "T1", _P("j-", 25, 2.8, (7.0, 3.0, 3.0))),
        EpiLike("ms", "FLAIR", _P("j", 26, 3.6, (-8.0, -3.0, 4.0)), offset=True),
        # drawn when the engine was done, and not looked at before
        EpiLike("philips", "FLAIR-like", _P("i-", 61, 2.4, (2.0, -4.0, 7.0), noise=0.05), offset=True),
        EpiLike("philips", "T1", _P("j", 62, 3.4, (-9.0, 4.0, 2.0))),
        EpiLike("ms", "T1", _P("i", 63, 2.4, (4.0, -2.0, -6.0)), offset=True),
        EpiLike("ms", "FLAIR", _P("j-", 64, 3.0, (10.0, 2.0, -3.0), noise=0.05)),
        PaperLike("T1", -20, 35.0, 27),
        PaperLike("T2", 20, 50.0, 28),
    ),
}


def picture(case: Case, path: Path) -> None:
    """Reference, b = 0, undistorted, shift and Jacobian on three planes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axis = 2 - "ijk".index(case.phase_encoding[0])
    shift = np.tensordot(case.b0.axes[:, 2 - axis], case.displacement_mm.numpy(), 1)
    spacing = case.b0.spacing_mm[::-1]
    jacobian = 1 + np.gradient(shift, spacing[axis], axis=axis)
    reference = sampled(case.reference, case.b0.affine, case.b0.shape)
    brain = case.brain.numpy()
    planes: list[tuple[tuple[int | slice, ...], float]] = []
    for view, share in ((0, 0.5), (0, 0.25), (2, 0.5)):
        hit = np.flatnonzero(brain.any(tuple(k for k in range(3) if k != view)))
        where = int(hit[0] + share * (hit[-1] - hit[0]))
        rest = [spacing[k] for k in range(3) if k != view]
        cut: tuple[int | slice, ...] = tuple(where if k == view else slice(None) for k in range(3))
        planes.append((cut, rest[0] / rest[1]))
    figure, axes = pyplot.subplots(3, 5, figsize=(16, 9.5))
    for row, (cut, aspect) in zip(axes, planes, strict=True):
        origin = "lower" if isinstance(cut[2], int) else "upper"
        for panel, image, limits in (
            (row[0], reference, (0, np.percentile(reference, 99.5))),
            (row[1], case.b0.data.numpy(), (0, np.percentile(case.b0.data.numpy(), 99.7))),
            (row[2], case.undistorted.data.numpy(), (0, np.percentile(case.undistorted.data.numpy(), 99.7))),
            (row[3], shift, (-12, 12)),
            (row[4], jacobian, (0, 2)),
        ):  # fmt: skip
            colours = "gray" if panel in row[:3] else "RdBu_r"
            panel.imshow(
                image[cut], cmap=colours, vmin=limits[0], vmax=limits[1], aspect=aspect, origin=origin
            )
            panel.contour(brain[cut], [0.5], colors="r", linewidths=0.5)
            panel.axis("off")
    inside = shift[brain]
    figure.suptitle(
        f"{case.name}: RMS {np.sqrt((inside**2).mean()):.2f}, p95 {np.percentile(abs(inside), 95):.1f}, "
        f"peak {abs(inside).max():.1f} mm, J {jacobian[brain].min():.2f}–{jacobian[brain].max():.2f}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=55)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the unpacked studies")
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--split", choices=("tune", "test"), action="append")
    parser.add_argument("--only", help="part of a case's name")
    parser.add_argument("--pictures", action="store_true", help="a PNG beside each case")
    chosen = parser.parse_args()
    heads = cache(lambda name: head(name, chosen.data))
    for split in chosen.split or RECIPES:
        for recipe in RECIPES[split]:
            if chosen.only and chosen.only not in recipe.name:
                continue
            case = recipe.make(heads(recipe.head))
            path = chosen.save / split / f"{case.name}.pt"
            save_case(case, path)
            error = torch.linalg.vector_norm(case.displacement_mm[:, case.brain], dim=0)
            print(f"{split} {case.name:36} RMS {error.square().mean().sqrt():.2f} mm", flush=True)
            if chosen.pictures:
                picture(case, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
