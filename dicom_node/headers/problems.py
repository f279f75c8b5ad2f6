"""What can be wrong with the files of a series.

HeaderError
├── Unreadable        a file that is no DICOM, is damaged, or whose pixels cannot be decoded
│   └── NoImage        it never was an image, so nothing is missing without it
└── GeometryProblem   images that do not form volumes: several orientations, no positions
    └── MissingSlices  they would, were the slices here that others of the series suggest
"""


class HeaderError(Exception):
    """The message is one sentence for a person; it names files and series, never a patient."""


class Unreadable(HeaderError):
    """A file that is no DICOM, is damaged, or whose pixels cannot be decoded."""


class NoImage(Unreadable):
    """A file that never was an image: no DICOM, or an index of other files."""


class GeometryProblem(HeaderError):
    """Images of one series that cannot be stacked into volumes."""


class MissingSlices(GeometryProblem):
    """Images that would form volumes, were some slices not missing: those may still arrive."""
