"""What all commands share: the terminal, the exit codes, the configuration that was named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dicom_node.config import ConfigError, Settings, load_config

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger

DONE, OTHER, USAGE, BAD_INPUT, REJECTED, PEER = 0, 1, 2, 3, 4, 5
DEFAULT_CONFIG = Path("/etc/dicom-node/config.yaml")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


class PeerProblem(Exception):
    """A peer could not be reached or refused; the message names it."""


class Missing(Exception):
    """Something that was named is not there; the message says what."""


class UsageProblem(Exception):
    """An option that cannot be understood; the message says what to write."""


class Before:
    """What stands before the command."""

    config: Path | None = None
    debug: bool = False


def configured() -> Settings:
    """The configuration: --config, DICOM_NODE_CONFIG, else the default path. Raises ConfigError."""
    path = Before.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if path is None and not any(name.startswith("DICOM_NODE__") for name in os.environ):
        raise ConfigError(
            f"There is no configuration: {DEFAULT_CONFIG} does not exist. "
            "Write one with `dicom-node init`, and name it with --config FILE."
        )
    return load_config(path, os.environ)


def configured_or_none() -> Settings | None:
    """For commands that work without a configuration: the named one, the default one, or None."""
    try:
        return configured() if Before.config or DEFAULT_CONFIG.exists() else None
    except PermissionError:  # somebody else's node on this machine
        err.print(f"{DEFAULT_CONFIG} cannot be read by this user: defaults hold.", markup=False)
        return None


def ledger_of(settings: Settings) -> Ledger:
    """The node's ledger. Raises Missing before the first `dicom-node serve` has made it."""
    from dicom_node.ledger import Ledger, path_below

    path = path_below(settings.storage.root)
    if not path.exists():
        raise Missing(f"There is no ledger at {path} yet; the first `dicom-node serve` makes it.")
    return Ledger(path)


def print_json(document: Any) -> None:
    """The one document of --json, on standard output."""
    print(json.dumps(document, indent=2, default=str))
