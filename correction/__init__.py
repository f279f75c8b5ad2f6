"""Correction of EPI distortion: arrays and affines in, a displacement field and a verdict out.

    from correction import Volume, correct, methods
    result = correct(b0, reference, phase_encoding="j-", settings=methods.clinical())

Knows arrays, grids and millimetres; no DICOM, no files, no jobs.
"""

from correction import methods
from correction.engine import Correction, correct
from correction.errors import CorrectionError, NoOverlap, SettingsError, ShapeError, UnusableImage
from correction.landmarks import Landmarks
from correction.volume import Volume

__all__ = [
    "Correction",
    "CorrectionError",
    "Landmarks",
    "NoOverlap",
    "SettingsError",
    "ShapeError",
    "UnusableImage",
    "Volume",
    "correct",
    "methods",
]
