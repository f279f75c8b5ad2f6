"""Progress of long work: a bar on a terminal, plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_AFTER_S = 2.0  # work shorter than this needs no line

Report = Callable[[str, str, float], None]


@contextmanager
def shown(console: Console) -> Iterator[Report]:
    """`report(what, stage, fraction)` shows how far `what` is; fraction 0…1 of its stage."""
    if console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield _lines(console)


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, object] = {}

        def report(what: str, stage: str, fraction: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0, stage=stage)
            progress.update(tasks[what], completed=fraction, stage=stage)  # type: ignore[arg-type]

        yield report


def _lines(console: Console) -> Report:
    started = time.monotonic()
    told: dict[str, str] = {}

    def report(what: str, stage: str, fraction: float) -> None:
        elapsed_s = time.monotonic() - started
        if told.get(what) != stage and elapsed_s >= PLAIN_AFTER_S:
            console.print(f"{what}: {stage} ({elapsed_s:.0f} s)", highlight=False)
            told[what] = stage

    return report
