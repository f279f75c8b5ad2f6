"""A DICOM file (PS3.10) as the listener would know it from the network: its UIDs, its data set's hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dicom_node.file_meta import NotDicom, read_file_meta
from dicom_node.received import Identity, Unidentifiable, read_identity
from dicom_node.uids import is_acceptable

HEAD_BYTES = 16 << 20  # of the data set, for its UIDs; private groups may stand before them
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileInstance:
    """One instance in a file. offset: of the data set behind the file meta; sha256: of the data set."""

    path: Path
    identity: Identity
    transfer_syntax_uid: str
    calling_ae: str
    offset: int
    sha256: str
    size: int


def read_file(path: Path) -> FileInstance:
    """Identify a file. Raises Unidentifiable when it is no DICOM instance, OSError when it cannot be read."""
    try:
        meta = read_file_meta(path)
    except NotDicom as error:
        raise Unidentifiable(str(error)) from error
    syntax = meta.transfer_syntax_uid
    if not is_acceptable(syntax):
        raise Unidentifiable("its file meta information names no transfer syntax")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(meta.offset)
        head = file.read(HEAD_BYTES)
        digest.update(head)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        size = file.tell()
    return FileInstance(
        path=path,
        identity=read_identity(head, syntax),
        transfer_syntax_uid=syntax,
        calling_ae=meta.calling_ae,
        offset=meta.offset,
        sha256=digest.hexdigest(),
        size=size,
    )
