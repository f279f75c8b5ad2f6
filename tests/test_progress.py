"""Progress where nobody watches: few lines, and none for what is quick."""

from collections.abc import Iterable
from io import StringIO

from rich.console import Console

from dicom_node.progress import shown


def lines(reports: Iterable[tuple[float, str]]) -> list[str]:
    """What is printed to a file when each stage is reported at its second."""
    now_s = 0.0
    file = StringIO()
    with shown(Console(file=file), lambda: now_s) as report:
        for at_s, stage in reports:
            now_s = at_s
            report("it", stage, 0.5)
    return file.getvalue().splitlines()


def test_work_that_is_quick_prints_nothing() -> None:
    assert lines([(0.1, "estimate"), (1.9, "judge")]) == []


def test_each_stage_is_told_once() -> None:
    told = lines([(3, "estimate"), (4, "estimate"), (5, "judge")])
    assert told == ["it: estimate (3 s)", "it: judge (5 s)"]


def test_a_running_count_is_told_every_few_seconds_and_not_each_time() -> None:
    counted = lines((number / 100, f"{number} of 1000") for number in range(1001))
    assert counted == ["it: 200 of 1000 (2 s)", "it: 700 of 1000 (7 s)"]


def test_work_that_counts_up_to_its_end_is_told_when_a_stage_follows() -> None:
    assert lines([(3, "1 of 9"), (4, "9 of 9"), (4.1, "done")]) == ["it: 1 of 9 (3 s)", "it: done (4 s)"]
