"""The picture that a person looks at: edges of the reference over the b = 0 before and after."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation

from correction import Volume

matplotlib.use("Agg")

Array = npt.NDArray[np.float32]

EDGE_SIGMA_MM = 1.2  # finer edges are texture, not anatomy
EDGE_STRONG_PERCENTILE = 90.0  # of the gradient inside the picture: one pixel in ten may start an edge
EDGE_WEAK_SHARE = 0.45  # hysteresis: an edge goes on where it is this strong
PIXEL_MM = 0.75  # display pixels; EPI voxels are too coarse to draw lines on
END_MM = 4.0  # as near to the end of the reference's field of view, an edge may be that end
EDGE_COLOUR = (1.0, 0.83, 0.1)
GAMMA = 0.6  # of the grey scale: beside a full bladder or CSF, other tissue would be black
DPI = 100
VIEWS_IN, FOOTNOTE_IN = 8.4, 0.28  # height of the picture without reasons; what of it is the footnote's
MOST_REASONS = 3
REASON_CHARACTERS, REASON_LINE_IN = 140, 0.18  # of one line, at 10 points


@dataclass(frozen=True, slots=True)
class QcImages:
    """What the picture shows; all on the grid of the DWI.

    seen: (Z, Y, X) inside the reference's field of view. shift_mm: (Z, Y, X) length of the displacement.
    mask: (Z, Y, X) where there is tissue.
    """

    reference: Volume
    seen: npt.NDArray[np.bool_]
    before: Volume
    after: Volume
    shift_mm: Array
    mask: npt.NDArray[np.bool_]


def write_qc(path: Path, images: QcImages, *, title: str, footnote: str, reasons: Sequence[str] = ()) -> None:
    """Two rows (before, after) of an axial, a coronal and a sagittal slice through the largest shifts.

    reasons: the verdict's sentences; they stand below the title, and the picture is as much higher.
    """
    order, flips = _to_lps(images.before)
    spacing = np.asarray(images.before.spacing_mm)[list(order)]
    turn = _Turn(order, flips)
    before, after = turn(images.before.data.cpu().numpy()), turn(images.after.data.cpu().numpy())
    reference = turn(images.reference.data.cpu().numpy())
    seen = turn(images.seen.astype(np.float32))
    mask = turn(images.mask.astype(np.float32)) > 0
    white = float(np.percentile(before[mask], 99.5)) if mask.any() else 0.0
    before, after = (_grey(volume, white or float(before.max()) or 1.0) for volume in (before, after))
    # at the rim of the field of view, tissue may be there before the correction only, or hardly give a signal
    visible = np.minimum(before, after) * mask
    moved = turn(images.shift_mm) * visible * _structure(reference, seen, spacing)

    figure = _page(title, reason_lines(reasons), footnote)
    grid = figure.subplots(2, 3)
    for column, (name, axis) in enumerate((("axial", 2), ("coronal", 1), ("sagittal", 0))):
        index = _slice_with_largest_shift(moved, visible, axis)
        planes = _plane(reference, axis, index), _plane(seen, axis, index)
        edges = _edges(*planes, _plane_spacing(spacing, axis))
        for row, (label, volume) in enumerate((("before", before), ("after", after))):
            picture = _resized(_plane(volume, axis, index), _plane_spacing(spacing, axis))
            _draw(grid[row, column], picture, edges, f"{name}, {label}")
    figure.savefig(path, dpi=DPI, facecolor="black")


def reason_lines(reasons: Sequence[str]) -> list[str]:
    """The first reasons, each as lines that fit the width of the picture, and how many more there are."""
    lines = [
        line
        for reason in reasons[:MOST_REASONS]
        for line in textwrap.wrap(reason, REASON_CHARACTERS, initial_indent="• ", subsequent_indent="  ")
    ]
    more = len(reasons) - MOST_REASONS
    return [*lines, f"and {more} more"] if more > 0 else lines


def _page(title: str, lines: Sequence[str], footnote: str) -> Figure:
    """The page but for its views, whose room is always the same: title, lines below it, footnote."""
    told_in = len(lines) * REASON_LINE_IN
    height_in = VIEWS_IN + told_in
    # what is at the lower end is the footnote's
    layout = ConstrainedLayoutEngine(
        rect=(0, FOOTNOTE_IN / height_in, 1, 1 - (FOOTNOTE_IN + told_in) / height_in)
    )
    figure = Figure(figsize=(12, height_in), facecolor="black", layout=layout)
    above = figure.suptitle(title, color="white", fontsize=13, parse_math=False)  # a $ in a notice is a $
    told = Annotation(
        "\n".join(lines), (0.5, 0), xycoords=above, xytext=(0, -5), textcoords="offset points",
        ha="center", va="top", multialignment="left", color="0.9", fontsize=10,
    )  # fmt: skip
    figure.add_artist(told)
    figure.text(0.5, 0.04 / height_in, footnote, color="0.8", fontsize=9, ha="center", va="bottom")
    return figure


def _to_lps(volume: Volume) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which voxel axis lies closest to L, P, S, and whether it runs the other way."""
    axes = volume.axes
    remaining, order, flips = [0, 1, 2], [], []
    for patient_axis in range(3):
        best = max(remaining, key=lambda voxel_axis: abs(axes[patient_axis, voxel_axis]))
        remaining.remove(best)
        order.append(best)
        flips.append(bool(axes[patient_axis, best] < 0))
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


