"""Trunks that keep what photographs taught them, and pairs that come in twos."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from small_runs import Dots, small_config
from torch import nn

from unifygeo_ros.core.errors import InputError
from unifygeo_training.checkpoint import read_tensors
from unifygeo_training.data.augmentation import AugmentationConfig
from unifygeo_training.data.pairs import Batches
from unifygeo_training.fit import Float32Depthwise, Run, fit, use_float32_depthwise
from unifygeo_training.fit_config import FitConfig
from unifygeo_training.model import NetworkConfig
from unifygeo_training.model.lite_trunk import NAMES, SHORT, lite_trunk, load_lite_weights

PLAIN = AugmentationConfig(colour=0.0, blur=0.0, sharpen=0.0, noise=0.0, jpeg=0.0, grid_dropout=0.0, coarse_dropout=0.0)


def inverted(channels: int, out: int, kernel: int) -> int:
    """Parameters of an inverted bottleneck that widens six times: three convolutions, two numbers a channel each."""
    wide = 6 * channels
    return channels * wide + 2 * wide + kernel**2 * wide + 2 * wide + wide * out + 2 * out


START = 27 * 32 + 2 * 32 + 9 * 32 + 2 * 32 + 32 * 16 + 2 * 16
"""The stem, and the block that does not widen."""


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        (SHORT, (24, 40, 80), [(24, 3, 2), (40, 5, 2), (80, 3, 3)]),
        ("efficientnet_lite0", (24, 40, 112), [(24, 3, 2), (40, 5, 2), (80, 3, 3), (112, 5, 3)]),
        ("efficientnet_lite2", (24, 48, 120), [(24, 3, 3), (48, 5, 3), (88, 3, 4), (120, 5, 4)]),
    ],
)
def test_members_of_the_family(
    name: str, channels: tuple[int, ...], blocks: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    """blocks: channels, kernel and layers of each stage."""
    trunk = lite_trunk(name)
    wanted, before = START, 16
    for out, kernel, layers in blocks:
        wanted += inverted(before, out, kernel) + (layers - 1) * inverted(out, out, kernel)
        before = out
    assert sum(p.numel() for p in trunk.parameters()) == wanted
    maps = trunk(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // stride, 96 // stride) for c, stride in zip(channels, (4, 8, 16), strict=True)
    ]
    torch.save({**trunk.state_dict(), "conv_head.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    other = lite_trunk(name)
    load_lite_weights(other, read_tensors(tmp_path / "weights.pth"), "weights")
    assert all(torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), other.state_dict().values(), strict=True))


def test_file_of_weights_that_is_cut_off_is_refused_with_a_reason(tmp_path: Path) -> None:
    """In torch's format of before 1.6, as the published ones are: its end comes without a word."""
    whole = tmp_path / "whole.pth"
    torch.save(lite_trunk().state_dict(), whole, _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[: len(pickle.dumps(torch.serialization.MAGIC_NUMBER, 2))])
    with pytest.raises(InputError, match=r"cut\.pth: cannot be read as weights \(EOFError"):
        read_tensors(tmp_path / "cut.pth")


@pytest.mark.parametrize("maps", [1, 2, 3])
def test_frozen_maps_stay_as_they_started(maps: int, tmp_path: Path) -> None:
    network = NetworkConfig(backbone=SHORT, ground_height=32, ground_width=64, aerial_size=64, output_stride=2)
    config = small_config(network=network, frozen_maps=maps)
    start = {k: v.clone() for k, v in Run(config, Fabric(accelerator="cpu")).network.state_dict().items()}
    end = torch.load(fit(config, Dots(), tmp_path / "run"), weights_only=False)["model"]
    for branch in ("ground", "aerial"):
        for name in (n for n in start if n.startswith(f"{branch}.trunk.")):
            block = name.split(".")[3] if ".blocks." in name else "0"
            # Norms' statistics stay in the whole trunk.
            if int(block) <= maps or "running" in name or "batches" in name:
                assert torch.equal(start[name], end[name]), name
            elif name.endswith("weight"):
                assert not torch.equal(start[name], end[name]), name
    assert not torch.equal(start["decoder.output.0.weight"], end["decoder.output.0.weight"])


