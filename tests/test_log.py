"""The log: what gets in, and above all what does not."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from dicom_node.config_sections import LogSettings
from dicom_node.log import KEYS, configure, get_logger

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = "PHANTOM^PATIENT"
PATIENT_ID = "PID 4711"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A JSON log; the process's own logging is put back afterwards."""
    root, hooks = logging.getLogger(), (warnings.showwarning, sys.excepthook, threading.excepthook)
    loggers = [root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    before = [(x, x.level, x.handlers[:], x.propagate) for x in loggers]
    structured = structlog.get_config()
    text = io.StringIO()
    configure(LogSettings(format="json", level="debug"), text)
    yield text
    structlog.configure(**structured)
    warnings.showwarning, sys.excepthook, threading.excepthook = hooks
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_what_it_is_about(stream: io.StringIO) -> None:
    get_logger("dicom_node.listener").bind(study="1.2.3").info("instance stored", bytes=131072, seconds=0.25)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "module": "dicom_node.listener",
        "event": "instance stored",
        "study": "1.2.3",
        "seconds": 0.25,
        "bytes": 131072,
    }


def test_console_lines_hold_the_same_and_stay_one_line(stream: io.StringIO) -> None:
    configure(LogSettings(), stream)
    get_logger("dicom_node.delivery").warning("delivery postponed", destination="PACS", attempts=3)
    (line,) = stream.getvalue().splitlines()
    assert "delivery postponed" in line
    assert "destination=PACS" in line
    assert "attempts=3" in line


def test_unknown_keys_are_dropped_and_only_named(stream: io.StringIO) -> None:
    get_logger("x").info("read", patient_name=NAME, series="1.2.3")
    (line,) = lines(stream)
    assert line["dropped"] == "patient_name"
    assert line["series"] == "1.2.3"
    assert NAME not in stream.getvalue()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("series", NAME),
        ("job", PATIENT_ID),
        ("reason", "the patient Phantom moved"),
        ("count", NAME),
        ("status", NAME),
        ("address", f"host {NAME}"),
        ("calling_ae", "longer than sixteen characters"),
        ("calling_ae", "TWO\nLINES"),
        ("study", ["1.2", NAME]),
    ],
)
def test_a_value_that_has_not_its_keys_form_is_dropped(stream: io.StringIO, key: str, value: object) -> None:
    get_logger("x").info("read", **{key: value})
    (line,) = lines(stream)
    assert key not in line
    assert line["dropped"] == key


def test_a_dimse_status_is_written_as_the_standard_writes_it(stream: io.StringIO) -> None:
    get_logger("x").info("answered", status=0xA700)
    assert lines(stream)[0]["status"] == "0xA700"


