"""A certification authority for tests, and certificates signed by it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dicom_node.sockets import TlsSettings


def make_certificates(folder: Path) -> Path:
    """In `folder`: ca.pem; node.pem and peer.pem signed by it; stranger.pem by nobody. Keys beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    for name in ("ca", "stranger"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        _openssl(*new, "-subj", f"/CN=test {name}", *files)
    signed = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
    for name in ("node", "peer"):
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        _openssl(*new, "-subj", f"/CN={name}", *signed, *files, "-addext", "basicConstraints=CA:FALSE")
    return folder


def tls(folder: Path, name: str) -> TlsSettings:
    """The settings of the one whose certificate is `name`."""
    return TlsSettings(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
