"""Each loss against a case worked by hand, and the gathered losses against one process with the whole batch."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from small_runs import in_two_processes
from torch import Tensor

from unifygeo_training import losses


def test_gaussian_label_peaks_at_the_camera() -> None:
    # Position 0.5 of a 4-pixel map is pixel coordinate 0.5 · 4 − 0.5 = 1.5: between pixels 1 and 2.
    label = losses.gaussian_label(torch.tensor([[0.5, 0.375]]), 4, sigma=1.0)
    assert label.shape == (1, 4, 4)
    # Row 1 is half a pixel away, column 0.375 · 4 − 0.5 = 1 is met exactly.
    assert float(label[0, 1, 1]) == pytest.approx(math.exp(-(0.5**2) / 2))
    assert float(label[0, 3, 0]) == pytest.approx(math.exp(-(1.5**2 + 1.0**2) / 2))


def test_distribution_loss_by_hand() -> None:
    # Logits 0, 0, 0, ln 3: D = 1/6, 1/6, 1/6, 1/2. Label 0, 1, 0, 3 → 0, 1/4, 0, 3/4.
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]])
    label = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])
    expected = -(0.25 * math.log(1 / 6) + 0.75 * math.log(1 / 2))
    assert float(losses.distribution_loss(logits, label)) == pytest.approx(expected, rel=1e-6)


def test_level_weights_by_hand() -> None:
    # 2 × 2 blocks of a 4 × 4 label: maxima 0.6, 0.2, 0.01 (not above the threshold), 0.0 → 0.75, 0.25, 0, 0.
    label = torch.zeros(1, 4, 4)
    label[0, 0, 1], label[0, 1, 0], label[0, 0, 3], label[0, 3, 0] = 0.6, 0.5, 0.2, 0.01
    weights = losses.level_weights(label, 2)
    torch.testing.assert_close(weights, torch.tensor([[[0.75, 0.25], [0.0, 0.0]]]))


def test_matching_loss_by_hand() -> None:
    # Cosines 0.1 and 0 at τ = 0.1: softmax of 1, 0. Weights 0.75, 0.25.
    match, weights = torch.tensor([[[0.1, 0.0]]]), torch.tensor([[[0.75, 0.25]]])
    z = math.e + 1
    expected = -(0.75 * math.log(math.e / z) + 0.25 * math.log(1 / z))
    assert float(losses.matching_loss(match, weights)) == pytest.approx(expected, rel=1e-6)


def test_reranking_loss_by_hand() -> None:
    # Two queries, two tiles of two positions, two channels; one softmax over all four positions, temperature 1.
    f0 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tiles = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.6, 0.0]], [[0.8, 1.0]]]])  # (tile, channel, 1, 2)
    weights = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    # Query 0: cosines 1, 0 | 0.6, 0; truth position 0 of tile 0. Query 1: 0, 1 | 0.8, 1; truth both of tile 1.
    first = -math.log(math.e / (math.e + 1 + math.exp(0.6) + 1))
    z = 1 + math.e + math.exp(0.8) + math.e
    second = -(0.5 * math.log(math.exp(0.8) / z) + 0.5 * math.log(math.e / z))
    loss = losses.reranking_loss(f0, tiles, weights, torch.tensor(0.0))
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)


def test_retrieval_loss_by_hand() -> None:
    # v_g0 = v_a0 = (1, 0), v_g1 = (0.6, 0.8), v_a1 = (0, 1); temperature 1, smoothing 0.1 over two classes:
    # the target is 0.95 on the own one and 0.05 on the other.
    ground, aerial = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    def entropy(own: float, other: float) -> float:
        z = math.log(math.exp(own) + math.exp(other))
        return -(0.95 * (own - z) + 0.05 * (other - z))

    to_aerial = (entropy(1.0, 0.0) + entropy(0.8, 0.6)) / 2
    to_ground = (entropy(1.0, 0.6) + entropy(0.8, 0.0)) / 2
    loss = losses.retrieval_loss(ground, aerial, torch.tensor(0.0))
    assert float(loss) == pytest.approx((to_aerial + to_ground) / 2, rel=1e-6)


def test_temperature_is_bounded() -> None:
    assert float(losses.scale(torch.tensor(math.log(1 / 0.07)))) == pytest.approx(1 / 0.07, rel=1e-5)
    assert float(losses.scale(torch.tensor(20.0))) == 100.0


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=1)

    weights = torch.rand(4, 2, 2, generator=generator)
    return {
        "ground": unit(4, 6),
        "aerial": unit(4, 6),
        "f0": unit(4, 5),
        "match_map": unit(4, 5, 2, 2),
        "weights": weights / weights.sum(dim=(1, 2), keepdim=True),
    }


def _both_losses(batch: dict[str, Tensor], log_scale: Tensor) -> Tensor:
    retrieval = losses.retrieval_loss(batch["ground"], batch["aerial"], log_scale)
    return retrieval + losses.reranking_loss(batch["f0"], batch["match_map"], batch["weights"], log_scale)


def _gradients(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: value.clone().requires_grad_(name != "weights") for name, value in batch.items()}
    loss = _both_losses(leaves, torch.tensor(1.0))
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def _worker(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1")
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    own = {name: value[2 * rank : 2 * rank + 2] for name, value in _batch().items()}
    torch.save(_gradients(own), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_negatives_of_two_processes_equal_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    in_two_processes(_worker, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    loss, gradients = _gradients(_batch())
    # Data-parallel training averages the losses and the gradients of its processes.
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(torch.cat([parts[0][1][name], parts[1][1][name]]) / 2, gradient)
