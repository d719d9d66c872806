"""The network and Eq. 5 against an independent computation in numpy, and against numbers worked by hand.

The weights are random, and go into the network by their published names: a wrong name of the same shape (query and
key, semantic and fine head) shows here, too.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import numpy_reference as reference
import pytest
import torch
from numpy_reference import Weights
from published_names import published_name
from torch import Tensor, nn

from unifygeo_ros.core.arrays import Float64
from unifygeo_training.checkpoint import load_published
from unifygeo_training.model import NetworkConfig, UnifyGeo
from unifygeo_training.model.decoder import Decoded
from unifygeo_training.model.network import Aerial, Ground
from unifygeo_training.objective import LossConfig, Objective

CONFIG = NetworkConfig(
    backbone="convnext_atto",
    ground_height=64,
    ground_width=160,
    aerial_size=64,
    metres_per_pixel=1.0,
    layer_scale=0.1,
)
"""F⁰ of 2 × 5 cells on the ground, of 2 × 2 from above, D of 64 × 64."""


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if name.endswith("running_var"):  # as small as the epsilon counts
        return 2e-5 + 8e-5 * torch.rand(shape, generator=generator)
    normal = torch.randn(shape, generator=generator)
    if "logit_scale" in name:
        return 1.0 + 0.1 * normal
    if name.endswith("gem.p"):
        return 2.5 + 0.1 * normal
    if len(shape) <= 1:
        return (1.0 if name.endswith(("weight", "gamma")) else 0.0) + 0.3 * normal
    return normal / math.sqrt(math.prod(shape[1:]))


@pytest.fixture(scope="module")
def network() -> UnifyGeo:
    """Random everywhere but in the trunks, which are timm's own code."""
    torch.manual_seed(0)
    network = UnifyGeo(CONFIG).eval()
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, value in network.state_dict().items():
        theirs = published_name(name)
        assert theirs is not None
        state[theirs] = value.clone() if ".trunk." in name else random_tensor(theirs, tuple(value.shape), generator)
    network.published = state  # what the tests read back
    load_published(network, state, "random weights")
    return network


@pytest.fixture(scope="module")
def weights(network: UnifyGeo) -> Weights:
    return {name: value.double().numpy() for name, value in network.published.items()}


@pytest.fixture(scope="module")
def batch() -> dict[str, npt.NDArray]:
    rng = np.random.default_rng(2)
    # Coarse random colours: noise alone would look the same everywhere.
    panorama = rng.integers(0, 256, (3, 8, 20, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    tile = rng.integers(0, 256, (3, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    position = np.array([[0.30, 0.62], [0.81, 0.45], [0.52, 0.11]], np.float32)
    return {"panorama": panorama, "tile": tile, "position": position}


class Reference:
    """Everything that the tests compare, computed once. The trunks' features come from timm's modules."""

    def __init__(self, network: UnifyGeo, weights: Weights, batch: dict) -> None:
        ground = self._trunk(network.ground.trunk, reference.normalised(batch["panorama"]))
        aerial = self._trunk(network.aerial.trunk, reference.normalised(batch["tile"]))
        self.ground_descriptor = reference.descriptor(ground[2], weights, "grd")
        self.aerial_descriptor = reference.descriptor(aerial[2], weights, "sat")
        fine = reference.head(ground[2], weights, "grd_local_feats_decoder.model")
        self.levels = reference.projected(fine, weights)
        self.pyramid = [reference.head(aerial[2], weights, "sat_local_feats_decoder.model"), *aerial[::-1]]
        self.match_map = reference.unit(
            reference.layer_norm(self.pyramid[0], weights, "pyramid_decoder.sat_matching_block_norm1")
        )
        self.logits, self.matches = reference.decoded(self.levels, self.pyramid, weights)

    @staticmethod
    @torch.no_grad()
    def _trunk(trunk: nn.Module, image: Float64) -> list[Float64]:
        return [features.double().numpy() for features in trunk(torch.from_numpy(image).float())]


@pytest.fixture(scope="module")
def expected(network: UnifyGeo, weights: Weights, batch: dict) -> Reference:
    return Reference(network, weights, batch)


def close(found: Tensor, wanted: Float64, tolerance: float = 2e-4) -> None:
    """Within `tolerance` of the largest value."""
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_normalisation_is_imagenets_in_rgb_order(network: UnifyGeo) -> None:
    colours = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [124, 116, 104]]]], np.uint8)
    found = network.normalise(torch.from_numpy(colours))
    close(found, reference.normalised(colours), 1e-6)
    assert float(found[0, 0, 0, 0]) == pytest.approx((1 - 0.485) / 0.229, rel=1e-6)  # red of pure red
    assert float(found[0, 2, 0, 2]) == pytest.approx((1 - 0.406) / 0.225, rel=1e-6)  # blue of pure blue


@torch.no_grad()
def test_encoders_equal_the_reference(network: UnifyGeo, batch: dict, expected: Reference) -> None:
    ground = network.encode_ground(torch.from_numpy(batch["panorama"]))
    aerial = network.encode_aerial(torch.from_numpy(batch["tile"]))
    close(ground.descriptor, expected.ground_descriptor)
    close(aerial.descriptor, expected.aerial_descriptor)
    for found, wanted in zip(ground.levels, expected.levels, strict=True):
        close(found, wanted)
    for found, wanted in zip(aerial.pyramid, expected.pyramid, strict=True):
        close(found, wanted)
    close(aerial.match_map, expected.match_map)


