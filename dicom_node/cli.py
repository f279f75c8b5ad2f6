"""The command line: parses, calls, prints; decides nothing."""

from __future__ import annotations

import getpass
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import __version__
from dicom_node.config import ConfigError, Settings, load_config, template

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger

DONE, OTHER, USAGE, BAD_INPUT, REJECTED, PEER = 0, 1, 2, 3, 4, 5
DEFAULT_CONFIG = Path("/etc/dicom-node/config.yaml")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in a help text are brackets
    add_completion=False,
    help="Corrects the geometric distortion of diffusion-weighted MRI between scanner and PACS.",
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


class PeerProblem(Exception):
    """A peer could not be reached or refused; the message names it."""


class Missing(Exception):
    """Something that was named is not there; the message says what."""


class UsageProblem(Exception):
    """An option that cannot be understood; the message says what to write."""


def _exit_codes() -> tuple[tuple[type[Exception], int], ...]:
    """The first kind that an error is decides the exit code.

    Imported only when something went wrong: the engine takes seconds to import, `--help` should not.
    """
    from correction.errors import CorrectionError, SettingsError
    from dicom_node.demo import DemoFailed
    from dicom_node.headers import HeaderError
    from dicom_node.ledger import LedgerError
    from dicom_node.nifti import NiftiProblem
    from dicom_node.node import NodeError
    from dicom_node.offline import InputProblem, WrongOption
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


class _Globals:
    """What stands before the command."""

    config: Path | None = None
    debug: bool = False


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
    _Globals.config, _Globals.debug = config, debug


def main() -> None:
    """Entry point: one sentence on stderr for what is known to go wrong, and its exit code."""
    try:
        app()
    except Exception as error:
        if _Globals.debug:
            raise
        for kind, code in _exit_codes():
            if isinstance(error, kind):
                _fail(str(error), code)
        _fail(f"Unexpected {type(error).__name__}: {error} (--debug shows where).", OTHER)
    except KeyboardInterrupt:
        _fail("Stopped.", 130)


def _fail(text: str, code: int) -> NoReturn:
    err.print(text, style="red" if err.is_terminal else None, markup=False)
    sys.exit(code)


def _settings() -> Settings:
    """The configuration: --config, DICOM_NODE_CONFIG, else the default path. Raises ConfigError."""
    path = _Globals.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if path is None and not any(name.startswith("DICOM_NODE__") for name in os.environ):
        raise ConfigError(
            f"There is no configuration: {DEFAULT_CONFIG} does not exist. "
            "Write one with `dicom-node init`, and name it with --config FILE."
        )
    return load_config(path, os.environ)


def _settings_if_named() -> Settings | None:
    """For commands that work without a configuration: the named one, the default one, or None."""
    return _settings() if _Globals.config or DEFAULT_CONFIG.exists() else None


def _ledger(settings: Settings) -> Ledger:
    from dicom_node.ledger import Ledger, path_below

    path = path_below(settings.storage.root)
    if not path.exists():
        raise Missing(f"There is no ledger at {path} yet; the first `dicom-node serve` makes it.")
    return Ledger(path)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, default=str))


# ------------------------------------------------------------------------------------------- the daemon


@app.command()
def serve() -> None:
    """Run the node: receive, correct, send. Ends with SIGTERM or Ctrl-C."""
    from dicom_node.log import configure
    from dicom_node.node import Node

    settings = _settings()
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


