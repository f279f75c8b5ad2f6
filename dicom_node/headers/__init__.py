"""DICOM headers → typed facts: the only place that reads attributes to decide something."""

from __future__ import annotations

from dicom_node.headers.arrange import arrange
from dicom_node.headers.folder import Progress, Reading, UnreadableFile, files_below, read_series
from dicom_node.headers.instance import Arrangement, FrameFacts, InstanceFacts, VolumeFacts
from dicom_node.headers.problems import GeometryProblem, HeaderError, Unreadable
from dicom_node.headers.read import read_instance
from dicom_node.headers.series import summarise
from dicom_node.headers.stored import StoredPixels

__all__ = [
    "Arrangement",
    "FrameFacts",
    "GeometryProblem",
    "HeaderError",
    "InstanceFacts",
    "Progress",
    "Reading",
    "StoredPixels",
    "Unreadable",
    "UnreadableFile",
    "VolumeFacts",
    "arrange",
    "files_below",
    "read_instance",
    "read_series",
    "summarise",
]