def test_an_exception_shows_class_and_place_but_not_its_message(stream: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot decode '{NAME}'")
    except ValueError:
        get_logger("x").exception("series unreadable")
    (line,) = lines(stream)
    assert line["exception"].startswith("ValueError at test_log.py:")
    assert NAME not in stream.getvalue()


def test_an_exception_that_cannot_quote_a_header_keeps_what_helps(stream: io.StringIO) -> None:
    import sqlite3

    from correction.errors import ShapeError

    for error in (
        OSError(28, "No space left on device", f"/data/{NAME}"),
        sqlite3.OperationalError("database is locked"),
        ShapeError("expected (Z, Y, X)"),
    ):
        get_logger("x").error("failed", exc_info=error)
    texts = [line["exception"] for line in lines(stream)]
    assert texts == [
        "OSError ENOSPC",
        "OperationalError (database is locked)",
        "ShapeError (expected (Z, Y, X))",
    ]


def test_other_libraries_are_named_and_not_quoted(stream: io.StringIO) -> None:
    logging.getLogger("distributed.worker").warning("Compute Failed, args: %s", NAME)
    (line,) = lines(stream)
    assert line["module"] == "distributed.worker"
    assert line["where"].startswith("test_log.py:")
    assert NAME not in stream.getvalue()


def test_our_own_records_keep_their_fixed_text_and_lose_their_arguments(stream: io.StringIO) -> None:
    logging.getLogger("dicom_node.sockets").error("a connection failed: %s", NAME)
    (line,) = lines(stream)
    assert line["event"] == "a connection failed: %s"


def test_pydicom_and_pynetdicom_are_silent(stream: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    import pydicom
    import pynetdicom  # noqa: F401 — its logger is made on import

    data = pydicom.Dataset()
    data.PatientID = PATIENT_ID * 20  # too long for its VR: pydicom warns and quotes
    data.StudyDate = NAME
    for name in ("pydicom", "pynetdicom", "pynetdicom.acse", "pynetdicom.service-class"):
        logging.getLogger(name).critical("Invalid value for VR LO: %s", NAME)
    written = stream.getvalue() + "".join(capfd.readouterr())
    assert NAME not in written
    assert PATIENT_ID not in written


def test_a_warning_is_told_by_class_and_place(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure(LogSettings(format="json", level="debug"), stream)
        warnings.warn(f"Invalid value for VR DA: '{NAME}'", UserWarning, stacklevel=1)
    (line,) = lines(stream)
    assert line["category"] == "UserWarning"
    assert line["level"] == "debug"
    assert NAME not in stream.getvalue()


def test_an_error_in_a_thread_is_logged_without_its_message(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError(NAME)

    hook = threading.excepthook
    try:
        configure(LogSettings(format="json"), stream)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert lines(stream)[-1]["event"] == "an error was not caught"
    assert NAME not in stream.getvalue() + "".join(capfd.readouterr())


def test_libraries_that_are_imported_later_add_no_handler_of_their_own() -> None:
    script = (
        "from dicom_node.config_sections import LogSettings; from dicom_node.log import configure\n"
        "configure(LogSettings(format='json'))\n"
        "import logging, distributed\n"
        "logging.getLogger('distributed.worker').error('args: %s', 'PHANTOM^PATIENT')\n"
        "raise RuntimeError('PHANTOM^PATIENT')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1
    assert [json.loads(line)["module"] for line in ended.stderr.splitlines()] == [
        "distributed.worker",
        "dicom_node",
    ]
    assert NAME not in ended.stderr + ended.stdout


def test_a_log_that_cannot_be_written_stops_nobody(stream: io.StringIO) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    configure(LogSettings(format="json"), Broken())
    get_logger("x").info("still here")
    configure(LogSettings(format="json"), stream)
    get_logger("x").info("and here")
    assert [line["event"] for line in lines(stream)] == ["and here"]


def test_debug_is_silent_at_level_info(stream: io.StringIO) -> None:
    configure(LogSettings(format="json", level="info"), stream)
    get_logger("x").debug("tick")
    assert stream.getvalue() == ""


def _log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every `log.info(…)`-like call in our packages."""
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    for package in ("dicom_node", "rules", "correction"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if path.name == "log.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    target = ast.unparse(node.func.value)
                    if node.func.attr in levels and target.split("(")[0].split(".")[-1] in _LOGGERS:
                        yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node


_LOGGERS = {"log", "_log", "logger", "_logger", "getLogger", "get_logger", "LOG", "bind"}


def test_every_log_call_has_a_fixed_text_and_known_keys() -> None:
    wrong = []
    for place, call in _log_calls():
        fixed = (
            len(call.args) == 1
            and isinstance(call.args[0], ast.Constant)
            and isinstance(call.args[0].value, str)
        )
        keys = {keyword.arg for keyword in call.keywords} - {"exc_info"}
        if not fixed or not keys <= set(KEYS):
            wrong.append(f"{place}: {ast.unparse(call)}")
    assert not wrong, "write a fixed text, and values under keys of dicom_node.log.KEYS:\n" + "\n".join(wrong)
