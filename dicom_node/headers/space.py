"""Vectors of three numbers in patient LPS."""

from __future__ import annotations

import math
from functools import lru_cache

from rules.facts import Vec3

ORTHOGONAL_WITHIN = 1e-2  # DS text and de-identification round; more than this is no orientation


def dot(a: Vec3, b: Vec3) -> float:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vec3, b: Vec3) -> Vec3:
    """Vector product a × b."""
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def combine(*terms: tuple[float, Vec3]) -> Vec3:
    """Sum of factor × vector."""
    x, y, z = (sum(factor * vector[axis] for factor, vector in terms) for axis in range(3))
    return (x, y, z)


def norm(a: Vec3) -> float:
    """Length."""
    return math.sqrt(dot(a, a))


def unit(a: Vec3) -> Vec3 | None:
    """`a` at length 1; None for the zero vector."""
    length = norm(a)
    return (a[0] / length, a[1] / length, a[2] / length) if length > 1e-6 else None


@lru_cache(maxsize=256)
def plane(orientation: tuple[float, ...]) -> tuple[Vec3, Vec3] | None:
    """ImageOrientationPatient (0020,0037) as two exactly orthonormal vectors, along a row and along a column.

    None when the six numbers are no orientation.
    """
    if len(orientation) != 6:
        return None
    a, b, c, d, e, f = orientation
    row, column = unit((a, b, c)), unit((d, e, f))
    if row is None or column is None or abs(dot(row, column)) > ORTHOGONAL_WITHIN:
        return None
    column = unit(combine((1.0, column), (-dot(row, column), row)))
    return None if column is None else (row, column)
