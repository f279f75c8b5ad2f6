"""Progress of long work: a bar on a terminal, plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_AFTER_S = 2.0  # work shorter than this needs no line
PLAIN_EVERY_S = 5.0  # a count that runs is told this often

Report = Callable[[str, str, float], None]


@contextmanager
def shown(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """`report(what, stage, fraction)` shows how far `what` is; fraction 0…1 of its stage."""
    if console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield _lines(console, clock)


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


def _lines(console: Console, clock: Callable[[], float]) -> Report:
    started = clock()
    told: dict[str, tuple[str, float]] = {}  # the last line about each: its stage, and when

    def report(what: str, stage: str, fraction: float) -> None:
        elapsed_s = clock() - started
        last, at_s = told.get(what, ("", 0.0))
        counts_on = _without_digits(stage) == _without_digits(last)
        wait_until_s = at_s + PLAIN_EVERY_S if counts_on else PLAIN_AFTER_S
        if stage != last and elapsed_s >= wait_until_s:
            console.print(f"{what}: {stage} ({elapsed_s:.0f} s)", highlight=False)
            told[what] = stage, elapsed_s

    return report


def _without_digits(stage: str) -> str:
    return "".join(letter for letter in stage if not letter.isdigit())
