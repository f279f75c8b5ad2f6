"""Killed at any moment, the ledger lost, old or damaged: every DWI series still ends once, as before.

Here the node is one process that plays a story (crash_story.py) and kills itself at every durable step;
tests/peers/test_killed_processes.py kills the real processes.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from crash_story import Ending, Story, ending, forked, states, write_cases

from dicom_node.decisions import withhold
from dicom_node.ledger import Ledger, path_below
from dicom_node.states import DeliveryState, JobState, SeriesState

CASES = ("plain", "poor", "broken", "refused", "alone", "growing")
STEPS_OF_A_STUDY = 40  # at least; otherwise the steps are not counted any more


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a place: a killed process needs no disk, and hundreds are killed here."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dicom-node-test-", dir=base) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def calm(folder: Path) -> tuple[Story, Ending]:
    """Every case, on a day on which nothing goes wrong."""
    story = Story(folder / "calm", write_cases(folder / "files", CASES))
    forked(story)
    return story, ending(story)


@pytest.fixture(scope="module")
def plain(folder: Path, calm: tuple[Story, Ending]) -> tuple[Story, Ending]:
    """One study, on a day on which nothing goes wrong."""
    story = Story(folder / "plain", {"plain": calm[0].cases["plain"]})
    forked(story)
    return story, ending(story)


def fresh(story: Story, name: str, copy: bool = False) -> Story:
    """The same story in another folder, empty or as the first one left it."""
    other = replace(story, folder=story.folder.with_name(name))
    shutil.rmtree(other.folder, ignore_errors=True)
    if copy:
        shutil.copytree(story.folder, other.folder)
    return other


def test_on_a_calm_day_each_case_ends_as_it_should(calm: tuple[Story, Ending]) -> None:
    story, end = calm
    ends = {series: state for series, state, _, _ in end.jobs}
    assert ends == {case.dwi_series_uid: case.end for case in story.cases.values()}
    assert not end.left_over


@pytest.fixture(scope="module")
def walk(plain: tuple[Story, Ending]) -> dict[str, int]:
    """One study, killed at each durable step in turn: each state that was seen, and at which step first."""
    story, expected = plain
    seen: dict[str, int] = {}
    step = 1
    while (killed_at := forked(walked := fresh(story, "walked"), step)) is not None:
        for state in states(walked):
            seen.setdefault(state, step)
        forked(walked)
        assert ending(walked) == expected, f"killed at step {step}, {killed_at}"
        step += 1
    assert step > STEPS_OF_A_STUDY
    return seen


def killed_in(story: Story, walk: dict[str, int], state: str, name: str) -> Story:
    """The story, killed when something was in this state for the first time."""
    killed = fresh(story, name)
    assert forked(killed, walk[state]) is not None
    assert state in states(killed)
    return killed


@pytest.mark.slow
def test_killed_at_any_durable_step_a_study_ends_as_if_nothing_had_happened(walk: dict[str, int]) -> None:
    way = ("waiting", "queued", "correcting", "corrected", "sending", "sent", "committed")
    assert set(walk) >= {f"job {state}" for state in way}


@pytest.mark.slow
def test_killed_again_and_again_every_series_ends_once_and_every_state_was_seen(
    calm: tuple[Story, Ending], walk: dict[str, int]
) -> None:
    story, expected = calm
    seen = set(walk)
    for seed in range(4):
        chance = random.Random(seed)
        killed = fresh(story, "killed")
        kills = 0
        while forked(killed, chance.randint(1, 60)) is not None:
            kills += 1
            seen |= states(killed)
            assert kills < 500
        assert ending(killed) == expected, f"seed {seed}"
        assert kills > 10
    assert seen >= {f"job {state}" for state in JobState}
    assert seen >= {f"delivery {state}" for state in DeliveryState}
    assert seen >= {f"series {state}" for state in SeriesState}


def test_killed_while_deleting_nothing_is_left_behind_and_nothing_comes_back(
    plain: tuple[Story, Ending],
) -> None:
    story = replace(plain[0], keep=False)
    step = 1
    while True:
        deleting = fresh(story, "deleting", copy=True)
        killed = forked(deleting, step)
        forked(deleting)
        ledger = Ledger(path_below(deleting.root))
        assert [job.state for job in ledger.jobs()] == [JobState.COMMITTED]
        assert all(job.deleted for job in ledger.jobs())
        assert not ledger.rows("SELECT 1 FROM instances")
        ledger.close()
        assert not list((deleting.root / "instances").rglob("*.dcm"))
        assert not list((deleting.root / "results").iterdir())
        assert not list((deleting.root / "work").iterdir())
        if killed is None:
            break
        step += 1 if step < 10 else 7  # one deleted file is like the next
    assert step > 10


# -------------------------------------------------------------------- ledgers


def lose_ledger(story: Story) -> None:
    for path in story.root.glob("ledger.sqlite*"):
        path.unlink()


def test_a_deleted_ledger_is_built_again_from_disk(calm: tuple[Story, Ending]) -> None:
    story, expected = calm
    lost = fresh(story, "lost", copy=True)
    lose_ledger(lost)
    forked(lost)
    assert ending(lost) == expected


def test_a_deleted_ledger_says_why_results_are_sent_again(plain: tuple[Story, Ending]) -> None:
    lost = fresh(plain[0], "said", copy=True)
    lose_ledger(lost)
    forked(lost)
    ledger = Ledger(path_below(lost.root))
    codes = [event.code for event in ledger.events(f"job/{ledger.jobs()[0].id}")]
    assert "ledger-lost" in codes
    assert ledger.was_issued(ledger.jobs()[0].output_series_uid or "")
    ledger.close()


def test_what_the_archive_promises_to_have_is_not_sent_again(plain: tuple[Story, Ending]) -> None:
    lost = fresh(plain[0], "promised", copy=True)
    lose_ledger(lost)
    before = {path.name: path.stat().st_mtime_ns for path in lost.archive_folder.iterdir()}
    forked(lost)
    ledger = Ledger(path_below(lost.root))
    (delivery,) = ledger.deliveries(ledger.jobs()[0].id)
    ledger.close()
    assert delivery.state is DeliveryState.COMMITTED
    assert {path.name: path.stat().st_mtime_ns for path in lost.archive_folder.iterdir()} == before


def test_a_damaged_ledger_is_put_aside_and_built_again(plain: tuple[Story, Ending]) -> None:
    story, expected = plain
    damaged = fresh(story, "damaged", copy=True)
    lose_ledger(damaged)
    path_below(damaged.root).write_bytes(b"not a database at all" * 1000)
    forked(damaged)
    assert ending(damaged) == expected
    assert list(damaged.root.glob("ledger.sqlite.damaged-*"))


@pytest.mark.parametrize("step", [3, 20, 30, 40, 50, 60])
def test_a_ledger_from_yesterday_catches_up_with_the_disk(plain: tuple[Story, Ending], step: int) -> None:
    story, expected = plain
    yesterday = fresh(story, "yesterday")
    if forked(yesterday, step) is None:
        pytest.skip("the story is shorter than that")
    today = fresh(story, "today", copy=True)
    lose_ledger(today)
    for path in yesterday.root.glob("ledger.sqlite*"):
        shutil.copy(path, today.root / path.name)
    forked(today)
    assert ending(today) == expected


def test_what_somebody_withheld_stays_withheld_when_the_ledger_is_lost(
    plain: tuple[Story, Ending], walk: dict[str, int]
) -> None:
    story = killed_in(plain[0], walk, "job corrected", "withheld")
    ledger = Ledger(path_below(story.root))
    withhold(ledger, ledger.jobs([JobState.CORRECTED])[0].id, "a physicist")
    ledger.close()
    lose_ledger(story)
    forked(story)
    ledger = Ledger(path_below(story.root))
    (job,) = ledger.jobs()
    ledger.close()
    assert (job.state, job.reason_code) == (JobState.WITHHELD, "withheld-by-person")
    assert "a physicist" in (job.reason_text or "")


# -------------------------------------------------------------------- disks


def test_half_written_parts_are_swept_and_sent_again(plain: tuple[Story, Ending]) -> None:
    story, expected = plain
    cut = fresh(story, "cut")
    assert forked(cut, 12) is not None
    for number, path in enumerate(story.cases["plain"].files[:5]):
        content = path.read_bytes()
        (cut.root / "incoming" / f"{number:032x}.part").write_bytes(content[: len(content) * number // 5])
    forked(cut)
    assert ending(cut) == expected


def test_a_file_that_lost_its_end_or_is_gone_is_taken_from_the_scanner_again(
    plain: tuple[Story, Ending],
) -> None:
    story, expected = plain
    torn = fresh(story, "torn", copy=True)
    short, gone = sorted((torn.root / "instances").rglob("*.dcm"))[:2]
    with short.open("r+b") as file:
        file.truncate(700)
    gone.unlink()
    (torn.folder / "told").unlink()  # the scanner sends everything once more
    forked(torn)
    end = ending(torn)
    assert (end.archive, end.instances, end.left_over) == (expected.archive, expected.instances, ())
    assert [path.stat().st_size for path in (torn.root / "quarantine").glob("*.bin")] == [700]


def test_a_result_that_is_gone_before_it_was_sent_is_computed_again(
    plain: tuple[Story, Ending], walk: dict[str, int]
) -> None:
    story, expected = plain
    lost = killed_in(story, walk, "job sending", "result")
    for result in (lost.root / "results").iterdir():
        shutil.rmtree(result)
    forked(lost)
    assert ending(lost) == expected
