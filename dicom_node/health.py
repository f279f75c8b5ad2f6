"""What the node says of itself at /health: each part, and one word for the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OK, STARTING = "ok", "starting"


@dataclass(frozen=True, slots=True)
class Parts:
    """How each part of the node is. destinations: what was wrong when last spoken to, or None."""

    started: bool
    listener: bool
    ledger: bool
    room: bool
    workers: int
    destinations: Mapping[str, str | None]


def health_document(parts: Parts) -> dict[str, Any]:
    """`status` starting, ok, degraded (works, somebody should look) or failing, and each check."""
    no_workers = "none is running" if parts.started else STARTING
    checks = {
        "listener": OK if parts.listener else "not running",
        "ledger": OK if parts.ledger else "cannot be read",
        "disk": OK if parts.room else "below storage.min_free_bytes: new images are refused",
        "workers": OK if parts.workers else no_workers,
        "destinations": {name: problem or OK for name, problem in parts.destinations.items()},
    }
    return {"status": _status(parts), "checks": checks}


def _status(parts: Parts) -> str:
    if not (parts.listener and parts.ledger):
        return "failing"
    if not parts.started:
        return STARTING
    if not parts.workers:
        return "failing"
    return "degraded" if not parts.room or any(parts.destinations.values()) else OK
