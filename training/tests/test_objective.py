"""What Eq. 5 is made of: its weights, their schedule, which parts of the network each term needs, and the rank."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.model import NetworkConfig
from unifygeo_training.model.decoder import Decoded
from unifygeo_training.model.network import Aerial, Ground
from unifygeo_training.objective import LossConfig, Objective, effective_rank, exact

OFF = {"distribution": 0.0, "retrieval": 0.0, "matching": 0.0, "reranking": 0.0}


class Recorder(nn.Module):
    """A network of two images that counts what is asked of it; descriptors orthogonal, everything else even."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.config = NetworkConfig(aerial_size=32, output_stride=1).model_copy(update={"aerial_size": side})
        self.retrieval_scale = nn.Parameter(torch.tensor(1.0))
        self.reranking_scale = nn.Parameter(torch.tensor(1.0))
        self.descriptors = self.decodings = 0

    def encode_ground(self, image: Tensor, *, descriptor: bool) -> Ground:
        self.descriptors += descriptor
        return Ground(torch.eye(4)[:2] if descriptor else None, (torch.tensor([[1.0, 0.0], [1.0, 0.0]]),) * 4)

    def encode_aerial(self, image: Tensor, *, descriptor: bool) -> Aerial:
        self.descriptors += descriptor
        match_map = torch.tensor([0.0, 1.0]).expand(2, 2).reshape(2, 2, 1, 1)
        return Aerial(torch.eye(4)[2:] if descriptor else None, (), match_map)

    def decode(self, levels: tuple[Tensor, ...], pyramid: tuple[Tensor, ...]) -> Decoded:
        self.decodings += 1
        return Decoded(torch.zeros(2, 8, 8), tuple(torch.zeros(2, size, size) for size in (1, 2, 4, 8)))


def terms(alpha: float, position: Tensor | None = None, **weights: float) -> tuple[dict[str, float], Recorder]:
    network = Recorder()
    image = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    position = torch.tensor([[0.5, 0.5], [0.25, 0.75]]) if position is None else position
    objective = Objective(network, LossConfig(**{**OFF, **weights, "gaussian_sigma": 48.0}))
    found = objective(image, image, position, alpha=alpha)
    return {name: float(value.detach()) for name, value in found.items()}, network


@pytest.mark.parametrize(
    ("weight", "bits"), [("distribution", 6), ("matching", 12), ("reranking", 1)], ids=lambda value: str(value)
)
def test_each_detailed_loss_alone_needs_no_descriptor(weight: str, bits: int) -> None:
    """L_D = ln 64, L_M = ln 1 + ln 4 + ln 16 + ln 64, L_R = ln 2 (two tiles); half of it with half the weight."""
    found, network = terms(0.0, **{weight: 0.5})
    assert found["loss"] == pytest.approx(0.5 * bits * math.log(2), rel=1e-5)
    assert (network.descriptors, network.decodings) == (0, 1)
    assert ("L_R" in found) == (weight == "reranking")
    assert not {"L_G", "effective_rank"} & found.keys()


def test_retrieval_loss_alone_decodes_nothing_and_gives_the_effective_rank() -> None:
    found, network = terms(0.5)
    assert found == pytest.approx({"loss": 0.5 * math.log(2), "L_G": math.log(2), "effective_rank": 1.0}, rel=1e-5)
    assert (network.descriptors, network.decodings) == (2, 0)


def test_terms_without_weight_are_reported_and_not_added() -> None:
    found, _ = terms(0.0, matching=1.0)
    assert found["L_D"] == pytest.approx(6 * math.log(2), rel=1e-5)
    assert found["loss"] == found["L_M"]


def test_positions_as_bits_give_the_same_loss_as_positions_as_numbers() -> None:
    position = torch.tensor([[0.3001, 0.6203], [0.8107, 0.4509]])
    bits = exact(position.double())
    assert bits.dtype == torch.int32
    assert torch.equal(bits.view(torch.float32), position)
    as_numbers, as_bits = terms(1.0, position, distribution=1.0), terms(1.0, bits, distribution=1.0)
    assert as_bits[0] == as_numbers[0]


@pytest.mark.parametrize("name", [*OFF, "retrieval_from_step", "retrieval_ramp_steps"])
def test_weights_and_steps_may_be_nothing_but_not_less(name: str) -> None:
    value: Any = 0 if "step" in name else 0.0
    assert getattr(LossConfig(**{name: value}), name) == value
    if name in OFF:
        assert getattr(LossConfig(**{name: 0.25}), name) == 0.25
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LossConfig(**{name: -1})


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_label_without_width_is_refused(sigma: float) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        LossConfig(gaussian_sigma=sigma)
    assert LossConfig(gaussian_sigma=0.5).gaussian_sigma == 0.5


def test_label_has_its_width_at_the_published_size() -> None:
    assert Objective(Recorder(384), LossConfig()).sigma_px == 4.0
    assert Objective(Recorder(96), LossConfig()).sigma_px == 1.0


def test_label_between_the_pixels_is_refused_with_the_width_that_would_do() -> None:
    """0.25 pixels of a distribution of 64 are 1.5 pixels of 384."""
    assert Objective(Recorder(64), LossConfig(gaussian_sigma=1.5)).sigma_px == 0.25
    with pytest.raises(ConfigurationError, match=r"1\.4 is 0\.233 pixels .* 64 × 64, .* 0\.25; set it to 1\.5 or more"):
        Objective(Recorder(64), LossConfig(gaussian_sigma=1.4))


def test_configuration_cannot_be_changed_and_takes_no_unknown_name() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LossConfig().retrieval = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        LossConfig(retreival=1.0)  # type: ignore[call-arg]


def test_retrieval_joins_at_once_and_whole_by_default() -> None:
    config = LossConfig()
    assert (config.retrieval_from_step, config.retrieval_ramp_steps) == (0, 0)
    assert [config.retrieval_at(step) for step in (0, 1, 1000)] == [100.0, 100.0, 100.0]


def test_retrieval_weight_follows_its_schedule() -> None:
    config = LossConfig(retrieval=100, retrieval_from_step=10, retrieval_ramp_steps=3)
    assert [config.retrieval_at(step) for step in (0, 9, 10, 11, 12, 13, 99)] == [0, 0, 25, 50, 75, 100, 100]


def test_effective_rank_counts_directions() -> None:
    assert float(effective_rank(torch.eye(8))) == pytest.approx(7.0, rel=1e-5)  # 8 centred points span 7 directions
    line = torch.linspace(-1, 1, 8)[:, None] * torch.ones(1, 5)
    assert float(effective_rank(line)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("length", [1.0, 1e-3])
def test_effective_rank_is_the_exponential_of_the_entropy_of_the_spectrum(length: float) -> None:
    """Two points each at ±2, ±1 and ±1 along three axes: energies 8, 2, 2 of 12, whatever their unit."""
    points = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    shares = (8 / 12, 2 / 12, 2 / 12)
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert float(effective_rank(5.0 + length * points)) == pytest.approx(expected, rel=1e-3)


def test_equal_descriptors_have_the_smallest_rank() -> None:
    assert float(effective_rank(torch.ones(4, 3))) == 1.0
