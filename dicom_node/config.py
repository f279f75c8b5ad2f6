"""The settings of the node: one YAML file, environment overrides, one frozen model that is passed in.

    settings = load_config(Path("/etc/dicom-node/config.yaml"), os.environ)
    settings.node.ae_title, settings.storage.root, settings.deliver_to

Keys are DESIGN.md's; each is told in `config.yaml` beside this file (what `dicom-node init` writes) and in
docs/configuration.md. Units are in the names: `_s` seconds, `_days`, `_bytes`, `_minutes`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dicom_node import config_source
from dicom_node.config_mistakes import ConfigError, Mistake, mistakes_of, report
from rules.facts import SeriesFacts

__all__ = ["ConfigError", "Settings", "load_config", "remarks", "template"]

CREDENTIALS = Path("/run/credentials")  # where systemd puts LoadCredential= files while a service runs


def _ae_title(text: str) -> str:
    """An AE title (PS3.5 §6.2, VR AE): 1–16 characters of the default repertoire, outer spaces dropped."""
    title = text.strip(" ")
    if not 1 <= len(title) <= 16:
        raise ValueError(f"an AE title has 1 to 16 characters, this one has {len(title)}; write a shorter one")
    if not (title.isascii() and title.isprintable()) or "\\" in title:
        raise ValueError("an AE title has no accents, control characters or backslash; use A–Z, 0–9, _ and -")
    return title


def _bind(text: str) -> str:
    """An address of this machine: a socket is bound to numbers, never to a name that DNS may change."""
    if text != "localhost":
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ValueError(f"{text!r} is no IP address; write 127.0.0.1, 0.0.0.0 or one of this host") from None
    return text


def _file_path(path: Path, info: ValidationInfo) -> Path:
    """`~` is the user's home; a relative path starts at the folder of the configuration file."""
    folder = (info.context or {}).get("folder")
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError("~ has no meaning here, this user has no home; write the whole path") from None
    return path if folder is None or path.is_absolute() else Path(folder) / path


def _typed(value: Any) -> Any:
    """Text without quotes as YAML takes it: for values whose type only their reader knows."""
    if isinstance(value, config_source.Plain):
        return value.typed()
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    return [_typed(inner) for inner in value] if isinstance(value, list) else value


def _only_yet(allowed: object) -> AfterValidator:
    """A key that is promised and not built: anything but `allowed` is refused, never quietly ignored."""

    def refuse(value: Any) -> Any:
        if value != allowed:
            raise ValueError("is not in this version yet; leave it out")
        return value

    return AfterValidator(refuse)


def _write(hint: str) -> Any:
    """What to write instead, where the type alone does not say it."""
    return Field(json_schema_extra={"write": hint})


AeTitle = Annotated[str, AfterValidator(_ae_title), _write("an AE title of 1 to 16 characters")]
Bind = Annotated[str, AfterValidator(_bind)]
Host = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9._:-]+$", json_schema_extra={"write": "a host name or IP address alone"}),
]
Port = Annotated[int, Field(ge=1, le=65535)]
FilePath = Annotated[Path, AfterValidator(_file_path), _write("a path")]
Size = Annotated[ByteSize, Field(ge=0, json_schema_extra={"write": "a size such as 20 GiB"})]
Anything = Annotated[Any, BeforeValidator(_typed)]
DestinationName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$",
        json_schema_extra={"write": "a name of letters, digits, '-', '_' and '.', at most 32"},
    ),
]


class Section(BaseModel):
    """A section of the file: fixed once read, and a key that is not known is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerTls(Section):
    """TLS of a port that we open."""

    certificate: FilePath
    key: FilePath
    ca: FilePath | None = None
    require_client_certificate: bool = True


class ClientTls(Section):
    """TLS towards a destination; without `ca`, the system's certificate authorities."""

    ca: FilePath | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None


class AcceptFrom(Section):
    """One caller that may send: by AE title, by address, or by both."""

    ae_title: AeTitle | None = None
    address: Annotated[IPvAnyNetwork, _write("an IP address or a network such as 10.1.2.0/24")] | None = None

    @model_validator(mode="after")
    def _names_someone(self) -> AcceptFrom:
        if self.ae_title is None and self.address is None:
            raise ValueError("names no caller; write ae_title, address or both")
        return self


