"""What systemd is told of the service."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); does nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        # an abstract socket's name starts with a zero byte, written as @ in the environment
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(message.encode())
