"""What must be so before the node can start; what is not is said in one sentence, with the way out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import sqlite3
from pathlib import Path
from typing import IO

from dicom_node.ledger import Ledger
from dicom_node.rebuild import open_ledger
from dicom_node.spool import Spool, SpoolError

_WAYS_OUT = {
    errno.EADDRINUSE: "another program uses it; stop that one, or set {key}.port to a free one",
    errno.EACCES: "a port below 1024 needs privileges; see docs/install.md, Port 104",
    errno.EADDRNOTAVAIL: "this machine has no such address; set {key}.bind to one of its own",
}


class NodeError(Exception):
    """The node cannot start; the message says why and what to do."""


def check_port(who: str, key: str, bind: str, port: int) -> None:
    """Whether `who` will be able to listen on `bind`:`port` (`key`.bind, `key`.port). Raises NodeError.

    Asked here because the programs that listen (a process of its own, uvicorn) end with a traceback.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError as error:
            way_out = _WAYS_OUT.get(
                error.errno or 0, f"{error.strerror or error}; mend {{key}}.bind or {{key}}.port"
            )
            raise NodeError(f"{who} cannot listen on {bind}:{port}: {way_out.format(key=key)}.") from error


def storage(root: Path, min_free_bytes: int) -> Spool:
    """The spool below the storage root. Raises NodeError."""
    try:
        return Spool(root, min_free_bytes)
    except SpoolError as error:
        text = str(error)
        raise NodeError(
            f"{text[:1].upper()}{text[1:]}; set storage.root to a folder on a local disk that the user of "
            "this service may write."
        ) from error


def lock(root: Path) -> IO[str]:
    """Hold the storage root for this process, as long as the returned file is open; raises NodeError.

    Two nodes on one root would delete each other's work. The lock goes with the process, however it ends.
    """
    file = (root / "node.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise NodeError(
            f"Another dicom-node is running on {root}; stop it first (systemctl stop dicom-node)."
        ) from None
    return file


def ledger(path: Path, spool: Spool) -> Ledger:
    """The ledger, rebuilt from disk where it is lost. Raises NodeError."""
    try:
        return open_ledger(path, spool)
    except (sqlite3.Error, SpoolError) as error:
        raise NodeError(f"The ledger {path} cannot be opened: {error}.") from error


def token(path: Path) -> str:
    """The token of the API. An empty one would let everybody in; raises NodeError."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise NodeError(f"The token file {path} (web.token_file) cannot be read: {error}.") from error
    if not text:
        raise NodeError(
            f"The token file {path} (web.token_file) is empty; write a long random token into it."
        )
    return text
