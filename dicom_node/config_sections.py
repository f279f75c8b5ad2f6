"""The sections of the configuration file: every key with its type, its limits and its default.

Units are in the names: `_s` seconds, `_days`, `_bytes`, `_minutes`.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dicom_node.config_values import (
    AeTitle,
    Anything,
    Bind,
    EngineText,
    ExistingFile,
    FilePath,
    Host,
    Port,
    Size,
    existing,
    write,
)
from rules import site
from rules.contrast import Contrast

SCHEDULER_ADDRESS = r"((tcp|tls)://)?[A-Za-z0-9._-]+:\d+"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost")


class Section(BaseModel):
    """A section of the file: fixed once read, and a key that is not known is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerTls(Section):
    """TLS of the port that scanners call."""

    certificate: ExistingFile
    key: ExistingFile
    require_client_certificate: bool = True
    ca: ExistingFile | None = Field(default=None, validate_default=True)

    @field_validator("ca")
    @classmethod
    def _clients_can_be_checked(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        if ca is None and info.data.get("require_client_certificate"):
            raise ValueError("is needed to check scanners; or write require_client_certificate: false")
        return ca


class ClientTls(Section):
    """TLS towards a destination; without `ca`, the system's certificate authorities."""

    ca: ExistingFile | None = None
    certificate: ExistingFile | None = None
    key: ExistingFile | None = Field(default=None, validate_default=True)

    @field_validator("key")
    @classmethod
    def _pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if "certificate" in info.data and (key is None) != (info.data["certificate"] is None):
            raise ValueError("certificate and key belong together; write both or none")
        return key


class SchedulerTls(Section):
    """TLS towards the compute scheduler and its workers: who they must be, and who we are."""

    ca: ExistingFile
    certificate: ExistingFile
    key: ExistingFile


class WebTls(Section):
    """TLS of the status page."""

    certificate: ExistingFile
    key: ExistingFile


class AcceptFrom(Section):
    """One caller that may send: by AE title, by address, or by both."""

    ae_title: AeTitle | None = None
    address: Annotated[IPvAnyNetwork | None, write("an IP address or a network such as 10.1.2.0/24")] = None

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
    tls: ServerTls | None = None
    accept_from: tuple[AcceptFrom, ...] = ()


class Destination(Section):
    """A DICOM node that results are sent to."""

    ae_title: AeTitle = Field(examples=["PACS"])
    host: Host = Field(examples=["pacs.example.org"])
    port: Port = Field(examples=[104])
    tls: ClientTls | None = None
    storage_commitment: bool = False
    commitment_timeout_s: Annotated[float, Field(gt=0)] = 86400.0


class StorageSettings(Section):
    """Where received images and results live, and for how long."""

    root: FilePath = Field(examples=["/var/lib/dicom-node"])
    min_free_bytes: Size = ByteSize(5 * 2**30)
    keep_days: Annotated[float, Field(ge=0)] = 14.0
    keep_unsent_days: Annotated[float, Field(ge=0, validate_default=True)] = 90.0

    @field_validator("keep_unsent_days")
    @classmethod
    def _unsent_outlives_sent(cls, days: float, info: ValidationInfo) -> float:
        sent = info.data.get("keep_days", 0.0)
        if days < sent:
            raise ValueError(f"{days:g} is less than keep_days ({sent:g}); what is unsent must stay longer")
        return days


class AssemblySettings(Section):
    """When a series and a study count as complete."""

    series_quiet_s: Annotated[float, Field(gt=0)] = 20.0
    study_wait_s: Annotated[float, Field(ge=0)] = 1200.0


class Override(Section):
    """A rule of this site: series whose facts equal `when` are treated as `then` says."""

    when: dict[str, Anything]
    then: site.Then

    @field_validator("when")
    @classmethod
    def _can_be_compared(cls, when: dict[str, Any]) -> dict[str, Any]:
        if found := site.problems(when):
            raise ValueError("; ".join(found))
        return when


class RulesSettings(Section):
    """How the reference of a diffusion series is chosen."""

    reference_order: tuple[Contrast, ...] = ()
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.8
    max_minutes_apart: Annotated[float, Field(gt=0)] = 180.0
    require_same_frame_of_reference: bool = False
    allow_contrast_agent: bool = False
    max_in_plane_mm: Annotated[float, Field(gt=0, le=10)] = 2.0
    max_step_mm: Annotated[float, Field(gt=0, le=20)] = 7.0
    min_reference_slices: Annotated[int, Field(ge=3, le=1000)] = 8
    min_dwi_slices: Annotated[int, Field(ge=3, le=1000)] = 3
    max_lowest_b: Annotated[float, Field(ge=0, le=1000)] = 200.0
    overrides: tuple[Override, ...] = ()


class CorrectionSettings(Section):
    """How the distortion is estimated, on what, and what happens to a poor result."""

    method: Literal["clinical", "paper"] = "clinical"
    matcher: Literal[
        "none",
        "auto",
        "xfeat-lighterglue",
        "disk-lightglue",
        "minima-loftr",
        "minima-lightglue",
        "mind-blocks",
    ] = "auto"
    weights_dir: FilePath | None = None
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra={"write": "auto, cpu, cuda or cuda:N"}),
    ] = "auto"
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    scheduler: Annotated[
        str,
        Field(
            pattern=rf"^$|^{SCHEDULER_ADDRESS}$",
            json_schema_extra={"write": "an address such as tls://gpu1:8786"},
        ),
    ] = ""
    scheduler_tls: SchedulerTls | None = Field(default=None, validate_default=True)
    modulate: bool = False
    on_poor_quality: Literal["withhold", "flag"] = "withhold"
    on_review: Literal["send", "withhold", "flag"] = "send"
    settings: dict[str, EngineText] = Field(default_factory=dict)
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 3

    @field_validator("scheduler")
    @classmethod
    def _encrypted_between_machines(cls, address: str) -> str:
        host = address.removeprefix("tcp://").rpartition(":")[0]
        if address and not address.startswith("tls://") and host not in LOOPBACK_HOSTS:
            raise ValueError(
                f"would let whoever reaches {host} run programs as this service; "
                "write a tls:// address, with correction.scheduler_tls"
            )
        return address

    @field_validator("scheduler_tls")
    @classmethod
    def _certificates_for_tls(cls, tls: SchedulerTls | None, info: ValidationInfo) -> SchedulerTls | None:
        address = info.data.get("scheduler", "")
        if address.startswith("tls://") and tls is None:
            raise ValueError(f"is needed for {address}; write ca, certificate and key")
        if tls is not None and not address.startswith("tls://"):
            raise ValueError("belongs to a scheduler that begins with tls://")
        return tls

    @field_validator("settings")
    @classmethod
    def _method_has_them(cls, texts: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        method = info.data.get("method")
        if texts and method:
            # here, because the engine brings torch: seconds, and memory that the listener does not need
            from correction import SettingsError, methods

            try:
                {"clinical": methods.clinical, "paper": methods.paper}[method]().override(
                    f"{key}={text}" for key, text in texts.items()
                )
            except SettingsError as error:
                raise ValueError(str(error)) from None
        return texts


class Companions(Section):
    """What is sent beside the corrected series."""

    qc: bool = False
    registration: bool = False
    adc: bool = False
    quality_record: bool = False
    notice: Annotated[str, Field(min_length=1, max_length=64)] = "DERIVED: not for primary diagnosis"


class DeriveSettings(Section):
    """How the corrected series looks in the archive."""

    description_suffix: Annotated[str, Field(max_length=32)] = " DISTCORR"
    series_number_offset: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    grid: Literal["dwi", "reference"] = "dwi"
    one_series_per_b_value: bool = False
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

    to: Annotated[tuple[str, ...], write("a list of names under destinations, such as [PACS]")] = ()
    give_up_days: Annotated[float, Field(gt=0)] = 7.0


class WebSettings(Section):
    """The status page and API."""

    bind: Bind = "127.0.0.1"
    port: Port = 8080
    token_file: FilePath | None = Field(default=None, validate_default=True)
    tls: WebTls | None = None

    @field_validator("token_file")
    @classmethod
    def _guarded_when_exposed(cls, token_file: Path | None, info: ValidationInfo) -> Path | None:
        bind = info.data.get("bind", "127.0.0.1")
        if bind == "localhost" or ipaddress.ip_address(bind).is_loopback:
            return token_file
        if token_file is None:
            raise ValueError(f"is needed when bind is {bind}, or anybody could read it; or bind to 127.0.0.1")
        return existing(token_file)


class LogSettings(Section):
    """Form and amount of the log."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