@torch.no_grad()
def test_decoder_equals_the_reference_at_every_level(network: UnifyGeo, expected: Reference) -> None:
    levels = tuple(torch.from_numpy(level).float() for level in expected.levels)
    pyramid = tuple(torch.from_numpy(level).float() for level in expected.pyramid)
    found = network.decode(levels, pyramid)
    for match, wanted in zip(found.matches, expected.matches, strict=True):
        close(match, wanted)
    close(found.logits, expected.logits, 2e-3)  # the batch norms divide by a hundredth, and rounding grows with it


@pytest.mark.parametrize("sigma", [4.0, 24.0])
def test_objective_equals_the_reference(
    network: UnifyGeo, weights: Weights, batch: dict, expected: Reference, sigma: float
) -> None:
    """Eq. 5 with four different weights. sigma: of a tile of 384, so 64 / 384 of it here."""
    config = LossConfig(distribution=2.0, matching=3.0, reranking=5.0, gaussian_sigma=sigma)
    with torch.no_grad():
        found = Objective(network, config)(**{name: torch.from_numpy(v) for name, v in batch.items()}, alpha=7.0)
    label = reference.label(batch["position"].astype(float), 64, sigma * 64 / 384)
    target = (label / label.sum(axis=(1, 2), keepdims=True)).reshape(3, -1)
    pooled = [reference.pooled_weights(label, match.shape[-1]) for match in expected.matches]
    scales = {name: math.exp(float(weights[name])) for name in ("logit_scale", "logit_scale_rerank")}
    terms = {
        "L_G": reference.retrieval_loss(expected.ground_descriptor, expected.aerial_descriptor, scales["logit_scale"]),
        "L_D": reference.cross_entropy(expected.logits.reshape(3, -1), target),
        "L_M": sum(
            reference.cross_entropy(match.reshape(3, -1) / 0.1, weight.reshape(3, -1))
            for match, weight in zip(expected.matches, pooled, strict=True)
        ),
        "L_R": reference.reranking_loss(
            expected.levels[0], expected.match_map, pooled[0], scales["logit_scale_rerank"]
        ),
    }
    for name, value in terms.items():
        assert float(found[name]) == pytest.approx(value, rel=2e-3), name
    total = 7.0 * terms["L_G"] + 2.0 * terms["L_D"] + 3.0 * terms["L_M"] + 5.0 * terms["L_R"]
    assert float(found["loss"]) == pytest.approx(total, rel=2e-3)


class Indifferent(nn.Module):
    """A network that finds everything equally likely: two orthogonal descriptors, a D of 8 × 8, maps of 1, 2, 4, 8."""

    def __init__(self) -> None:
        super().__init__()
        self.config = NetworkConfig(aerial_size=32, output_stride=1).model_copy(update={"aerial_size": 8})
        self.retrieval_scale = nn.Parameter(torch.tensor(1.0))
        self.reranking_scale = nn.Parameter(torch.tensor(1.0))

    def encode_ground(self, image: Tensor, *, descriptor: bool) -> Ground:
        return Ground(torch.eye(4)[:2] if descriptor else None, (torch.tensor([[1.0, 0.0], [1.0, 0.0]]),) * 4)

    def encode_aerial(self, image: Tensor, *, descriptor: bool) -> Aerial:
        return Aerial(
            torch.eye(4)[2:] if descriptor else None, (), torch.tensor([0.0, 1.0]).expand(2, 2).reshape(2, 2, 1, 1)
        )

    def decode(self, levels: tuple[Tensor, ...], pyramid: tuple[Tensor, ...]) -> Decoded:
        return Decoded(torch.zeros(2, 8, 8), tuple(torch.zeros(2, s, s) for s in (1, 2, 4, 8)))


def test_eq_5_by_hand() -> None:
    """Every choice is even: L_D = ln 64, L_M = ln 1 + ln 4 + ln 16 + ln 64, L_G = L_R = ln 2 (two tiles)."""
    image, position = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    config = LossConfig(gaussian_sigma=48)  # a pixel of 8 × 8
    found = Objective(Indifferent(), config)(image, image, position, alpha=100.0)
    bits = {name: float(found[name].detach()) / math.log(2) for name in ("L_G", "L_D", "L_M", "L_R", "loss")}
    assert bits == pytest.approx({"L_G": 1, "L_D": 6, "L_M": 12, "L_R": 1, "loss": 100 * 1 + 6 + 10 * 12 + 1})


def test_default_weights_and_label_are_the_published_ones() -> None:
    config = LossConfig()
    assert (config.retrieval, config.matching, config.distribution, config.reranking) == (100.0, 10.0, 1.0, 1.0)
    assert config.gaussian_sigma == 4.0


def test_reranking_loss_alone_trains_both_fine_heads_and_its_temperature(network: UnifyGeo, batch: dict) -> None:
    network.zero_grad()
    config = LossConfig(distribution=0, retrieval=0, matching=0, reranking=1)
    objective = Objective(network, config)
    inputs = {name: torch.from_numpy(value) for name, value in batch.items()}
    objective(**inputs, alpha=0.0)["loss"].backward()
    for part in (network.ground.fine_head, network.aerial.fine_head, network.decoder.projectors[0]):
        assert all(float(p.grad.abs().max()) > 0 for p in part.parameters() if p.ndim > 1)
    # The temperature's gradient against the slope of the loss.
    slope, step = float(network.reranking_scale.grad), 1e-2
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            network.reranking_scale += sign * step
            losses.append(float(objective(**inputs, alpha=0.0)["loss"].detach()))
            network.reranking_scale -= sign * step
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=2e-2, abs=1e-3)
    network.zero_grad()