class NodeSettings(Section):
    """The DICOM node that scanners send to."""

    ae_title: AeTitle = Field(examples=["DWICORR"])
    bind: Bind = "0.0.0.0"
    port: Port = 11112
    max_associations: Annotated[int, Field(ge=1, le=400)] = 50  # select() ends at 1024 descriptors
    max_pdu: Annotated[int, Field(ge=16384, le=1048576)] = 131072
    tls: Annotated[ServerTls | None, _only_yet(None)] = None
    accept_from: tuple[AcceptFrom, ...] = ()


class Destination(Section):
    """A DICOM node that results are sent to."""

    ae_title: AeTitle = Field(examples=["PACS"])
    host: Host = Field(examples=["pacs.example.org"])
    port: Port = Field(examples=[104])
    tls: Annotated[ClientTls | None, _only_yet(None)] = None
    storage_commitment: Annotated[bool, _only_yet(False)] = False
    commitment_timeout_s: Annotated[float, Field(gt=0)] = 86400.0


class StorageSettings(Section):
    """Where received images and results live, and for how long."""

    root: FilePath = Field(examples=["/var/lib/dicom-node"])
    min_free_bytes: Size = ByteSize(5 * 2**30)
    keep_days: Annotated[float, Field(ge=0)] = 14.0
    keep_unsent_days: Annotated[float, Field(ge=0)] = 90.0

    @field_validator("keep_unsent_days")
    @classmethod
    def _unsent_outlives_sent(cls, days: float, info: ValidationInfo) -> float:
        sent = info.data.get("keep_days", 0.0)
        if days < sent:
            raise ValueError(f"{days:g} is less than keep_days ({sent:g}); what was not sent must stay longer")
        return days


class AssemblySettings(Section):
    """When a series and a study count as complete."""

    series_quiet_s: Annotated[float, Field(gt=0)] = 20.0
    study_wait_s: Annotated[float, Field(ge=0)] = 1200.0


class Override(Section):
    """A rule of this site: series whose facts equal `when` are treated as `then` says."""

    when: dict[str, Anything] = Field(min_length=1)
    then: Literal["exclude", "reference"]

    @field_validator("when")
    @classmethod
    def _facts_exist(cls, when: dict[str, Any]) -> dict[str, Any]:
        known = {fact.name for fact in dataclasses.fields(SeriesFacts)}
        if unknown := sorted(set(when) - known):
            raise ValueError(f"{', '.join(unknown)}: no such fact of a series; docs/configuration.md lists them")
        return when


class RulesSettings(Section):
    """How the reference of a diffusion series is chosen."""

    reference_order: tuple[str, ...] = ()
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.8
    max_minutes_apart: Annotated[float, Field(gt=0)] = 180.0
    require_same_frame_of_reference: bool = False
    overrides: tuple[Override, ...] = ()


class CorrectionSettings(Section):
    """How the distortion is estimated, on what, and what happens to a poor result."""

    method: Literal["clinical", "paper"] = "clinical"
    matcher: Literal["auto", "none"] = "auto"
    weights_dir: Annotated[FilePath | None, _only_yet(None)] = None
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra={"write": "auto, cpu, cuda or cuda:N"}),
    ] = "auto"
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    scheduler: Annotated[str, _only_yet("")] = ""
    modulate: bool = False
    on_poor_quality: Literal["withhold", "flag"] = "withhold"
    on_review: Literal["send", "withhold", "flag"] = "send"
    settings: dict[str, Anything] = Field(default_factory=dict)
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 3


class Companions(Section):
    """What is sent beside the corrected series."""

    qc: Annotated[bool, _only_yet(False)] = False
    registration: Annotated[bool, _only_yet(False)] = False
    adc: Annotated[bool, _only_yet(False)] = False
    quality_record: Annotated[bool, _only_yet(False)] = False


class DeriveSettings(Section):
    """How the corrected series looks in the archive."""

    description_suffix: Annotated[str, Field(max_length=32)] = " DISTCORR"
    series_number_offset: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    grid: Annotated[Literal["dwi", "reference"], _only_yet("dwi")] = "dwi"
    one_series_per_b_value: Annotated[bool, _only_yet(False)] = False
    companions: Companions = Companions()

    @field_validator("description_suffix")
    @classmethod
    def _tells_apart(cls, suffix: str) -> str:
        if not suffix.strip():
            raise ValueError("is empty; a corrected series must be told from its source, e.g. ' DISTCORR'")
        if "\\" in suffix or not suffix.isprintable():
            raise ValueError("holds a backslash or control character, which DICOM text (VR LO) must not")
        return suffix


