"""Syntax of unique identifiers (PS3.5 §9.1), and the two by which this implementation names itself."""

from __future__ import annotations

import re

MAX_UID_LENGTH = 64

# PS3.7 Annex D.3.3.2: one UID for all versions of this implementation, and a version name of at most 16
# characters; both go into A-ASSOCIATE and into the file meta of what we store.
IMPLEMENTATION_CLASS_UID = "2.25.109402038646478710063341516037486966359"
IMPLEMENTATION_VERSION_NAME = "DICOM_NODE_0"

# Components with leading zeros break the standard but occur in the field; refusing them would lose images.
_COMPONENTS = re.compile(r"[0-9]+(\.[0-9]+)+")


def normalise(uid: str) -> str:
    """`uid` without the padding that its encoding may carry: one trailing NUL or space (and no more)."""
    return uid[:-1] if uid.endswith(("\0", " ")) else uid


def is_acceptable(uid: str) -> bool:
    """Whether `uid` (normalised) is a UID that we store: digits and dots, no empty component, ≤ 64 long."""
    return len(uid) <= MAX_UID_LENGTH and _COMPONENTS.fullmatch(uid) is not None
