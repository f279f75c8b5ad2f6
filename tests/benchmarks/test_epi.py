"""The EPI-like cases: the truth they state is the distortion they have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks import epi, metrics
from benchmarks.cases import Case, load_case, save_case
from benchmarks.heads import STEP_MM, Head
from correction import Volume, apply

PROTOCOL = epi.Protocol("j", 3, 3.0, (12.0, -5.0, 8.0), voxel_mm=3.0, matrix=40, noise=0.0)


@pytest.fixture(scope="module")
def ball() -> Head:
    """A textured ball of tissue, 42 mm in radius, with a cavity near its front."""
    size = 72
    z, y, x = ((np.indices((size,) * 3) - (size - 1) / 2) * STEP_MM).astype(np.float64)
    radius = np.sqrt(x**2 + y**2 + z**2)
    cavity = x**2 + (y + 42) ** 2 + (z + 18) ** 2 < 12**2
    signal = 0.6 + 0.3 * np.sin(x / 4) * np.sin(y / 5) * np.cos(z / 6)
    affine = np.diag([STEP_MM, STEP_MM, STEP_MM, 1.0])
    affine[:3, 3] = -STEP_MM * (size - 1) / 2
    tissue = (radius < 46) & ~cavity
    inside = (radius < 40) & ~cavity
    volumes = (Volume.from_numpy(a, affine) for a in (signal * tissue, inside, tissue))
    t2, within, solid = volumes
    return Head("ball", {"T1": t2}, t2, within, solid)


@pytest.mark.parametrize("phase_encoding", ["j", "j-", "i", "k-"])
def test_the_stated_field_undoes_the_distortion_once_modulated(ball: Head, phase_encoding: str) -> None:
    made = epi.scan(ball, replace(PROTOCOL, phase_encoding=phase_encoding))
    case = _case(ball, made, phase_encoding)
    jacobian = metrics.determinant(case, case.displacement_mm)
    corrected = apply.warp(case.b0, case.displacement_mm).data.numpy() * jacobian
    assert _unlike(case, corrected) < 0.5 * _unlike(case, case.b0.data.double().numpy())
    assert jacobian[case.brain.numpy()].min() > 0


def test_signal_moves_and_is_not_lost(ball: Head) -> None:
    made = epi.scan(ball, PROTOCOL)
    assert float(made.b0.data.sum()) == pytest.approx(float(made.undistorted.data.sum()), rel=0.01)


def test_reversing_the_polarity_reverses_the_field(ball: Head) -> None:
    forth, back = (epi.scan(ball, replace(PROTOCOL, phase_encoding=p)) for p in ("j", "j-"))
    np.testing.assert_allclose(forth.displacement_mm, -back.displacement_mm, atol=1e-5)
    assert torch.equal(forth.undistorted.data, back.undistorted.data)


def test_a_seed_makes_the_same_case_again(ball: Head) -> None:
    noisy = replace(PROTOCOL, noise=0.05)
    first, again, other = (epi.scan(ball, p).b0.data for p in (noisy, noisy, replace(noisy, seed=4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_saved_case_is_read_as_it_was(ball: Head, tmp_path: Path) -> None:
    case = _case(ball, epi.scan(ball, PROTOCOL), "j")
    save_case(case, tmp_path / "split" / "case.pt")
    read = load_case(tmp_path / "split" / "case.pt")
    assert (read.name, read.kind, read.phase_encoding, read.modulated) == ("ball", "epi", "j", True)
    assert torch.equal(read.displacement_mm, case.displacement_mm)
    assert torch.equal(read.brain, case.brain)
    np.testing.assert_array_equal(read.b0.affine, case.b0.affine)


def _unlike(case: Case, image: npt.NDArray[np.float64]) -> float:
    brain = case.brain.numpy()
    return 1 - float(np.corrcoef(case.undistorted.data.numpy()[brain], image[brain])[0, 1])


def _case(ball: Head, made: epi.Scan, phase_encoding: str) -> Case:
    return Case(
        "ball", "epi", made.b0, ball.images["T1"], phase_encoding,
        torch.from_numpy(made.displacement_mm), torch.from_numpy(made.brain), made.undistorted, True,
    )  # fmt: skip
