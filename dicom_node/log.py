"""The log: one line for each event, and no patient data in it, by construction.

    log = get_logger(__name__)
    log.info("job finished", job=12, state="sent", seconds=41.2)

- The event is fixed text in the source (a test holds that no call formats one).
- A value passes only under a known key and in that key's form (`KEYS`); everything else is dropped and
  only the names of the dropped keys are shown, so that a new key must be added here with thought.
- Of an exception, its class and place are shown; its message only where it cannot quote a header.
- Of other libraries, the logger's name, the place and the level are shown; never their text, which may
  quote a data set. pydicom and pynetdicom are silent: they do.

Study, series and instance UIDs are allowed: they name images, not people, and the archive is asked by them.
"""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
import sys
import threading
import traceback
import warnings
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog
from structlog.types import EventDict, FilteringBoundLogger, Processor, WrappedLogger

if TYPE_CHECKING:
    from dicom_node.config_sections import LogSettings

_UID = re.compile(r"[0-9.]{1,64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,63}")  # codes, states, versions: no sentences
_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")
_ADDRESS = re.compile(r"[0-9A-Za-z.:%_-]{1,64}")
_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|nan|inf|True|False|None")
_HEX_STATUS = re.compile(r"0x[0-9A-Fa-f]{4}")
_FIXED = re.compile(r"[^\x00-\x1f\x7f]{1,400}", re.DOTALL)  # made by this module or constant in our source

KEYS: dict[str, re.Pattern[str]] = {
    "timestamp": _FIXED,
    "level": _WORD,
    "module": _WORD,
    "event": _FIXED,
    # what it is about
    **dict.fromkeys(("study", "series", "reference", "instance", "sop_class", "transfer_syntax"), _UID),
    **dict.fromkeys(("job", "revision", "association", "delivery"), _WORD),
    # what happened
    **dict.fromkeys(("state", "previous", "code", "reason", "verdict", "stage", "kind", "answer"), _WORD),
    **dict.fromkeys(("tls", "aborted"), _NUMBER),
    "answers": re.compile(r"[a-z_]+=\d+( [a-z_]+=\d+)*"),  # success=120 out_of_resources=3
    "status": _HEX_STATUS,
    # who and where
    **dict.fromkeys(("ae_title", "calling_ae", "called_ae"), _AE_TITLE),
    **dict.fromkeys(("address", "host", "destination"), _ADDRESS),
    **dict.fromkeys(("scheduler", "device", "method", "matcher", "version", "worker", "who"), _WORD),
    # figures
    **dict.fromkeys(
        ("port", "pid", "exit_code", "attempt", "attempts", "count", "instances", "volumes"), _NUMBER
    ),
    **dict.fromkeys(("jobs", "workers", "threads", "seconds", "next_attempt_s"), _NUMBER),
    **dict.fromkeys(("bytes", "free_bytes", "peak_memory_bytes"), _NUMBER),
    # trouble, as this module writes it
    **dict.fromkeys(("exception", "where", "category", "dropped"), _FIXED),
}

SILENT = ("pydicom", "pynetdicom")
OUR_PACKAGES = ("dicom_node", "rules", "correction")


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger for module `name`; bind what a unit of work is about: `log.bind(study=…, series=…, job=…)`."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Set up this process: call it once early, in every process (listener and workers too).

    Lines go to standard error, which the journal collects, so that standard output stays the command's.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    _set_up(settings.format, level, stream or sys.stderr)
    _take_over_libraries(level)


def _set_up(form: str, level: int, stream: TextIO) -> None:
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            _module_name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _exception_as_words,
            only_known_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=partial(_NamedLogger, cast(TextIO, _Tolerant(stream))),
        cache_logger_on_first_use=False,
    )


class _NamedLogger(structlog.PrintLogger):
    """Prints lines, and knows the module whose they are."""

    def __init__(self, stream: TextIO, module: str = "") -> None:
        super().__init__(stream)
        self.module = module


def _module_name(logger: WrappedLogger, _: str, event: EventDict) -> EventDict:
    event["module"] = logger.module or None
    return event


def only_known_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Keep values under known keys and in their form, in a fixed order; name the keys that were dropped."""
    if isinstance(event.get("status"), int):
        event["status"] = f"0x{event['status']:04X}"  # as the standard writes it
    kept = {}
    for key, form in KEYS.items():
        value = event.get(key)
        if value is not None and form.fullmatch(str(value)):
            kept[key] = value if isinstance(value, bool | int | float) else str(value)
    if dropped := sorted(key for key, value in event.items() if key not in kept and value is not None):
        kept["dropped"] = " ".join(dropped)
    return kept


def _exception_as_words(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """`exc_info` → `exception`: class, harmless message, and the places it came through, innermost first."""
    info = event.pop("exc_info", None)
    event.pop("stack_info", None)
    if isinstance(info, tuple):
        info = info[1]
    elif info is True:
        info = sys.exception()
    if isinstance(info, BaseException):
        event["exception"] = exception_words(info)
    return event


def exception_words(error: BaseException) -> str:
    """An exception without what its message may quote: `OSError ENOSPC at spool.py:88 in write < …`.

    The cause follows after "from": ours say what failed, theirs say why.
    """
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]
    text = type(error).__name__ + _harmless_message(error)
    text = f"{text} at {' < '.join(places)}" if places else text
    cause = (
        f" from {type(error.__cause__).__name__}{_harmless_message(error.__cause__)}"
        if error.__cause__
        else ""
    )
    return (text + cause)[:400]


def _harmless_message(error: BaseException) -> str:
    """The part of the message that cannot hold a header's value, or nothing."""
    if isinstance(error, OSError):
        return f" {errno.errorcode.get(error.errno, '')}".rstrip() if error.errno else ""
    if isinstance(error, sqlite3.Error) or type(error).__module__.startswith("correction."):
        return f" ({' '.join(str(error).split())[:150]})"
    return ""


class _Tolerant:
    """A stream whose failure stops nobody: a node goes on receiving when its log cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            return

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


class _FromLibraries(logging.Handler):
    """Records of the logging module, ours by their fixed text, others by name and place only."""

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.split(".")[0] in OUR_PACKAGES
        log = get_logger(record.name).bind(where=f"{record.filename}:{record.lineno}")
        log.log(
            min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL),
            str(record.msg) if ours else "a library reports",
            exc_info=record.exc_info[1] if record.exc_info else None,
        )


def _take_over_libraries(level: int) -> None:
    """Send what others log through our rules: their own handlers would print it as it is."""
    root = logging.getLogger()
    root.handlers[:] = [_FromLibraries()]
    root.setLevel(max(level, logging.WARNING))
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] not in SILENT:
            logger.handlers.clear()
            logger.setLevel(logging.NOTSET)  # the root's level decides; some libraries set their own to INFO
            logger.propagate = True
    for name in SILENT:
        silent = logging.getLogger(name)
        silent.handlers[:] = [logging.NullHandler()]
        silent.propagate = False
    warnings.showwarning = _warning_as_words
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _warning_as_words(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """A Python warning by class and place: pydicom's quote the value that they warn of."""
    get_logger("warnings").debug(
        "a library warns", category=category.__name__, where=f"{Path(filename).name}:{lineno}"
    )


def _uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    """What nobody caught, in the main thread or another: without the message that the default prints."""
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        get_logger("dicom_node").error("an error was not caught", exc_info=error)


# Where nobody configures, e.g. in a short command: warnings only, under the same rules, and never on the
# standard output, where structlog's own default would mix them with the command's answer.
_set_up("console", logging.WARNING, sys.stderr)
