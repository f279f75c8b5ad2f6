"""The node and its machine: serve, worker, check, init, weights."""

from __future__ import annotations

import re
import signal
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.config import template
from dicom_node.config_sections import SCHEDULER_ADDRESS
from dicom_node.terminal import (
    OTHER,
    PEER,
    Json,
    Missing,
    UsageProblem,
    configured,
    configured_or_none,
    out,
    print_json,
)


def serve() -> None:
    """Run the node: receive, correct, send. Ends with SIGTERM or Ctrl-C."""
    from dicom_node.log import configure
    from dicom_node.node import Node

    settings = configured()
    configure(settings.log)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    node = Node(settings)
    node.start()
    try:
        node.run(stop)
    finally:
        node.stop()


def worker(
    scheduler: Annotated[
        str, typer.Argument(metavar="SCHEDULER", help="The Dask scheduler, such as tls://gpu1:8786.")
    ],
) -> None:
    """Compute for a node elsewhere (correction.scheduler). Ends with SIGTERM or Ctrl-C."""
    import torch

    from dicom_node.config_sections import LogSettings
    from dicom_node.log import configure
    from dicom_node.workers import Scheduler, serve_worker

    settings = configured_or_none()
    tls = settings.correction.scheduler_tls if settings else None
    if not re.fullmatch(SCHEDULER_ADDRESS, scheduler):
        raise UsageProblem(f"'{scheduler}' is no scheduler; write an address such as tls://gpu1:8786.")
    if scheduler.startswith("tls://") and tls is None:
        raise UsageProblem(f"{scheduler} needs certificates: correction.scheduler_tls in --config FILE.")
    configure(settings.log if settings else LogSettings())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    where = Scheduler(scheduler, tls.ca, tls.certificate, tls.key) if tls else Scheduler(scheduler)
    with tempfile.TemporaryDirectory(prefix="dicom-node-worker-") as scratch:
        serve_worker(where, scratch=Path(scratch), gpu=torch.cuda.is_available(), stop=stop)


def check(as_json: Json = False) -> None:
    """Check configuration, disk, device and destinations."""
    from dicom_node.check import Mark, checks

    signs = {Mark.TICK: "[green]✓[/]", Mark.CROSS: "[red]✗[/]", Mark.REMARK: "[yellow]![/]"}
    made = []
    for item in checks(configured()):
        made.append(item)
        if not as_json:
            out.print(f"{signs[item.mark]} {item.what}: ", end="")
            out.print(item.text, markup=False)
    if as_json:
        print_json({"checks": [asdict(item) for item in made]})
    crossed = [item for item in made if item.mark is Mark.CROSS]
    if crossed:
        raise typer.Exit(PEER if all(item.peer for item in crossed) else OTHER)


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented configuration with every key and its default."""
    if path.exists():
        raise Missing(f"{path} exists; it is left as it is. Name another file.")
    try:
        path.write_text(template(), encoding="utf-8")
    except OSError as error:
        raise UsageProblem(f"{path} cannot be written ({error.strerror}); name another file.") from error
    out.print(
        f"{path} written. Set the AE title, the storage root and a destination, then `dicom-node check`."
    )


def weights(as_json: Json = False) -> None:
    """Show which matchers could be used here.

    For each its files of weights: where they lie, their hashes and licences.
    """
    from dicom_node.matcher_weights import survey

    settings = configured_or_none()
    wanted, folder = ("auto", None)
    if settings is not None:
        wanted, folder = settings.correction.matcher, settings.correction.weights_dir
    found = survey(folder)
    if as_json:
        print_json({"configured": wanted, "matchers": [asdict(item) for item in found]})
    else:
        for item in found:
            out.print("[green]✓[/] " if item.usable else "[red]✗[/] ", end="")
            out.print(item.matcher + (" (auto takes it)" if item.auto else ""), markup=False)
            for file in item.files:
                where = file.path or f"not found: {file.source}"
                out.print(f"    {file.name}: {where}", markup=False)
                out.print(
                    f"      {file.licence}" + (f"; SHA-256 {file.sha256}" if file.path else ""), markup=False
                )
            if item.problem and all(file.path for file in item.files):
                out.print(f"    {item.problem}", markup=False)
    if any(
        not item.usable and (item.matcher == wanted or (item.auto and wanted == "auto")) for item in found
    ):
        raise typer.Exit(OTHER)
