"""Without a network: correct, explain, demo."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dicom_node.terminal import (
    OTHER,
    REJECTED,
    Json,
    Missing,
    UsageProblem,
    configured_or_none,
    err,
    out,
    print_json,
)

if TYPE_CHECKING:
    from dicom_node.offline.request import Report, Request


def correct(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="A DICOM folder, or one NIfTI DWI.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the results go.")],
    reference: Annotated[
        Path | None, typer.Option(help="The anatomical image; DICOM input chooses by itself.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="clinical or paper; else the configuration's.")] = None,
    matcher: Annotated[
        str | None,
        typer.Option(help="Landmarks: auto, none, or a matcher that `dicom-node weights` lists."),
    ] = None,
    phase_encoding: Annotated[
        str | None,
        typer.Option(
            help="i, i-, j, j-, k, k-, or none for free 3-D; else what the header or the .json says."
        ),
    ] = None,
    total_readout_time: Annotated[float | None, typer.Option(help="Seconds, for figures in Hz.")] = None,
    bval: Annotated[
        Path | None, typer.Option(help="b-values of a NIfTI DWI; else the .bval beside it.")
    ] = None,
    bvec: Annotated[
        Path | None, typer.Option(help="b-vectors of a NIfTI DWI, copied; else the .bvec beside it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same field.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N; else the configuration's.")] = None,
    settings_texts: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of the method (their names: report.json)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Correct a study or a NIfTI image without a network."""
    from dicom_node.offline import correct_input
    from dicom_node.progress import shown

    configured = _as_configured(inputs, out_dir)
    base = configured.recipe
    named = [_key_value(text) for text in settings_texts or ()]
    request = replace(
        configured,
        reference=reference,
        recipe=replace(
            base,
            method=method or base.method,
            # the configured settings belong to the configured method
            overrides=(*(base.overrides if method in (None, base.method) else ()), *named),
            seed=seed,
            device=device or base.device,
            matcher=matcher or base.matcher,
        ),
        phase_encoding=phase_encoding,
        total_readout_s=total_readout_time,
        b_values=bval,
        b_vectors=bvec,
    )
    with shown(err) as progress:
        report = correct_input(request, progress)
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)
    if report.rejected:
        raise typer.Exit(REJECTED)


def _as_configured(inputs: list[Path], out_dir: Path) -> Request:
    """What is asked for where no option says otherwise: as the configuration has it, where there is one."""
    from dicom_node.config_parts import derive_policy, pairing_policy, recipe
    from dicom_node.offline import Request

    request = Request(tuple(inputs), out_dir)
    settings = configured_or_none()
    if settings is None:
        return request
    return replace(
        request,
        recipe=recipe(settings),
        pairing=pairing_policy(settings),
        derive=derive_policy(settings),
    )


def _print_report(report: Report) -> None:
    """What became of each series, for people."""
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
        files = "1 file was" if len(report.unreadable) == 1 else f"{len(report.unreadable)} files were"
        out.print(f"{files} left out, the first: {report.unreadable[0]}", markup=False)


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageProblem(f"'{text}' is no setting; write --set KEY=VALUE.")
    return key.strip(), value.strip()


def explain(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder with DICOM files.")],
    as_json: Json = False,
) -> None:
    """Say what each series is, which reference it would get, and why."""
    from dicom_node.config_parts import pairing_policy
    from dicom_node.explain import explain as explain_paths
    from dicom_node.explain import render
    from dicom_node.progress import shown

    if not path.exists():
        raise Missing(f"{path} does not exist.")
    settings = configured_or_none()
    with shown(err) as progress:

        def read(done: int, files: int) -> None:
            progress(str(path), f"reading {files} files", done / max(files, 1))

        explanation = explain_paths([path], pairing_policy(settings) if settings else None, read)
    if as_json:
        print_json(asdict(explanation))
    else:
        # wrapped at the width of the terminal; a pipe has none
        Console(highlight=False, width=None if out.is_terminal else 100).print(render(explanation))
    if not explanation.series:
        raise Missing(f"There is no readable DICOM image in {path}.")


def demo(
    study: Annotated[
        Path | None, typer.Option(help="A DICOM folder to send instead of the synthetic head.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep everything that was made in this folder.")] = None,
) -> None:
    """Show the whole chain on this machine.

    A scanner, the node and an archive, on loopback.
    """
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
