"""The network against the published tensor list and the numbers of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_names import published_name
from small_runs import SMALL, TOWNS_ATTO

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training.checkpoint import load_published, our_name, read_tensors
from unifygeo_training.model import NetworkConfig, UnifyGeo
from unifygeo_training.model.encoder import Aggregator
from unifygeo_training.model.layers import unit_length

TENSORS = Path(__file__).resolve().parents[3] / "shared/reference/published_checkpoint_tensors.txt"


def published_from_ours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's state dict under the published names."""
    return {published_name(name) or name: tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def published() -> UnifyGeo:
    """Names and shapes alone: its tensors hold no numbers."""
    with torch.device("meta"):
        return UnifyGeo(NetworkConfig())


PUBLISHED_LAYOUT = NetworkConfig(backbone="convnext_atto", ground_height=64, ground_width=160, aerial_size=64)
"""Small, with the layers of the published network: its D has as many pixels as the tile."""


@pytest.fixture(scope="module")
def random_state() -> dict[str, torch.Tensor]:
    """A state dict of PUBLISHED_LAYOUT under the published names, filled with random numbers."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 1000, value.shape, generator=generator)
        if value.dtype == torch.int64
        else torch.randn(value.shape, generator=generator)
        for name, value in published_from_ours(UnifyGeo(PUBLISHED_LAYOUT).state_dict()).items()
    }


def test_counts_are_those_of_the_published_network(published: UnifyGeo) -> None:
    assert sum(p.numel() for p in published.parameters()) == 57_698_869
    assert sum(v.numel() for v in published.state_dict().values()) == 57_700_330
    assert len(published.state_dict()) == 457


@pytest.mark.skipif(not TENSORS.exists(), reason=f"needs {TENSORS}")
def test_names_and_shapes_are_those_of_the_published_list(published: UnifyGeo) -> None:
    listed = {}
    for line in TENSORS.read_text().splitlines():
        name, shape = line.split(" ", 1)
        listed[name] = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
    ours = {name: tuple(v.shape) for name, v in published_from_ours(published.state_dict()).items()}
    assert ours == listed


def test_mapping_is_complete_and_one_to_one(published: UnifyGeo) -> None:
    names = list(published.state_dict())
    theirs = [published_name(name) for name in names]
    assert len(set(theirs)) == 457
    assert None not in theirs
    assert [our_name(name) for name in theirs] == names


def test_random_state_round_trips_bit_for_bit(random_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(random_state, file)
    network = UnifyGeo(PUBLISHED_LAYOUT)
    load_published(network, read_tensors(file), str(file))
    back = published_from_ours(network.state_dict())
    assert back.keys() == random_state.keys()
    assert all(torch.equal(back[name], random_state[name]) for name in back)


@pytest.mark.parametrize("damage", ["missing", "extra", "misshaped", "not finite"])
def test_tensor_that_does_not_fit_is_named(random_state: dict[str, torch.Tensor], damage: str) -> None:
    name = "pyramid_decoder.conv3.0.weight"
    state = dict(random_state)
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        name = "pyramid_decoder.conv9.0.weight"
        state[name] = torch.zeros(1)
    elif damage == "misshaped":
        state[name] = state[name][:, :, :, :1]
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    with pytest.raises(InputError, match=(our_name(name) or name).replace(".", r"\.")):
        load_published(UnifyGeo(PUBLISHED_LAYOUT), state, "weights.pth")


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"logit_scale": _Harmful()}, file)
    with pytest.raises(InputError, match="unpickling it could run code"):
        read_tensors(file)
    assert "code ran" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def small() -> UnifyGeo:
    torch.manual_seed(0)
    return UnifyGeo(TOWNS_ATTO).eval()


@torch.no_grad()
def test_unit_length_keeps_a_zero_vector_and_scales_a_small_one() -> None:
    found = unit_length(torch.tensor([[0.0, 0.0], [3e-6, 4e-6]]), dim=1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_shapes_and_unit_lengths_of_the_small_member(small: UnifyGeo) -> None:
    ground = small.encode_ground(torch.randint(0, 256, (2, 96, 320, 3), dtype=torch.uint8))
    aerial = small.encode_aerial(torch.randint(0, 256, (2, 192, 192, 3), dtype=torch.uint8))
    decoded = small.decode(ground.levels, aerial.pyramid)
    assert [tuple(f.shape) for f in ground.levels] == [(2, 320), (2, 160), (2, 80), (2, 40)]
    assert [tuple(p.shape) for p in aerial.pyramid] == [(2, c, s, s) for c, s in small.pyramid_shape]
    assert [m.shape[-1] for m in decoded.matches] == [6, 12, 24, 48]
    assert decoded.logits.shape == (2, 96, 96)
    for unit in (ground.descriptor, aerial.descriptor, *ground.levels, aerial.match_map):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones_like(unit.norm(dim=1)))


@torch.no_grad()
def test_m0_is_the_product_of_level_0_and_the_match_map(small: UnifyGeo) -> None:
    ground = small.encode_ground(torch.randint(0, 256, (2, 96, 320, 3), dtype=torch.uint8))
    aerial = small.encode_aerial(torch.randint(0, 256, (2, 192, 192, 3), dtype=torch.uint8))
    decoded = small.decode(ground.levels, aerial.pyramid)
    expected = torch.einsum("nc,nchw->nhw", ground.levels[0], aerial.match_map)
    torch.testing.assert_close(decoded.matches[0], expected)


@torch.no_grad()
def test_batch_equals_its_single_images(small: UnifyGeo) -> None:
    images = torch.randint(0, 256, (3, 96, 320, 3), dtype=torch.uint8)
    together = small.encode_ground(images)
    for n in range(3):
        alone = small.encode_ground(images[n : n + 1])
        torch.testing.assert_close(alone.descriptor[0], together.descriptor[n], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.levels[0][0], together.levels[0][n], atol=1e-5, rtol=0)


@torch.no_grad()
def test_f_is_column_major(small: UnifyGeo) -> None:
    """Rolling F_g⁰ by one column rolls every f by its channels in a column (LayerNorm's weights are still equal)."""
    f0 = torch.randn(1, 320, 3, 10)
    rolled = small.decoder.project(f0.roll(1, dims=3))
    for f, r in zip(small.decoder.project(f0), rolled, strict=True):
        torch.testing.assert_close(r, f.roll(f.shape[1] // 10, dims=1))


def test_attention_starts_as_plain_gem(small: UnifyGeo) -> None:
    g = torch.rand(1, 320, 3, 10) + 0.1
    aggregator = small.ground.aggregator
    plain = aggregator.norm(aggregator.gem(g))
    torch.testing.assert_close(aggregator(g), plain / plain.norm(dim=1, keepdim=True))
    # GeM by hand: the mean of cubes, its cube root.
    torch.testing.assert_close(aggregator.gem(g)[0, 0], (g[0, 0] ** 3).mean() ** (1 / 3))


def test_average_pooling_is_the_mean_over_all_positions() -> None:
    """The paper's ablation without the feature aggregator: neither attention nor a power."""
    aggregator = Aggregator(6, kind="average")
    assert {name for name, _ in aggregator.named_parameters()} == {"norm.weight", "norm.bias"}
    g = torch.randn(2, 6, 3, 4)  # negative values count, which GeM would clamp
    mean = g.sum(dim=(2, 3)) / 12
    normed = (mean - mean.mean(dim=1, keepdim=True)) / mean.std(dim=1, unbiased=False, keepdim=True)
    torch.testing.assert_close(aggregator(g).detach(), normed / normed.norm(dim=1, keepdim=True), atol=1e-4, rtol=0)


def test_rows_of_cvusa_and_cvact_need_not_fill_the_last_cell():
    config = NetworkConfig(
        backbone="convnext_atto", ground_height=140, ground_width=320, aerial_size=64, layer_scale=0.1
    )
    assert config.rows == 4
    network = UnifyGeo(config).eval()
    ground = network.encode_ground(torch.zeros(1, 140, 320, 3, dtype=torch.uint8))
    assert [level.shape[1] for level in ground.levels] == [320, 160, 80, 40]


@pytest.mark.parametrize("backbone", ["resnet18", "regnety_002", "convnextv2_atto"])
def test_trunks_of_other_families_give_the_same_pyramid(backbone: str) -> None:
    config = SMALL.model_copy(update={"backbone": backbone, "ground_width": 256, "ground_height": 64})
    network = UnifyGeo(config).eval()
    assert [size for _, size in network.pyramid_shape] == [2, 4, 8, 16]
    ground = network.encode_ground(torch.zeros(1, 64, 256, 3, dtype=torch.uint8))
    aerial = network.encode_aerial(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert [tuple(map_.shape[1:]) for map_ in aerial.pyramid] == [(c, s, s) for c, s in network.pyramid_shape]
    assert [level.shape[1] for level in ground.levels] == [c for c, _ in network.pyramid_shape]
    assert network.decode(ground.levels, aerial.pyramid).logits.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("backbone", "why"),
    [("resnet18000", "resnet18000.*Unknown model"), ("vit_tiny_patch16_224", r"strides .* not \(4, 8, 16\)")],
)
def test_trunk_that_does_not_fit_is_one_error(backbone: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        UnifyGeo(SMALL.model_copy(update={"backbone": backbone}))
