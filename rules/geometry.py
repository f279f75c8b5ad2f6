"""How two stacks of slices lie to each other: shared space and tilt. Patient LPS, millimetres."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from rules.facts import Box, Vec3

# An EPI field of view is larger than what lies in it: it has to be, or the far side would fold in along the
# phase-encode axis, and it is square by habit. A 3-D T1 is fitted to the head instead, so over a DWI of
# 256 mm it may be 170 mm wide and still hold every voxel of tissue. What counts is therefore the ellipse that
# tissue can fill: the in-plane field of view less this share on every side. Along the stack there is no such
# margin: somebody chose the first and the last slice.
IN_PLANE_MARGIN = 0.10

_FACE_TOLERANCE_MM = 1e-6  # points on a face are inside, whatever the last bit says


def _samples(count: int = 4096) -> npt.NDArray[np.float64]:
    """Points that fill the elliptical core of a unit box evenly, (N, 3), each coordinate in (−0.5, 0.5).

    The additive recurrence on powers of the root of x⁴ = x + 1 (Roberts 2018): no seed, no grid that an
    axis-parallel face could cut at an unlucky place; a share comes out right to about half a per cent.
    """
    root = 1.2207440846057596
    steps = np.outer(np.arange(1, count + 1), root ** -np.arange(1.0, 4.0))
    x, y, z = (np.mod(0.5 + steps, 1.0) - 0.5).T
    inside = x**2 + y**2 <= 0.25
    core = 1.0 - 2.0 * IN_PLANE_MARGIN
    return np.stack((x[inside] * core, y[inside] * core, z[inside]), axis=1)


_CORE = _samples()


def covered(stack: Box, by: Box) -> float:
    """The share (0 to 1) of the tissue region of `stack` that lies inside `by`.

    The tissue region is the ellipse inscribed in the plane less IN_PLANE_MARGIN, over the full height of the
    stack. Measured by fixed sample points in patient space, so any two orientations compare.
    """
    points = np.asarray(stack.centre) + (_CORE * np.asarray(stack.extent_mm)) @ np.asarray(stack.axes)
    local = (points - np.asarray(by.centre)) @ np.asarray(by.axes).T
    half = np.asarray(by.extent_mm) / 2 + _FACE_TOLERANCE_MM
    return float(np.mean(np.all(np.abs(local) <= half, axis=1)))


def tilt_deg(a: Box, b: Box) -> float:
    """The angle between the slices of two stacks, 0° (parallel) to 90°, whichever way they are counted."""
    return _angle_deg(a.axes[2], b.axes[2])


def _angle_deg(u: Vec3, v: Vec3) -> float:
    cosine = abs(sum(p * q for p, q in zip(u, v, strict=True)))
    return math.degrees(math.acos(min(1.0, cosine)))
