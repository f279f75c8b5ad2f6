"""Corrected volumes → the derived DICOM series, with where it comes from."""

from __future__ import annotations

from dicom_node.derive.policy import CompanionPolicy, DerivePolicy, OutputGrid
from dicom_node.derive.provenance import Provenance
from dicom_node.derive.regrid import on_reference_grid
from dicom_node.derive.series import Written, derive, derived_series_uid

__all__ = [
    "CompanionPolicy",
    "DerivePolicy",
    "OutputGrid",
    "Provenance",
    "Written",
    "derive",
    "derived_series_uid",
    "on_reference_grid",
]
