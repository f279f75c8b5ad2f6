"""MINIMA from the operator's files: made here with random tensors under the names of the published files.

The published files were not at hand, so these tests say that files of that form load, completely and into
the right layers; not what they would find.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from correction.landmarks import matchers, superpoint, weights
from correction.landmarks.features import kornia_features, lightglue_names
from correction.landmarks.superpoint import SuperPoint
from correction.landmarks.weights import WeightsError

PICTURES = torch.rand(2, 90, 122, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    matchers.built.cache_clear()
    yield
    matchers.built.cache_clear()


def _as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """kornia's names of LightGlue → those of a MINIMA checkpoint, with what such a file has besides."""
    renamed = {
        "matcher." + re.sub(r"^transformers\.(\d+)\.(self|cross)_attn\.", r"\2_attn.\1.", key): value
        for key, value in state.items()
        if key != "confidence_thresholds"
    }
    for layer in range(9):
        renamed[f"matcher.log_assignment.{layer}.r"] = torch.ones(1)
    return renamed | {"extractor.conv1a.weight": torch.zeros(64, 1, 3, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights")
    loftr = kornia_features().loftr.loftr
    state = loftr.LoFTR(pretrained=None, config=loftr.default_cfg).state_dict()
    torch.save({"state_dict": {f"matcher.{k}": v for k, v in state.items()}}, path / "minima_loftr.ckpt")
    glue = kornia_features().LightGlue(features=None, input_dim=256, flash=False).state_dict()
    torch.save(_as_published(glue), path / "minima_lightglue.pth")
    torch.save(SuperPoint().state_dict(), path / "superpoint_v1.pth")
    return path


@pytest.mark.parametrize("name", ["minima-loftr", "minima-lightglue"])
def test_files_of_the_published_form_are_read_and_their_hashes_recorded(name: str, folder: Path) -> None:
    found = matchers.matcher(name, folder)
    assert found.weights == {
        file.name: weights.sha256_of(folder / file.name) for file in matchers.FILES[name]
    }
    pairs = found.match(PICTURES, PICTURES.flip(2))
    assert len(pairs) == 2
    for matches in pairs:
        assert matches.fixed.shape == matches.moving.shape == (len(matches), 2)


@pytest.mark.parametrize("name", ["minima-loftr", "minima-lightglue"])
def test_without_its_files_a_minima_matcher_says_where_to_put_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights_dir"):
        matchers.matcher(name, tmp_path)


def test_every_tensor_of_lightglue_reaches_the_layer_of_its_name() -> None:
    module = kornia_features().LightGlue(features=None, input_dim=256, flash=False)
    wanted = {k: v for k, v in module.state_dict().items() if k != "confidence_thresholds"}
    assert len(wanted) == 251
    renamed = lightglue_names(_as_published(wanted))
    assert renamed.keys() == wanted.keys()
    assert all(renamed[key] is wanted[key] for key in wanted)


@pytest.mark.parametrize(
    ("name", "level", "key"),
    [
        ("minima_loftr.ckpt", "state_dict", "matcher.loftr_coarse.layers.0.q_proj.weight"),
        ("minima_lightglue.pth", None, "matcher.self_attn.4.Wqkv.weight"),
        ("superpoint_v1.pth", None, "convDb.bias"),
    ],
)
def test_a_file_that_lacks_one_tensor_or_has_another_shape_is_refused(
    name: str, level: str | None, key: str, folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    held = torch.load(folder / name, weights_only=True)
    state = held[level] if level else held
    whole = state.pop(key)
    matcher = "minima-loftr" if "loftr" in name else "minima-lightglue"
    (tmp_path / name).unlink()
    torch.save(held, tmp_path / name)
    with pytest.raises(WeightsError, match="missing"):
        matchers.matcher(matcher, tmp_path)
    state[key] = torch.cat([whole, whole])
    torch.save(held, tmp_path / name)
    with pytest.raises(WeightsError, match="do not fit"):
        matchers.matcher(matcher, tmp_path)


def test_loftr_is_built_as_it_was_trained(folder: Path) -> None:
    net = matchers.matcher("minima-loftr", folder)._net  # type: ignore[attr-defined]
    assert net.config["coarse"]["temp_bug_fix"] is True
    assert not net.training
    assert not kornia_features().loftr.loftr.default_cfg["coarse"]["temp_bug_fix"], (
        "kornia's own is untouched"
    )


def test_loftr_keypoints_are_given_with_pixel_centres_at_whole_numbers(folder: Path) -> None:
    matcher = matchers.matcher("minima-loftr", folder)
    spoken = torch.tensor([[16.0, 24.0], [40.5, 8.5]])

    class Speaking(torch.nn.Module):
        def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
            assert data["image0"].shape == (1, 1, 96, 128), "whole cells of eight"
            return {"keypoints0": spoken, "keypoints1": spoken + 1, "confidence": torch.tensor([0.5, 0.9])}

    matcher._net = Speaking()  # type: ignore[attr-defined]
    (one, _) = matcher.match(PICTURES, PICTURES)
    assert torch.equal(one.fixed, spoken - 0.5)
    assert torch.equal(one.moving, spoken + 0.5)


# ------------------------------------------------------------------ SuperPoint


def test_superpoint_has_the_layers_of_the_published_file() -> None:
    state = SuperPoint().state_dict()
    assert len(state) == 24
    assert sum(value.numel() for value in state.values()) == 1_300_865
    assert state["convPb.weight"].shape == (65, 256, 1, 1)
    logits, described = SuperPoint()(torch.rand(1, 1, 48, 64))
    assert logits.shape == (1, 65, 6, 8)
    assert described.shape == (1, 256, 6, 8)
    torch.testing.assert_close(described.norm(dim=1), torch.ones(1, 6, 8))


def test_a_corner_lies_in_its_cell_at_its_pixel() -> None:
    logits = torch.zeros(65, 6, 8)
    logits[64] = 10.0  # no corner anywhere
    logits[8 * 3 + 5, 2, 4] = 30.0  # row 3, column 5 of the cell in row 2, column 4
    logits[0, 3, 1] = 25.0
    found = superpoint.corners(logits, most=10)
    assert found.tolist() == [[4 * 8 + 5, 2 * 8 + 3], [8, 24]]
    assert superpoint.corners(logits, most=1).tolist() == [[37, 19]]


def test_of_corners_too_near_each_other_or_the_border_the_weaker_is_left_out() -> None:
    logits = torch.zeros(65, 6, 8)
    logits[64] = 10.0
    logits[8 * 3 + 3, 2, 4] = 30.0
    logits[8 * 3 + 5, 2, 4] = 29.0  # two pixels beside it
    logits[0, 0, 0] = 30.0  # in the border
    assert superpoint.corners(logits, most=10).tolist() == [[35, 19]]


def test_descriptors_are_read_between_the_centres_of_cells() -> None:
    coarse = torch.zeros(3, 6, 8)
    coarse[0] = 1.0
    coarse[1] = torch.arange(8.0)  # grows by one a cell along x
    coarse[2] = torch.arange(6.0)[:, None]
    points = torch.tensor([[3.5, 3.5], [11.5, 19.5], [30.0, 20.0]])  # centres of cells, and between
    expected = torch.stack([torch.ones(3), (points[:, 0] - 3.5) / 8, (points[:, 1] - 3.5) / 8], dim=1)
    torch.testing.assert_close(
        superpoint.described(coarse, points), torch.nn.functional.normalize(expected, dim=1)
    )
