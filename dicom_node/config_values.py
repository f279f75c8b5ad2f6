"""Types of single settings: what may stand there, and what is said when something else does.

A validator's ValueError is the sentence that the person reads; `write` is the remedy for the other cases.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationInfo

from dicom_node.config_source import Plain

CREDENTIALS = Path("/run/credentials")  # where systemd puts LoadCredential= files while a service runs


def _ae_title(text: str) -> str:
    """An AE title (PS3.5 §6.2, VR AE): 1–16 characters of the default repertoire, outer spaces dropped."""
    title = text.strip(" ")
    if not 1 <= len(title) <= 16:
        raise ValueError(f"an AE title has 1 to 16 characters, this one has {len(title)}; shorten it")
    if not (title.isascii() and title.isprintable()) or "\\" in title:
        raise ValueError("an AE title has no accents, control characters or backslash; use A–Z, 0–9, _ and -")
    return title


def _bind(text: str) -> str:
    """An address of this machine: a socket is bound to numbers, never to a name that DNS may change."""
    if text != "localhost":
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ValueError(f"{text!r} is no IP address; write 127.0.0.1 or 0.0.0.0") from None
    return text


def _file_path(path: Path, info: ValidationInfo) -> Path:
    """`~` is the user's home; a relative path starts at the folder of the configuration file."""
    folder = (info.context or {}).get("folder")
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError("~ has no meaning here, this user has no home; write the whole path") from None
    return path if folder is None or path.is_absolute() else Path(folder) / path


def existing(path: Path) -> Path:
    """A file that must be there. One that we may not see, or a credential of a stopped service, may be."""
    try:
        absent = not path.is_relative_to(CREDENTIALS) and not path.exists()
    except PermissionError:
        absent = False
    if absent:
        raise ValueError(f"there is no file {path}; create it, or write where it is")
    return path


def _typed(value: Any) -> Any:
    """Text without quotes as YAML takes it: for values whose type only their reader knows."""
    return value.typed() if isinstance(value, Plain) else value


def _engine_text(value: Any) -> Any:
    """A setting of the engine as the engine reads it: several numbers are divided by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def write(hint: str) -> Any:
    """What to write instead, where the type alone does not say it."""
    return Field(json_schema_extra={"write": hint})


AeTitle = Annotated[str, AfterValidator(_ae_title), write("an AE title of 1 to 16 characters")]
Bind = Annotated[str, AfterValidator(_bind)]
Host = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9._:-]+$", json_schema_extra={"write": "a host name or IP address alone"}),
]
Port = Annotated[int, Field(ge=1, le=65535)]
FilePath = Annotated[Path, AfterValidator(_file_path), write("a path")]
ExistingFile = Annotated[FilePath, AfterValidator(existing), write("the path of a file")]
Size = Annotated[ByteSize, Field(ge=0, json_schema_extra={"write": "a size such as 20 GiB"})]
Anything = Annotated[Any, BeforeValidator(_typed)]
EngineText = Annotated[str, BeforeValidator(_engine_text), write("a number, a word or a list of numbers")]
DestinationName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$",
        json_schema_extra={"write": "a name of letters, digits, '-', '_' and '.', at most 32"},
    ),
]
