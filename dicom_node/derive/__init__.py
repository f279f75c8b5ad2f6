"""Corrected volumes → the derived DICOM series, with where it comes from (DICOM.md §6)."""

from __future__ import annotations

from dicom_node.derive.instances import derive, derived_series_uid
from dicom_node.derive.provenance import Provenance
from dicom_node.derive.series_header import DerivePolicy

__all__ = ["DerivePolicy", "Provenance", "derive", "derived_series_uid"]