def test_frozen_maps_are_of_trunks_that_are_known() -> None:
    with pytest.raises(
        ValueError, match=rf"test_convnext2; set that to one of {', '.join(NAMES)}, or leave frozen_maps"
    ):
        FitConfig.model_validate({**small_config().model_dump(), "frozen_maps": 2})


def test_depthwise_convolutions_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), nn.Conv2d(8, 4, 1))
    wanted = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
    wanted.load_state_dict(layers[1].state_dict())
    names = list(layers.state_dict())
    use_float32_depthwise(layers)
    assert [type(layer) for layer in layers] == [nn.Conv2d, Float32Depthwise, nn.Conv2d]
    assert list(layers.state_dict()) == names
    x = torch.randn(2, 8, 12, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layers[1](x)
    expected = wanted(x.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    found.float().square().sum().backward()
    expected.bfloat16().float().square().sum().backward()
    assert layers[1].weight.grad is not None
    assert wanted.weight.grad is not None
    assert torch.allclose(layers[1].weight.grad, wanted.weight.grad, rtol=1e-5)


def test_runs_in_bfloat16_use_them_on_a_cpu() -> None:
    def kinds(precision: str) -> set[type]:
        hardware = {"accelerator": "cpu", "precision": precision, "threads": 1, "workers": 0}
        run = Run(small_config(hardware=hardware), Fabric(accelerator="cpu"))
        return {type(m) for m in run.network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1}

    assert kinds("32-true") == {nn.Conv2d}
    assert kinds("bf16-mixed") == {Float32Depthwise}


@pytest.mark.parametrize("world_size", [1, 2])
def test_twins_are_one_place_turned_by_half_a_turn(world_size: int) -> None:
    """A quarter of the pairs in twos: of eight, the places 0 and 1; the other six are of six other places."""
    twins = PLAIN.model_copy(update={"turned_twins": 0.25})
    for seed in range(5):
        batches = [
            Batches(Dots(), 8 // world_size, twins, seed=seed, rank=r, world_size=world_size) for r in range(world_size)
        ]
        parts = [batch[3] for batch in batches]
        tile, panorama, position = (np.concatenate([p[n] for p in parts]) for n in ("tile", "panorama", "position"))
        assert np.array_equal(tile[1], tile[0, ::-1, ::-1])
        assert np.array_equal(panorama[1], np.roll(panorama[0], panorama.shape[2] // 2, axis=1))
        assert position[1] == pytest.approx(1 - position[0])
        assert len(np.unique(tile[1:].reshape(7, -1).mean(axis=1).round(6))) == 7


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_all_pairs_can_have_twins_but_the_last_of_an_odd_batch(size: int) -> None:
    tile = Batches(Dots(), size, PLAIN.model_copy(update={"turned_twins": 1.0}), seed=0)[0]["tile"]
    assert len(tile) == size
    for first in range(0, size - 1, 2):
        assert np.array_equal(tile[first + 1], tile[first, ::-1, ::-1])
    assert len(np.unique(tile.reshape(size, -1).mean(axis=1).round(6))) == (size + 1) // 2


def test_without_twins_batches_are_what_they_were() -> None:
    """Runs of before go on: the first numbers of a pair's generator turn it."""
    batch = Batches(Dots(), 4, PLAIN, seed=0)[1]
    members = Dots().draw(np.random.default_rng((0, 1)), 4)
    for place, member in enumerate(members):
        rng = np.random.default_rng((0, 1, place))
        tile = Dots().read(member, rng).tile
        tile = tile[:, ::-1] if rng.random() < 0.5 else tile
        assert np.array_equal(batch["tile"][place], np.rot90(tile, int(rng.integers(4))))
