"""What the landmarks around a landmark say about it.

A field over the sinuses changes by half a millimetre from one millimetre to the next: the median of the
neighbours would call every landmark there wrong. So each neighbourhood is described by a plane.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Array = npt.NDArray[np.float64]

NEIGHBOURS = 16
ROUNDS = 4  # of reweighting
LEAST_SCATTER_MM = 0.5  # of a neighbourhood: matches are whole pixels, agreement beyond that is chance
# of a slope of 1 per 10 mm: where the neighbours lie in one plane of space, they say nothing across it
_RIDGE = np.diag([1e-6, 0.3, 0.3, 0.3])
_UNIT_MM = 10.0


def planes(points: Array, shift: Array) -> tuple[Array, Array]:
    """What robust planes through the neighbours predict at each landmark, and their scatter; (N,) mm each.

    points: (N, 3) mm, shift: (N,) mm. A landmark has no part in its own prediction. With too few for a
    neighbourhood everything predicts itself.
    """
    if len(points) <= NEIGHBOURS:
        return shift.copy(), np.full(len(points), LEAST_SCATTER_MM)
    distance, near = cKDTree(points).query(points, k=NEIGHBOURS + 1)
    distance, near = distance[:, 1:], near[:, 1:]
    away = (points[near] - points[:, None]) / _UNIT_MM
    design = np.concatenate([np.ones((*near.shape, 1)), away], axis=2)
    wanted = shift[near]
    closeness = (1.0 - (0.999 * distance / np.maximum(distance[:, -1:], 1e-3)) ** 3) ** 3
    weight = closeness
    for _ in range(ROUNDS):
        weighted = design * weight[..., None]
        normal = np.einsum("nki,nkj->nij", weighted, design) + _RIDGE
        plane = np.linalg.solve(normal, np.einsum("nki,nk->ni", weighted, wanted)[..., None])[..., 0]
        residual = wanted - np.einsum("nki,ni->nk", design, plane)
        scatter = np.maximum(1.4826 * np.median(np.abs(residual), axis=1), LEAST_SCATTER_MM)
        weight = closeness / (1.0 + (residual / (1.5 * scatter[:, None])) ** 2) ** 2
    return plane[:, 0], scatter


def common_error(points: Array, off_axis: Array) -> float | None:
    """How far neighbours err together, mm; None where too few say so.

    points: (N, 3) mm; off_axis: (N,) mm, shifts along an axis in which nothing moved. What is left of them
    in the mean of a neighbourhood, beyond chance and a turn of the whole image, is no noise that averages
    out: corners found on the wrong side of an edge, say. Along phase encode the same happens unseen.
    """
    count = 24
    if len(points) < 2 * count:
        return None
    design = np.column_stack([np.ones(len(points)), points])
    left = off_axis - design @ np.linalg.lstsq(design, off_axis, rcond=None)[0]
    means = left[cKDTree(points).query(points, k=count)[1]].mean(axis=1)
    return float(np.sqrt(max(0.0, means.var() - left.var() / count)))
