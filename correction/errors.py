"""What can go wrong in the engine. A poor result is not among these: that is the verdict's work.

CorrectionError
├── ShapeError          arrays or affines that do not fit together
├── UnusableImage       an image that carries nothing to register (empty, constant, not finite)
├── NoOverlap           the reference does not cover the distorted image
└── SettingsError       a setting out of its range, or unknown
"""


class CorrectionError(Exception):
    """Input that the engine cannot use; the message says which and what to do."""


class ShapeError(CorrectionError):
    """Arrays or affines that do not fit together."""


class UnusableImage(CorrectionError):
    """An image that carries nothing to register: empty, constant or not finite."""


class NoOverlap(CorrectionError):
    """The reference does not cover the distorted image."""


class SettingsError(CorrectionError):
    """A setting that is unknown or out of its range."""
