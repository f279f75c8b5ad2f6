"""The sections of the configuration in the words of the parts that they are for."""

from __future__ import annotations

from dicom_node.association import Peer
from dicom_node.config import Settings
from dicom_node.config_sections import ClientTls
from dicom_node.derive import CompanionPolicy, DerivePolicy, OutputGrid
from dicom_node.recipe import Recipe
from dicom_node.sockets import TlsSettings
from rules.pair import PairingPolicy
from rules.site import Override, Then


def peers(settings: Settings) -> dict[str, Peer]:
    """The destinations as peers."""
    return {
        name: Peer(
            destination.ae_title,
            destination.host,
            destination.port,
            settings.node.ae_title,
            tls=_client_tls(destination.tls),
        )
        for name, destination in settings.destinations.items()
    }


def _client_tls(tls: ClientTls | None) -> TlsSettings | None:
    return TlsSettings(certificate=tls.certificate, key=tls.key, ca=tls.ca) if tls else None


def pairing_policy(settings: Settings) -> PairingPolicy:
    """The rules section in the words of the rules."""
    rules = settings.rules
    return PairingPolicy(
        reference_order=rules.reference_order,
        min_overlap=rules.min_overlap,
        max_minutes_apart=rules.max_minutes_apart,
        require_same_frame_of_reference=rules.require_same_frame_of_reference,
        allow_contrast_agent=rules.allow_contrast_agent,
        max_in_plane_mm=rules.max_in_plane_mm,
        max_step_mm=rules.max_step_mm,
        min_reference_slices=rules.min_reference_slices,
        min_dwi_slices=rules.min_dwi_slices,
        max_lowest_b=rules.max_lowest_b,
        overrides=tuple(Override(rule.when, Then(rule.then)) for rule in rules.overrides),
    )


def recipe(settings: Settings) -> Recipe:
    """The correction section as a recipe."""
    correction = settings.correction
    return Recipe(
        method=correction.method,
        overrides=tuple(sorted(correction.settings.items())),
        device=correction.device,
        modulate=correction.modulate,
        matcher=correction.matcher,
        weights_dir=str(correction.weights_dir or ""),
    )


def derive_policy(settings: Settings) -> DerivePolicy:
    """The derive section as a policy."""
    return DerivePolicy(
        description_suffix=settings.derive.description_suffix,
        series_number_offset=settings.derive.series_number_offset,
        grid=OutputGrid(settings.derive.grid),
        one_series_per_b_value=settings.derive.one_series_per_b_value,
        companions=CompanionPolicy(**settings.derive.companions.model_dump()),
    )