@app.command()
def check(as_json: Json = False) -> None:
    """Look whether everything is here: configuration, disk, device, destinations."""
    from dicom_node.check import Mark, checks

    signs = {Mark.TICK: "[green]✓[/]", Mark.CROSS: "[red]✗[/]", Mark.REMARK: "[yellow]![/]"}
    made = []
    for item in checks(_settings()):
        made.append(item)
        if not as_json:
            out.print(f"{signs[item.mark]} {item.what}: ", end="")
            out.print(item.text, markup=False)
    if as_json:
        _print_json({"checks": [asdict(item) for item in made]})
    crossed = [item for item in made if item.mark is Mark.CROSS]
    if crossed:
        raise typer.Exit(PEER if all(item.peer for item in crossed) else OTHER)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented configuration with every key and its default."""
    if path.exists():
        raise Missing(f"{path} exists; it is left as it is. Name another file.")
    path.write_text(template(), encoding="utf-8")
    out.print(
        f"{path} written. Set the AE title, the storage root and a destination, then `dicom-node check`."
    )


@app.command()
def weights(as_json: Json = False) -> None:
    """Show which matcher weights are found, where, with their hashes and licences."""
    from dicom_node.matcher_weights import survey

    settings = _settings_if_named()
    wanted, folder = ("auto", None)
    if settings is not None:
        wanted, folder = settings.correction.matcher, settings.correction.weights_dir
    found = survey(folder)
    if as_json:
        _print_json({"configured": wanted, "matchers": [asdict(item) for item in found]})
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


# ------------------------------------------------------------------------------------------ one correction


@app.command()
def correct(
    inputs: Annotated[list[Path], typer.Argument(help="A DICOM folder, or one NIfTI DWI.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the results go.")],
    reference: Annotated[
        Path | None, typer.Option(help="The anatomical image; DICOM input chooses by itself.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="clinical or paper.")] = None,
    matcher: Annotated[
        str | None,
        typer.Option(help="Landmarks: auto, none, or a matcher that `dicom-node weights` lists."),
    ] = None,
    phase_encoding: Annotated[
        str | None, typer.Option(help="i, i-, j, j-, k, k-, or none for free 3-D.")
    ] = None,
    total_readout_time: Annotated[float | None, typer.Option(help="Seconds, for figures in Hz.")] = None,
    bval: Annotated[Path | None, typer.Option(help="b-values of a NIfTI DWI.")] = None,
    bvec: Annotated[Path | None, typer.Option(help="b-vectors of a NIfTI DWI; copied.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same field.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
    settings_texts: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the method.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Correct a study or a NIfTI image here and now, without a network."""
    from dicom_node.compute import Recipe
    from dicom_node.derive import DerivePolicy
    from dicom_node.node import derive_policy, pairing_policy, recipe
    from dicom_node.offline import Request, correct_input
    from dicom_node.progress import shown
    from rules.pair import PairingPolicy

    settings = _settings_if_named()
    base = recipe(settings) if settings else Recipe()
    named = [_key_value(text) for text in settings_texts or ()]
    request = Request(
        inputs=tuple(inputs),
        out=out_dir,
        reference=reference,
        recipe=Recipe(
            method=method or base.method,
            # the configured settings belong to the configured method
            overrides=(*(base.overrides if method in (None, base.method) else ()), *named),
            seed=seed,
            device=device or base.device,
            modulate=base.modulate,
            matcher=matcher or base.matcher,
            weights_dir=base.weights_dir,
        ),
        phase_encoding=phase_encoding,
        total_readout_s=total_readout_time,
        b_values=bval,
        b_vectors=bvec,
        pairing=pairing_policy(settings) if settings else PairingPolicy(),
        derive=derive_policy(settings) if settings else DerivePolicy(),
    )
    with shown(err) as progress:
        report = correct_input(request, progress)
    if as_json:
        _print_json(asdict(report))
    else:
        for result in report.results:
            out.print(
                f"{result.name}: corrected with {result.reference}, verdict {result.verdict}, displacement "
                f"{result.rms_mm:.1f} mm typically, {result.max_mm:.1f} mm at most; {result.seconds:.0f} s.",
                markup=False,
            )
            if result.verdict_text:
                out.print(f"  {result.verdict_text}", markup=False)
            out.print(f"  Files in {result.out}; look at {result.out / 'qc.png'}.", markup=False)
        for item in report.skipped:
            out.print(f"{item.name}: not corrected: {item.text}", markup=False)
        if report.unreadable:
            files = "1 file" if len(report.unreadable) == 1 else f"{len(report.unreadable)} files"
            out.print(f"{files} could not be read, the first: {report.unreadable[0]}", markup=False)
    if report.rejected:
        raise typer.Exit(REJECTED)


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageProblem(f"'{text}' is no setting; write --set KEY=VALUE.")
    return key.strip(), value.strip()