@dataclass(frozen=True, slots=True)
class _Turn:
    """(Z, Y, X) of the scanner → (L, P, S) of the patient, nearest axes, for display."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def __call__(self, data: Array) -> Array:
        turned = data.transpose(2, 1, 0).transpose(self.order)
        return np.ascontiguousarray(np.flip(turned, tuple(axis for axis in range(3) if self.flips[axis])))


def _grey(volume: Array, white: float) -> Array:
    """Real-world values as shades, 0 black … 1 white."""
    shades: Array = np.clip(volume / np.float32(white), 0, 1) ** np.float32(GAMMA)
    return shades


def _structure(volume: Array, seen: Array, spacing: npt.NDArray[np.float64]) -> Array:
    """How much of an edge there is at each voxel, 0 none … 1 a strong one; 0 at the end of what is seen."""
    known = np.where(seen > 0, volume, np.float32(np.nan))
    slopes = [np.gradient(known, spacing[axis], axis=axis) for axis in range(3)]
    gradient = np.nan_to_num(np.sqrt(sum(slope**2 for slope in slopes)))
    strong = float(np.percentile(gradient, EDGE_STRONG_PERCENTILE)) or 1.0
    share: Array = np.clip(gradient / strong, 0, 1).astype(np.float32)
    return share


def _slice_with_largest_shift(moved: Array, visible: Array, axis: int) -> int:
    """The slice where the most edges are moved, in the middle 60 % of what there is to see along this axis.

    visible: (L, P, S) shades of tissue, before and after. moved: these times structure and length of the
    shift.
    """
    others = tuple(a for a in range(3) if a != axis)
    tissue = np.cumsum(visible.sum(axis=others, dtype=np.float64))
    middle = (tissue >= 0.2 * tissue[-1]) & (tissue <= 0.8 * tissue[-1])
    shift = np.where(middle, moved.sum(axis=others), -1.0)
    return int(np.argmax(shift)) if middle.any() else len(tissue) // 2


def _plane(volume: Array, axis: int, index: int) -> Array:
    """A slice as a picture: rows downwards are P or I, columns rightwards are L or P."""
    plane: Array = np.take(volume, index, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def _plane_spacing(spacing: npt.NDArray[np.float64], axis: int) -> tuple[float, float]:
    """(row spacing, column spacing) of a picture perpendicular to an (L, P, S) axis."""
    horizontal, vertical = (a for a in range(3) if a != axis)
    return float(spacing[vertical]), float(spacing[horizontal])


def _image(plane: Array, spacing: tuple[float, float]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(plane, dtype=np.float32))
    image.SetSpacing((spacing[1], spacing[0]))
    size = [max(2, round(n * s / PIXEL_MM)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing((PIXEL_MM, PIXEL_MM))
    # the same field of view: voxel faces, not voxel centres, coincide
    grid.SetOrigin([(PIXEL_MM - s) / 2 for s in image.GetSpacing()])
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, 0.0)


def _resized(plane: Array, spacing: tuple[float, float]) -> Array:
    return np.asarray(sitk.GetArrayFromImage(_image(plane, spacing)))


def _edges(plane: Array, seen: Array, spacing: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Canny edges of `plane`, but none where its field of view ends. seen: 1 inside, 0 outside of it."""
    image = _image(plane, spacing)
    image.SetSpacing((1.0, 1.0))  # the Canny filter differentiates per pixel, whatever the spacing
    inside = sitk.BinaryErode(_image(seen, spacing) > 0.5, [round(END_MM / PIXEL_MM)] * 2)
    known = sitk.GetArrayFromImage(inside) > 0
    sigma = EDGE_SIGMA_MM / PIXEL_MM
    gradient = sitk.GetArrayFromImage(sitk.GradientMagnitudeRecursiveGaussian(image, sigma))
    strong = float(np.percentile(gradient[known], EDGE_STRONG_PERCENTILE)) if known.any() else 0.0
    if strong <= 0:
        return np.zeros_like(known)
    edges = sitk.CannyEdgeDetection(image, EDGE_WEAK_SHARE * strong, strong, [sigma**2] * 2, [0.05, 0.05])
    found: npt.NDArray[np.bool_] = (sitk.GetArrayFromImage(edges) > 0) & known
    return found


def _draw(axes: Axes, picture: Array, edges: npt.NDArray[np.bool_], title: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    overlay = np.zeros((*edges.shape, 4), dtype=np.float32)
    overlay[edges] = (*EDGE_COLOUR, 0.85)
    axes.imshow(overlay, interpolation="nearest")
    axes.set_title(title, color="white", fontsize=11)
    axes.set_axis_off()
