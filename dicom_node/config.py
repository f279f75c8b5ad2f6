"""The settings of the node: one YAML file, environment overrides, one frozen model that is passed in.

    settings = load_config(Path("/etc/dicom-node/config.yaml"), os.environ)
    settings.node.ae_title, settings.storage.root, settings.deliver_to

Every key is in config_sections.py, and told in `config.yaml` beside this file (what `dicom-node init`
writes) and in docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from dicom_node import config_source
from dicom_node.config_mistakes import mistakes_of, report
from dicom_node.config_sections import (
    AssemblySettings,
    CorrectionSettings,
    DeliverySettings,
    DeriveSettings,
    Destination,
    LogSettings,
    NodeSettings,
    RulesSettings,
    Section,
    StorageSettings,
    WebSettings,
)
from dicom_node.config_source import ConfigError, Mistake
from dicom_node.config_values import DestinationName

__all__ = ["ConfigError", "Settings", "load_config", "remarks", "template"]


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
    delivery = _wrong_delivery(source)
    hidden = {mistake.text for mistake in delivery}  # what the model itself may have said as well
    mistakes = [mistake for mistake in mistakes if mistake.text not in hidden]
    raise ConfigError(report(path, [*source.mistakes, *mistakes, *delivery]))


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
    scheduler = settings.correction.scheduler
    if scheduler and settings.correction.scheduler_tls is None:
        found.append(
            f"correction.scheduler {scheduler} is not encrypted: every user of this machine can run "
            "programs as this service; use tls:// with correction.scheduler_tls."
        )
    if settings.node.accept_from and any(
        settings.destinations[name].storage_commitment for name in settings.deliver_to
    ):
        found.append(
            "node.accept_from must list archives with storage_commitment too: they may call back to confirm."
        )
    return tuple(found)


def template() -> str:
    """The commented configuration with every key, as `dicom-node init` writes it."""
    return resources.files("dicom_node").joinpath("config.yaml").read_text(encoding="utf-8")
