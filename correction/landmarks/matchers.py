"""The matchers of two-dimensional images, by name.

A matcher is built when it is first asked for, and once in a process: a node that only receives never pays.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from correction.errors import SettingsError
from correction.landmarks.features import Matcher
from correction.landmarks.from_wheels import DiskLightGlue, XFeatLighterGlue
from correction.landmarks.minima import MinimaLightGlue, MinimaLoFTR
from correction.landmarks.weights import (
    DISK,
    DISK_LIGHTGLUE,
    LIGHTERGLUE,
    MINIMA_LIGHTGLUE,
    MINIMA_LOFTR,
    SUPERPOINT,
    XFEAT,
    WeightFile,
)

_BUILDERS = {kind.name: kind for kind in (XFeatLighterGlue, DiskLightGlue, MinimaLoFTR, MinimaLightGlue)}
AUTO = XFeatLighterGlue.name  # what "auto" takes where its weights are installed
# which files each one needs
FILES: dict[str, tuple[WeightFile, ...]] = {
    XFeatLighterGlue.name: (XFEAT, LIGHTERGLUE),
    DiskLightGlue.name: (DISK, DISK_LIGHTGLUE),
    MinimaLoFTR.name: (MINIMA_LOFTR,),
    MinimaLightGlue.name: (MINIMA_LIGHTGLUE, SUPERPOINT),
}


def matcher(name: str, weights_dir: Path | None = None, device: str = "cpu") -> Matcher:
    """The matcher of that name, built once in a process; raises SettingsError or WeightsError."""
    if name not in FILES:
        raise SettingsError(f"Unknown matcher {name!r}; there are: {', '.join(FILES)}.")
    return built(name, weights_dir, device)


@lru_cache(maxsize=4)
def built(name: str, weights_dir: Path | None, device: str) -> Matcher:
    return _BUILDERS[name](weights_dir, device)