@app.command()
def explain(
    path: Annotated[Path, typer.Argument(help="A folder with DICOM files.")],
    as_json: Json = False,
) -> None:
    """Say what each series is and why, and which reference each diffusion series would get."""
    from dicom_node.explain import explain as explain_paths
    from dicom_node.explain import render
    from dicom_node.node import pairing_policy
    from dicom_node.progress import shown

    if not path.exists():
        raise Missing(f"{path} does not exist.")
    settings = _settings_if_named()
    with shown(err) as progress:

        def read(done: int, files: int) -> None:
            progress(str(path), f"reading {files} files", done / max(files, 1))

        explanation = explain_paths([path], pairing_policy(settings) if settings else None, read)
    if as_json:
        _print_json(asdict(explanation))
    else:
        # wrapped at the width of the terminal; a pipe has none
        Console(highlight=False, width=None if out.is_terminal else 100).print(render(explanation))
    if not explanation.series:
        raise Missing(f"There is no readable DICOM image in {path}.")


# ------------------------------------------------------------------------------------------------- network


@app.command()
def send(
    path: Annotated[Path, typer.Argument(help="A DICOM file or folder.")],
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
    peer = peer_named(to, _settings_if_named())
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
        _print_json({"sent": arrived, "of": len(files), "problem": problem, "refused": refused})
    else:
        left = f"; {others} other files left out" if others else ""
        out.print(f"{arrived} of {len(files)} instances sent to {peer}{left}.", markup=False)
    if not result.complete:
        first = result.refused[0].text if result.refused else "not every instance was answered"
        raise PeerProblem(result.problem.text if result.problem else first)


@app.command()
def echo(
    names: Annotated[
        list[str] | None, typer.Argument(help="Destinations, or AET@HOST:PORT; all when none is named.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask destinations whether they are there (C-ECHO)."""
    from dicom_node.scu import echo as ask
    from dicom_node.sending import peer_named

    settings = _settings_if_named() if names else _settings()
    wanted = names or list(settings.destinations if settings else ())
    if not wanted:
        raise UsageProblem("No destination is configured; name one as AET@HOST:PORT.")
    answers = [(name, ask(peer_named(name, settings))) for name in wanted]
    if as_json:
        _print_json({
            "answers": [
                {"name": name, "seconds": a.seconds, "problem": a.problem.text if a.problem else None}
                for name, a in answers
            ]
        })  # fmt: skip
    else:
        for name, answer in answers:
            if answer.problem:
                err.print(f"{name}: {answer.problem.text}", markup=False)
            else:
                out.print(f"{name}: answered in {answer.seconds:.2f} s", markup=False)
    if any(answer.problem for _, answer in answers):
        raise typer.Exit(PEER)


# ---------------------------------------------------------------------------------------------------- jobs


@app.command()
def jobs(
    job_id: Annotated[int | None, typer.Argument(metavar="[ID]", help="One job, with its events.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List what happened and is happening."""
    from dicom_node.jobs import job_document, jobs_document
    from dicom_node.states import JobState

    unknown = sorted(set(state or ()) - set(JobState))
    if unknown:
        raise UsageProblem(f"'{unknown[0]}' is no state; states are: {', '.join(JobState)}.")
    ledger = _ledger(_settings())
    if job_id is not None:
        document = job_document(ledger, job_id)
        if as_json:
            _print_json(document)
        else:
            _print_job(document)
        return
    states = [JobState(text) for text in state or ()]
    pages = _pages(lambda after: jobs_document(ledger, states, after=after))
    if as_json:
        _print_json({"jobs": pages, "next": None})
        return
    table = Table("job", "series", "state", "since", "verdict", "why", box=None)
    for job in pages:
        why = job["reason"]["text"] if job["reason"] else ""
        cells = (job["id"], job["series_number"], job["state"], job["changed"], job["verdict"] or "", why)
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


def _print_job(document: dict[str, Any]) -> None:
    out.print(f"job {document['id']}: series {document['series_number']}, {document['state']}", markup=False)
    if document["reason"]:
        out.print(document["reason"]["text"], markup=False)
    for event in document["events"]:
        who = f" by {event['who']}" if event["who"] else ""
        why = f": {event['reason']['text']}" if event["reason"] else ""
        out.print(f"  {event['at']}  {event['from'] or 'new'} → {event['to']}{who}{why}", markup=False)
    for delivery in document["deliveries"]:
        why = f": {delivery['reason']['text']}" if delivery["reason"] else ""
        tries = f"{delivery['attempts']} attempts"
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


@app.command()
def retry(job_id: JobId) -> None:
    """Try a failed, withheld or skipped job again."""
    from dicom_node import decisions

    job = decisions.retry(_ledger(_settings()), job_id, _who())
    out.print(f"Job {job.id} is {job.state}.")


@app.command()
def release(job_id: JobId) -> None:
    """Send a withheld result after all."""
    from dicom_node import decisions

    settings = _settings()
    job = decisions.release(_ledger(settings), job_id, _who(), settings.deliver_to)
    out.print(f"Job {job.id} is {job.state}.")


@app.command()
def withhold(job_id: JobId) -> None:
    """Keep a result from being sent."""
    from dicom_node import decisions

    job = decisions.withhold(_ledger(_settings()), job_id, _who())
    out.print(f"Job {job.id} is {job.state}.")


@app.command()
def withdraw(job_id: JobId) -> None:
    """Take back what was sent: tell those who have it to reject it."""
    from dicom_node import decisions

    settings = _settings()
    job = decisions.withdraw(_ledger(settings), job_id, _who(), settings.deliver_to)
    out.print(f"Job {job.id} is {job.state}: {job.reason_text}.", markup=False)


# --------------------------------------------------------------------------------------------------- scale


@app.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="The Dask scheduler, such as tls://gpu1:8786.")],
) -> None:
    """Compute for a node elsewhere (correction.scheduler). Ends with SIGTERM or Ctrl-C."""
    import torch

    from dicom_node.config import LogSettings
    from dicom_node.log import configure
    from dicom_node.workers import Scheduler, serve_worker

    settings = _settings_if_named()
    tls = settings.correction.scheduler_tls if settings else None
    if scheduler.startswith("tls://") and tls is None:
        raise UsageProblem(f"{scheduler} needs certificates: correction.scheduler_tls in --config FILE.")
    configure(settings.log if settings else LogSettings())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    where = Scheduler(scheduler, tls.ca, tls.certificate, tls.key) if tls else Scheduler(scheduler)
    with tempfile.TemporaryDirectory(prefix="dicom-node-worker-") as scratch:
        serve_worker(where, scratch=Path(scratch), gpu=torch.cuda.is_available(), stop=stop)


@app.command()
def reprocess(
    paths: Annotated[list[Path], typer.Argument(help="Folders or files of an archive.")],
    as_json: Json = False,
) -> None:
    """Take an archive's files as if a scanner had sent them; run again, it goes on where it stopped."""
    from dicom_node.headers import files_below
    from dicom_node.ledger import Ledger, path_below
    from dicom_node.progress import shown
    from dicom_node.reprocess import reprocess as take
    from dicom_node.spool import Spool

    for path in paths:
        if not path.exists():
            raise Missing(f"{path} does not exist.")
    storage = _settings().storage
    files = list(files_below(paths))
    with shown(err) as progress:
        done = take(
            Ledger(path_below(storage.root)),
            Spool(storage.root, storage.min_free_bytes),
            files,
            lambda number, of: progress("reprocess", f"{number} of {of} files", number / of),
        )
    if as_json:
        _print_json(asdict(done))
    else:
        out.print(
            f"{done.taken} images taken, {done.known} were here already, {done.unusable} files are none. "
            "The running node takes it from here; `dicom-node jobs` shows what becomes of it.",
            markup=False,
        )
    if not done.taken + done.known:
        raise Missing(f"There is no DICOM image in {', '.join(map(str, paths))}.")


# ---------------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    study: Annotated[
        Path | None, typer.Option(help="A DICOM folder to send instead of the synthetic head.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep everything that was made in this folder.")] = None,
) -> None:
    """Show the whole chain on this machine: a scanner, the node and an archive, on loopback."""
    from dicom_node.demo import run_demo
    from dicom_node.progress import shown

    if study is not None and not study.exists():
        raise Missing(f"{study} does not exist.")
    with shown(err) as progress:
        shown_demo = run_demo(study, keep, progress)
    for line in shown_demo.lines():
        out.print(line, markup=False)
    if not shown_demo.good:
        raise typer.Exit(OTHER)
