"""How to correct: everything beside the images that decides the result, as a value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import torch

from correction import methods
from correction.errors import SettingsError
from correction.methods import Settings as EngineSettings
from dicom_node.derive import CompanionPolicy, DerivePolicy

NO_MATCHER = "none"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to correct: everything beside the images that decides the result.

    matcher: none, or as correction.landmarks.find_landmarks takes it; weights_dir: where its weights are.
    overrides: (setting, value) pairs over the method's defaults. device: auto, cpu or cuda[:N].
    """

    method: str = "clinical"
    overrides: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    device: str = "auto"
    modulate: bool = False
    matcher: str = "auto"
    weights_dir: str = ""

    def settings(self) -> EngineSettings:
        """The engine's settings. Raises correction.errors.SettingsError."""
        changes = [f"{key}={value}" for key, value in self.overrides]
        match self.method:
            case "clinical":
                return methods.clinical().override(changes)
            case "paper":
                return methods.paper().override(changes)
        raise SettingsError(f"'{self.method}' is no method; write clinical or paper.")

    def resolved_device(self) -> str:
        """The device that `auto` stands for on this machine."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


def settings_digest(recipe: Recipe, policy: DerivePolicy) -> str:
    """Of everything a site can set that decides what is in the corrected images.

    Companions go beside them: to switch one on must not give all images new UIDs.
    """
    images = replace(policy, companions=CompanionPolicy())
    settings = [asdict(recipe), asdict(recipe.settings()), asdict(images)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
