"""The command line: the list of commands, and how each of them ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dicom_node import __version__
from dicom_node.commands import correct, jobs, network, node
from dicom_node.config import ConfigError
from dicom_node.terminal import (
    BAD_INPUT,
    DEFAULT_CONFIG,
    OTHER,
    PEER,
    USAGE,
    Before,
    Missing,
    PeerProblem,
    UsageProblem,
    err,
    out,
)

COMMANDS = (
    node.serve, node.check, node.init, node.weights,
    correct.correct, correct.explain,
    network.send, network.echo,
    jobs.jobs, jobs.retry, jobs.release, jobs.withhold, jobs.withdraw,
    node.worker, jobs.reprocess,
    correct.demo,
)  # fmt: skip

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in a help text are brackets
    add_completion=False,
    help="Corrects the geometric distortion of diffusion-weighted MRI between scanner and PACS.",
)
for command in COMMANDS:
    app.command()(command)


def _exit_codes() -> tuple[tuple[type[Exception], int], ...]:
    """The first kind that an error is decides the exit code.

    Imported only when something went wrong: the engine takes seconds to import, `--help` should not.
    """
    from correction.errors import CorrectionError, SettingsError
    from dicom_node.demo import DemoFailed
    from dicom_node.headers import HeaderError
    from dicom_node.ledger import LedgerError
    from dicom_node.nifti import NiftiProblem
    from dicom_node.offline import InputProblem, WrongOption
    from dicom_node.preconditions import NodeError
    from dicom_node.reprocess import WrongUser
    from dicom_node.spool import SpoolError

    return (
        (UsageProblem, USAGE),
        (WrongOption, USAGE),
        (WrongUser, USAGE),
        (ConfigError, USAGE),
        (SettingsError, USAGE),
        (Missing, BAD_INPUT),
        (InputProblem, BAD_INPUT),
        (NiftiProblem, BAD_INPUT),
        (HeaderError, BAD_INPUT),
        (CorrectionError, BAD_INPUT),
        (LedgerError, BAD_INPUT),
        (PeerProblem, PEER),
        (NodeError, OTHER),
        (DemoFailed, OTHER),
        (SpoolError, OTHER),
        (OSError, OTHER),
    )


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"dicom-node {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="DICOM_NODE_CONFIG", help=f"Configuration [{DEFAULT_CONFIG}]."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # Everything slow is imported inside the commands: `--help` and `jobs` need no engine.
    Before.config, Before.debug = config, debug


def main() -> None:
    """Entry point: one sentence on stderr for what is known to go wrong, and its exit code."""
    try:
        app()
    except Exception as error:
        if Before.debug:
            raise
        for kind, code in _exit_codes():
            if isinstance(error, kind):
                _fail(_sentence(error), code)
        _fail(f"Unexpected {type(error).__name__}: {error} (--debug shows where).", OTHER)
    except KeyboardInterrupt:
        _fail("Stopped.", 130)


def _sentence(error: Exception) -> str:
    """What an error says; to the system's own, the file and the words that it lacks are added."""
    if isinstance(error, PermissionError) and error.filename:
        return (
            f"{error.filename} cannot be used by this user; what is the node's own, its user may use: "
            "sudo -u dicom-node dicom-node …"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be used: {error.strerror}."
    return str(error)


def _fail(text: str, code: int) -> NoReturn:
    err.print(text, style="red" if err.is_terminal else None, markup=False)
    sys.exit(code)
