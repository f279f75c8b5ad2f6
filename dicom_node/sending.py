"""What a person sends, and where to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pydicom.misc import is_dicom

from dicom_node.association import Peer
from dicom_node.config import ConfigError, Settings
from dicom_node.config_parts import peers

DEFAULT_CALLING_AE = "DICOM-NODE"
_PEER = re.compile(r"(?P<ae>[^@\\]{1,16})@(?P<host>[^@\s]+):(?P<port>\d{1,5})")


def peer_named(text: str, settings: Settings | None) -> Peer:
    """A configured destination by name, or AET@HOST:PORT. Raises ConfigError."""
    known = peers(settings) if settings else {}
    if text in known:
        return known[text]
    match = _PEER.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        names = f"the configured ones are {', '.join(known)}" if known else "none are configured"
        raise ConfigError(f"'{text}' is no destination ({names}); write a name or AET@HOST:PORT.")
    calling = settings.node.ae_title if settings else DEFAULT_CALLING_AE
    return Peer(match["ae"], match["host"], int(match["port"]), calling)


def dicom_files(paths: Iterable[Path]) -> tuple[list[Path], int]:
    """The DICOM files among `paths`, and how many others there are."""
    files, others = [], 0
    for path in paths:
        if path.name != "DICOMDIR" and is_dicom(path):
            files.append(path)
        else:
            others += 1
    return files, others
