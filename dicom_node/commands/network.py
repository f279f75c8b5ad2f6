"""As a peer of others: send, echo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.terminal import (
    PEER,
    Json,
    Missing,
    PeerProblem,
    UsageProblem,
    configured,
    configured_or_none,
    err,
    out,
    print_json,
)


def send(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A DICOM file or folder.")],
    to: Annotated[str, typer.Option(help="A configured destination, or AET@HOST:PORT.")],
    as_json: Json = False,
) -> None:
    """Send DICOM files to a node (C-STORE)."""
    from dicom_node.headers import files_below
    from dicom_node.progress import shown
    from dicom_node.scu import store
    from dicom_node.sending import dicom_files, peer_named

    if not path.exists():
        raise Missing(f"{path} does not exist.")
    peer = peer_named(to, configured_or_none())
    files, others = dicom_files(files_below([path]))
    if not files:
        raise Missing(f"There is no DICOM file in {path}.")
    done = 0
    with shown(err) as progress:

        def tell(_status: object) -> None:
            nonlocal done
            done += 1
            progress(f"to {peer}", f"{done} of {len(files)}", done / len(files))

        result = store(peer, files, tell)
    arrived = sum(status.outcome.arrived for status in result.statuses)
    if as_json:
        problem = result.problem.text if result.problem else None
        refused = [{"file": str(status.path), "text": status.text} for status in result.refused]
        print_json({"sent": arrived, "of": len(files), "problem": problem, "refused": refused})
    else:
        left = f"; {others} other file{'' if others == 1 else 's'} left out" if others else ""
        out.print(f"{arrived} of {len(files)} instances sent to {peer}{left}.", markup=False)
    if not result.complete:
        first = result.refused[0].text if result.refused else "not every instance was answered"
        raise PeerProblem(result.problem.text if result.problem else first)


def echo(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Destinations, or AET@HOST:PORT; all when none is named."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask destinations whether they are there (C-ECHO)."""
    from dicom_node.scu import echo as ask
    from dicom_node.sending import peer_named

    settings = configured_or_none() if names else configured()
    wanted = names or list(settings.destinations if settings else ())
    if not wanted:
        raise UsageProblem("No destination is configured; name one as AET@HOST:PORT.")
    answers = [(name, ask(peer_named(name, settings))) for name in wanted]
    if as_json:
        print_json({
            "answers": [
                {"name": name, "seconds": a.seconds, "problem": a.problem.text if a.problem else None}
                for name, a in answers
            ]
        })  # fmt: skip
    else:
        for name, answer in answers:
            if answer.problem:
                own_name = "" if "@" in name else f"{name}: "  # a problem says AET@HOST:PORT itself
                err.print(f"{own_name}{answer.problem.text}", markup=False)
            else:
                out.print(f"{name}: answered in {answer.seconds:.2f} s", markup=False)
    if any(answer.problem for _, answer in answers):
        raise typer.Exit(PEER)
