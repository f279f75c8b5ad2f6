from __future__ import annotations

from dataclasses import replace

import pytest

from correction.errors import SettingsError
from dicom_node.derive import CompanionPolicy, DerivePolicy, OutputGrid
from dicom_node.recipe import Recipe, settings_digest


def test_the_recipe_knows_two_methods_and_says_so() -> None:
    assert Recipe("clinical", (("iterations", "7"),)).settings().iterations == 7
    assert Recipe("paper").settings().name == "paper"
    with pytest.raises(SettingsError, match="clinical or paper"):
        Recipe("magic").settings()


def test_a_companion_more_does_not_make_other_images() -> None:
    def digest(**changes: object) -> str:
        return settings_digest(Recipe(), replace(DerivePolicy(), **changes))  # type: ignore[arg-type]

    assert digest(companions=CompanionPolicy(qc=True, adc=True)) == digest()
    assert digest(grid=OutputGrid.REFERENCE) != digest()