class DeliverySettings(Section):
    """Who gets the results."""

    to: tuple[str, ...] = ()
    give_up_days: Annotated[float, Field(gt=0)] = 7.0


class WebSettings(Section):
    """The status page and API."""

    bind: Bind = "127.0.0.1"
    port: Port = 8080
    token_file: FilePath | None = Field(default=None, validate_default=True)
    tls: Annotated[ServerTls | None, _only_yet(None)] = None

    @field_validator("token_file")
    @classmethod
    def _guarded_when_exposed(cls, token_file: Path | None, info: ValidationInfo) -> Path | None:
        bind = info.data.get("bind", "127.0.0.1")
        if bind == "localhost" or ipaddress.ip_address(bind).is_loopback:
            return token_file
        if token_file is None:
            raise ValueError(f"is needed when bind is {bind}, or anybody could read it; or bind to 127.0.0.1")
        if not _may_exist(token_file):
            raise ValueError(f"there is no file {token_file}; write a long random token into it")
        return token_file


def _may_exist(path: Path) -> bool:
    """False only when the file is surely absent: credentials come and go with their service."""
    try:
        return path.is_relative_to(CREDENTIALS) or path.exists()
    except PermissionError:
        return True


class LogSettings(Section):
    """Form and amount of the log."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """Everything that a site can set."""

    node: NodeSettings
    destinations: dict[DestinationName, Destination] = Field(default_factory=dict)
    storage: StorageSettings
    assembly: AssemblySettings = AssemblySettings()
    rules: RulesSettings = RulesSettings()
    correction: CorrectionSettings = CorrectionSettings()
    derive: DeriveSettings = DeriveSettings()
    delivery: DeliverySettings = DeliverySettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _destinations_exist(self) -> Settings:
        if text := _unknown_destinations(self.delivery.to, tuple(self.destinations)):
            raise ValueError(text)
        return self

    @property
    def deliver_to(self) -> tuple[str, ...]:
        """The destinations that get results: those of delivery.to, else the only one there is.

        With several destinations and none named, nobody: images of patients go where somebody said.
        """
        if self.delivery.to:
            return self.delivery.to
        return tuple(self.destinations) if len(self.destinations) == 1 else ()


def load_config(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file `path` (None: no file) with the environment's values over it.

    Raises ConfigError; its text names every mistake with its line or variable and what to write instead.
    """
    source = config_source.read(path, environ)
    # sections that the file leaves out are empty ones, so that a missing key is told by its full name
    values = {"node": {}, "storage": {}} | source.values
    folder = path.absolute().parent if path else None
    try:
        settings = Settings.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        mistakes = mistakes_of(error, source, Settings.model_json_schema())
    else:
        if not source.mistakes:
            return settings
        mistakes = []
    raise ConfigError(report(path, [*source.mistakes, *mistakes, *_wrong_delivery(source)]))


def _unknown_destinations(names: tuple[str, ...], configured: tuple[str, ...]) -> str:
    """What is wrong with delivery.to, or nothing."""
    unknown = [name for name in names if name not in configured]
    if not unknown:
        return ""
    known = ", ".join(configured) or "none yet"
    return f"no destination is called {', '.join(unknown)}; under destinations there is: {known}"


def _wrong_delivery(source: config_source.Source) -> list[Mistake]:
    """Names in delivery.to that destinations lacks: told even where other mistakes hide the model's check."""
    delivery, destinations = source.values.get("delivery"), source.values.get("destinations", {})
    to = delivery.get("to") if isinstance(delivery, dict) else None
    if not isinstance(to, list) or not isinstance(destinations, dict):
        return []
    text = _unknown_destinations(tuple(str(name) for name in to), tuple(destinations))
    return [source.mistake(("delivery", "to"), text)] if text else []


def remarks(settings: Settings) -> tuple[str, ...]:
    """What is allowed but should be known: one sentence each, for `dicom-node check`."""
    found = []
    if not settings.node.accept_from:
        found.append("node.accept_from is empty: any caller may send images to this node.")
    if not settings.destinations:
        found.append("destinations is empty: results stay on this node.")
    elif not settings.deliver_to:
        names = ", ".join(settings.destinations)
        found.append(f"delivery.to is empty and there are several destinations ({names}): nothing is sent.")
    return tuple(found)


def template() -> str:
    """The commented configuration with every key, as `dicom-node init` writes it."""
    return resources.files("dicom_node").joinpath("config.yaml").read_text(encoding="utf-8")
