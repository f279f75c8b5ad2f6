"""A coarse head with a known distortion, and settings that correct it in a second or two.

The settings take any field for better than none, so that there is always a displacement to look at; how
good a field is, the tests of the engine ask.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from correction.phantom import PhantomCase, head_case
from dicom_node.phantom_study import PhantomStudy, weighted, write_phantom_study
from dicom_node.recipe import Recipe

SETTINGS = (
    ("coarse_voxel_mm", "6"),
    ("judge_voxel_mm", "6"),
    ("wide_voxel_mm", "8"),
    ("wide_spacings_mm", "60"),
    ("spacings_mm", "40,20"),
    ("label_step_mm", "2"),
    ("near_spacing_mm", "20"),
    ("near_step_mm", "2"),
    ("iterations", "4"),
    ("least_gain", "-1"),
    ("most_structure_ratio", "10"),
)
RECIPE = Recipe(device="cpu", overrides=SETTINGS, matcher="none")


@cache
def coarse_head() -> PhantomCase:
    """Voxels of 5 × 5 × 6 mm; a reference fine enough in plane to be accepted."""
    return head_case(1, voxel_mm=(5.0, 5.0, 6.0), reference_voxel_mm=(2.0, 2.0, 6.0))


def write_head_study(folder: Path) -> PhantomStudy:
    """The coarse head as DICOM: a T2 and a DWI with b = 0 and 1000."""
    case = coarse_head()
    return write_phantom_study(folder, case.reference, weighted(case.b0, (1000.0,), ((0.0, 0.0, 1.0),)), 1)
