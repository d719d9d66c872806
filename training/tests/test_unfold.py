"""A bundle back as a network: the shipped one, and training that starts from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_runs import TOWNS_ATTO, small_config
from torch import nn

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.inference.bundle import ModelBundle, load_bundle
from unifygeo_training import unfold
from unifygeo_training.checkpoint import load_network, read_tensors
from unifygeo_training.cli import main
from unifygeo_training.data.pairs import Pair
from unifygeo_training.fit import fit
from unifygeo_training.losses import scale
from unifygeo_training.model import UnifyGeo
from unifygeo_training.weights import BundleNetwork

MODELS = Path(__file__).resolve().parents[2] / "models"
SHIPPED = MODELS / "towns-atto"


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return load_bundle(SHIPPED)


@pytest.fixture(scope="module")
def network(bundle: ModelBundle) -> UnifyGeo:
    return unfold.network_of_bundle(bundle)


@torch.no_grad()
@pytest.mark.parametrize("model", ["towns-atto", "towns-lite", "towns-photo"])
def test_network_of_a_bundle_computes_what_its_graphs_compute(model: str) -> None:
    """The trunks of towns-lite and towns-photo have batch norms, which their graphs have not."""
    bundle = load_bundle(MODELS / model)
    network = unfold.network_of_bundle(bundle)
    smooth = torch.rand(2, 12, 20, 3).permute(0, 3, 1, 2)
    images = [
        nn.functional.interpolate(smooth, size, mode="bilinear").permute(0, 2, 3, 1).mul(255).byte()
        for size in ((96, network.config.ground_width), (192, 192))
    ]
    ours, theirs = [], []
    for one, outputs in ((network, ours), (BundleNetwork(bundle), theirs)):
        ground, aerial = one.encode_ground(images[0]), one.encode_aerial(images[1])
        outputs += [ground.descriptor, *ground.levels, aerial.descriptor, aerial.match_map]
        outputs.append(one.decode(ground.levels, aerial.pyramid).logits)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_graphs_that_are_another_networks_are_refused(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read = onnx.load

    def two_biases_exchanged(path: Path) -> onnx.ModelProto:
        model = read(path)
        named = {tensor.name: tensor for tensor in model.graph.initializer}
        a, b = (named.get(f"network.aerial.trunk.stages_0.blocks.{n}.mlp.fc2.bias") for n in (0, 1))
        if a is not None and b is not None:
            a.raw_data, b.raw_data = b.raw_data, a.raw_data
        return model

    monkeypatch.setattr(unfold.onnx, "load", two_biases_exchanged)
    with pytest.raises(InputError, match="the network read from its graphs differs from them"):
        unfold.network_of_bundle(bundle)
    config = {**bundle.manifest.network, "output_stride": 1}
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, network=config))
    monkeypatch.undo()
    with pytest.raises(InputError, match="do not fit the network"):
        unfold.network_of_bundle(other)


class Noise:
    """Pairs of noise."""

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        return list(range(count))

    def read(self, member: int, rng: np.random.Generator) -> Pair:
        panorama, tile = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((96, 320), (192, 192)))
        return Pair(panorama, tile, (0.4, 0.6))


def test_temperatures_start_at_what_the_bundle_was_calibrated_to(bundle: ModelBundle, network: UnifyGeo) -> None:
    def found(calibrated: bool, tile_temperature: float) -> list[float]:
        calibration = dataclasses.replace(bundle.manifest.calibration, tile_temperature=tile_temperature)
        manifest = dataclasses.replace(bundle.manifest, calibration=calibration, calibrated=calibrated)
        rebuilt = unfold.network_of_bundle(dataclasses.replace(bundle, manifest=manifest))
        return [1 / float(scale(value)) for value in (rebuilt.retrieval_scale, rebuilt.reranking_scale)]

    assert bundle.manifest.calibration.tile_temperature == pytest.approx(0.048, abs=5e-4)
    assert 1 / float(scale(network.reranking_scale)) == pytest.approx(0.048, abs=5e-4)
    assert found(True, 0.03) == pytest.approx([0.03, 0.03])
    assert found(True, 0.001) == pytest.approx([0.01, 0.01])  # the sharpest that training knows
    assert found(False, 0.05) == pytest.approx([0.07, 0.07])  # rough guesses of no data


def test_training_from_a_bundle_starts_with_its_weights_and_leaves_folded_norms(
    network: UnifyGeo, tmp_path: Path
) -> None:
    changes = {"start_from": SHIPPED, "batch_size": 2, "steps": 1, "losses": {}}
    config = small_config(network=TOWNS_ATTO, optimiser={"warmup_steps": 0, "learning_rate": 1e-5}, **changes)
    found = read_tensors(fit(config, Noise(), tmp_path / "run"))["model"]
    start = network.state_dict()
    moved = {name: float((found[name].float() - start[name].float()).abs().max()) for name in start}
    norms = {name for name in moved if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert len(norms) == 15
    assert all(moved[name] == 0 for name in norms)
    # A step of AdamW is the learning rate at most, and its decay.
    assert 0 < max(moved[name] for name in moved.keys() - norms) < 1e-4


def test_average_of_a_bundle_and_what_was_trained_from_it(
    network: UnifyGeo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"start_from": SHIPPED, "batch_size": 2, "steps": 1, "losses": {}}
    config = small_config(network=TOWNS_ATTO, optimiser={"warmup_steps": 0, "learning_rate": 1e-3}, **changes)
    tuned, output = fit(config, Noise(), tmp_path / "run"), tmp_path / "mean.pt"
    assert main(["average", str(SHIPPED), str(tuned), "--share", "0.25", "--output", str(output)]) == 0
    before, after = network.state_dict(), read_tensors(tuned)["model"]
    mean, content = load_network(output)
    learnt = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(learnt) > 100
    for name in learnt:
        expected = 0.75 * before[name].double() + 0.25 * after[name].double()
        torch.testing.assert_close(mean.state_dict()[name].double(), expected, atol=1e-7, rtol=1e-6)
    assert load_bundle(SHIPPED).manifest.trained_on in content["trained_on"]
    # Norms that have statistics of their own: a training from the beginning.
    other = fit(small_config(network=TOWNS_ATTO, batch_size=2, steps=1, losses={}), Noise(), tmp_path / "other")
    assert main(["average", str(SHIPPED), str(other), "--output", str(tmp_path / "no.pt")]) == 2
    assert f"did not start from {SHIPPED}" in capsys.readouterr().err
    assert not (tmp_path / "no.pt").exists()
