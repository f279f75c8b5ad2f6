"""Jobs, and a person's decisions about them: jobs, retry, release, withhold, withdraw, reprocess."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dicom_node.terminal import (
    Json,
    Missing,
    UsageProblem,
    configured,
    err,
    ledger_of,
    out,
    print_json,
)


def jobs(
    job_id: Annotated[int | None, typer.Argument(metavar="ID", help="One job, with its events.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List what happened and is happening."""
    from dicom_node.jobs import job_document, jobs_document
    from dicom_node.states import JobState

    unknown = sorted(set(state or ()) - set(JobState))
    if unknown:
        raise UsageProblem(f"'{unknown[0]}' is no state; states are: {', '.join(JobState)}.")
    ledger = ledger_of(configured())
    if job_id is not None:
        document = job_document(ledger, job_id)
        if as_json:
            print_json(document)
        else:
            _print_job(document)
        return
    states = [JobState(text) for text in state or ()]
    pages = _pages(lambda after: jobs_document(ledger, states, after=after))
    if as_json:
        print_json({"jobs": pages, "next": None})
        return
    table = Table("job", "series", "state", "since (UTC)", "verdict", "why", box=None)
    for job in pages:
        why = job["reason"]["text"] if job["reason"] else ""
        cells = (
            job["id"],
            job["series_number"],
            job["state"],
            _moment(job["changed"]),
            job["verdict"] or "",
            why,
        )
        table.add_row(*(Text(str(cell)) for cell in cells))  # Text: brackets in a reason are no markup
    out.print(table if pages else "No job yet.")


def _pages(page: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        document = page(after)
        found += document["jobs"]
        after = document["next"]
    return found


def _moment(time: str) -> str:
    """A time of the document for people, who know that it is UTC."""
    return time.replace("T", " ").removesuffix("+00:00")


def _print_job(document: dict[str, Any]) -> None:
    out.print(
        f"job {document['id']}: series {document['series_number']}, {document['state']}; times in UTC",
        markup=False,
    )
    if document["reason"]:
        out.print(document["reason"]["text"], markup=False)
    for event in document["events"]:
        who = f" by {event['who']}" if event["who"] else ""
        why = f": {event['reason']['text']}" if event["reason"] else ""
        out.print(
            f"  {_moment(event['at'])}  {event['from'] or 'new'} → {event['to']}{who}{why}", markup=False
        )
    for delivery in document["deliveries"]:
        why = f": {delivery['reason']['text']}" if delivery["reason"] else ""
        tries = f"{delivery['attempts']} attempt{'' if delivery['attempts'] == 1 else 's'}"
        out.print(f"  to {delivery['destination']}: {delivery['state']}, {tries}{why}", markup=False)
    for note in document["withdrawals"]:
        why = f": {note['reason']['text']}" if note["reason"] else ""
        out.print(f"  rejection to {note['destination']}: {note['state']}{why}", markup=False)
    for candidate in document["choice"] or ():
        out.print(f"  reference series {candidate['series_number']}: {candidate['why']}", markup=False)


def _who() -> str:
    """Who decides: the user's name, or the number where the system knows no name (a container, say)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


JobId = Annotated[int, typer.Argument(metavar="ID", help="The number of the job.")]


def retry(job_id: JobId) -> None:
    """Try a failed, withheld or skipped job again."""
    from dicom_node import decisions

    job = decisions.retry(ledger_of(configured()), job_id, _who())
    out.print(f"Job {job.id} is {job.state}.")


def release(job_id: JobId) -> None:
    """Send a withheld result after all."""
    from dicom_node import decisions

    settings = configured()
    job = decisions.release(ledger_of(settings), job_id, _who(), settings.deliver_to)
    out.print(f"Job {job.id} is {job.state}.")


def withhold(job_id: JobId) -> None:
    """Keep a result from being sent."""
    from dicom_node import decisions

    job = decisions.withhold(ledger_of(configured()), job_id, _who())
    out.print(f"Job {job.id} is {job.state}.")


def withdraw(job_id: JobId) -> None:
    """Take back what was sent: tell those who have it to reject it."""
    from dicom_node import decisions

    settings = configured()
    job = decisions.withdraw(ledger_of(settings), job_id, _who(), settings.deliver_to)
    out.print(f"Job {job.id} is {job.state}: {job.reason_text}.", markup=False)


def reprocess(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Folders or files of an archive.")],
    as_json: Json = False,
) -> None:
    """Take an archive's files as if a scanner had sent them.

    Run again, it goes on where it was stopped.
    """
    from dicom_node.headers import files_below
    from dicom_node.ledger import Ledger, path_below
    from dicom_node.progress import shown
    from dicom_node.reprocess import reprocess as take
    from dicom_node.spool import Spool

    for path in paths:
        if not path.exists():
            raise Missing(f"{path} does not exist.")
    storage = configured().storage
    files = list(files_below(paths))
    with shown(err) as progress:
        done = take(
            Ledger(path_below(storage.root)),
            Spool(storage.root, storage.min_free_bytes),
            files,
            lambda number, of: progress("reprocess", f"{number} of {of} files", number / of),
        )
    if as_json:
        print_json(asdict(done))
    elif done.taken + done.known:
        out.print(
            f"{done.taken} images taken, {done.known} were here already, {done.unusable} other files left "
            "out. The running node takes it from here; `dicom-node jobs` shows what becomes of it.",
            markup=False,
        )
    if not done.taken + done.known:
        raise Missing(f"There is no DICOM image in {', '.join(map(str, paths))}.")
