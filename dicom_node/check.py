"""`dicom-node check`: is everything here that the node needs? A list of ticks and crosses."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch

from correction.errors import SettingsError
from correction.landmarks import WeightsError, matchers, mind_blocks
from correction.landmarks.weights import APACHE
from dicom_node.config import Settings, remarks
from dicom_node.config_parts import peers, recipe
from dicom_node.ledger import Ledger, path_below
from dicom_node.scu import echo


class Mark(StrEnum):
    """How a check came out; REMARK is allowed but should be known."""

    TICK = "ok"
    CROSS = "failed"
    REMARK = "remark"


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `peer`: it is about another machine, not this one."""

    what: str
    mark: Mark
    text: str
    peer: bool = False


def checks(settings: Settings) -> Iterator[Check]:
    """Every check, as soon as it is made; those of destinations may take seconds."""
    yield Check("configuration", Mark.TICK, f"AE title {settings.node.ae_title}, port {settings.node.port}")
    for text in remarks(settings):
        yield Check("configuration", Mark.REMARK, text)
    yield _disk(settings)
    yield _ledger(settings)
    yield _engine(settings)
    yield _matcher(settings)
    yield _device(settings)
    for name, peer in peers(settings).items():
        answer = echo(peer)
        if answer.problem is None:
            yield Check(
                f"destination {name}", Mark.TICK, f"{peer} answered in {answer.seconds:.2f} s", peer=True
            )
        else:
            yield Check(f"destination {name}", Mark.CROSS, answer.problem.text, peer=True)


def _disk(settings: Settings) -> Check:
    """Room, and the right to write. Makes nothing: who checks is seldom the user that the node runs as."""
    root, needed = settings.storage.root, settings.storage.min_free_bytes
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        text = f"{there} cannot be written by this user; give this user the folder or change storage.root"
        return Check("disk", Mark.CROSS, text)
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:.1f} GiB free below {root}" + ("" if there == root else ", which will be made")
    if free < needed:
        wanted = f"storage.min_free_bytes asks for {needed / 2**30:.1f} GiB"
        return Check("disk", Mark.CROSS, f"{text}; {wanted}, so new images are refused: free some space")
    return Check("disk", Mark.TICK, text)


def _ledger(settings: Settings) -> Check:
    path = path_below(settings.storage.root)
    if not path.exists():
        return Check("ledger", Mark.TICK, "will be made at the first start")
    try:
        ledger = Ledger(path)
        counts = ledger.count_jobs()
        ledger.close()
    except (sqlite3.Error, OSError) as error:
        return Check("ledger", Mark.CROSS, f"{path} cannot be read ({error}); the log of the node tells more")
    told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no job yet"
    return Check("ledger", Mark.TICK, told)


def _engine(settings: Settings) -> Check:
    try:
        recipe(settings).settings()
    except SettingsError as error:
        return Check("correction", Mark.CROSS, f"{error} Mend correction.settings.")
    return Check("correction", Mark.TICK, f"method {settings.correction.method}")


def _matcher(settings: Settings) -> Check:
    """The configured matcher, with its weights read and compared with their hashes."""
    name, folder = settings.correction.matcher, settings.correction.weights_dir
    if name in ("none", mind_blocks.NAME):
        return Check("matcher", Mark.TICK, name)
    try:
        found = matchers.matcher(matchers.AUTO if name == "auto" else name, folder)
    except WeightsError as error:
        if name == "auto":
            return Check("matcher", Mark.REMARK, f"auto takes {mind_blocks.NAME}: {error}")
        return Check("matcher", Mark.CROSS, str(error))
    if restricted := sorted(
        f"{file.name}: {file.licence}" for file in matchers.FILES[found.name] if file.licence != APACHE
    ):
        return Check(
            "matcher", Mark.REMARK, f"{found.name}, whose licence forbids most uses: {restricted[0]}"
        )
    return Check("matcher", Mark.TICK, found.name)


def _device(settings: Settings) -> Check:
    wanted = recipe(settings).resolved_device()
    if wanted == "cpu":
        return Check(
            "device", Mark.TICK, f"cpu, {torch.get_num_threads()} threads; a GPU is quicker, not better"
        )
    number = int(wanted.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU"
        return Check(
            "device", Mark.CROSS, f"{wanted} is asked for, but torch {torch.__version__} sees {seen}"
        )
    return Check("device", Mark.TICK, f"{wanted}: {torch.cuda.get_device_name(wanted)}")
