"""The training run: resumes as if it had never stopped, fails early, refuses what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SMALL, Dots, small_config

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import Calibration, load_bundle
from unifygeo_training.calibrate import CalibrationReport
from unifygeo_training.checkpoint import load_network, weights_sha256
from unifygeo_training.cli import main
from unifygeo_training.configuration import read_settings
from unifygeo_training.data.pairs import Pair
from unifygeo_training.fit import NonFiniteLossError, fit, learning_rate_at, optimiser_of
from unifygeo_training.fit_config import FitConfig, OptimiserConfig
from unifygeo_training.model import UnifyGeo


class Infinite(Dots):
    def read(self, member: int, rng: np.random.Generator) -> Pair:
        pair = super().read(member, rng)
        return Pair(pair.panorama, pair.tile, (float("nan"), 0.5))


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    """Stopped before and after L_G joins."""
    whole = fit(small_config(), Dots(), tmp_path / "whole")
    fit(small_config(), Dots(), tmp_path / "parts", stop_after=stop)
    parts = fit(small_config(), Dots(), tmp_path / "parts")
    a, b = (load_network(path)[0].state_dict() for path in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_semantic_heads_are_untouched_until_the_retrieval_loss_joins(tmp_path: Path) -> None:
    states = []
    for stop in (1, 2, 3):
        network, _ = load_network(fit(small_config(), Dots(), tmp_path / "run", stop_after=stop))
        states.append({name: value.clone() for name, value in network.ground.semantic_head.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[1][name], states[2][name]) for name in states[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="step 0") as caught:
        fit(small_config(), Infinite(), tmp_path)
    (file,) = tmp_path.glob("not_finite_step0_rank0.npz")
    assert str(file) in str(caught.value)
    batch = np.load(file)
    assert batch["panorama"].shape == (4, 32, 64, 3)
    assert np.isnan(batch["position"]).any()
    assert not (tmp_path / "last.pt").exists()


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    fit(small_config(), Dots(), tmp_path, stop_after=1)
    with pytest.raises(InputError, match="another seed"):
        fit(small_config(seed=1), Dots(), tmp_path)


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    first = fit(small_config(steps=1), Dots(), tmp_path / "first")
    standing = {"warmup_steps": 0, "learning_rate": 1e-12}
    second = fit(small_config(steps=1, start_from=first, optimiser=standing), Dots(), tmp_path / "second")
    a, b = (dict(load_network(path)[0].named_parameters()) for path in (first, second))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-9, rtol=1e-5)


def test_ablations_train_only_what_they_use(tmp_path: Path) -> None:
    losses = {"distribution": 0, "matching": 0, "reranking": 0}
    network, content = load_network(fit(small_config(losses=losses, steps=1), Dots(), tmp_path))
    assert content["ablation"] == {"unified_learning": False, "feature_aggregator": True, "reranking_loss": False}
    with torch.no_grad():
        aerial = network.encode_aerial(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert aerial.descriptor is not None


def test_a_checkpoint_becomes_a_bundle_with_its_calibration(tmp_path: Path) -> None:
    """The command line from checkpoint to manifest."""
    checkpoint = fit(small_config(steps=1), Dots(), tmp_path / "run")
    calibration = Calibration(0.4, 0.06, 0.03, 0.9, position_floor_m=0.2)
    report = CalibrationReport(calibration, {}, {}, 1.0, 1, "made up")
    (tmp_path / "calibration.json").write_text(report.to_json())
    arguments = ["export", str(checkpoint), "--output", str(tmp_path / "bundle"), "--precision", "fp32"]
    assert main([*arguments, "--calibration", str(tmp_path / "calibration.json"), "--licence", "Apache-2.0"]) == 0
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.calibration == calibration
    assert manifest.licence == "Apache-2.0"
    assert manifest.trained_on == "procedural towns, seeds 0 to 0"
    assert weights_sha256(load_network(checkpoint)[0]) == manifest.weights_sha256


def test_weight_decay_acts_on_matrices_and_kernels_alone() -> None:
    network = UnifyGeo(SMALL)
    decayed, free = optimiser_of(network, OptimiserConfig(weight_decay=0.04)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.04, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kept = {names[id(parameter)] for parameter in free["params"]}
    assert {
        "retrieval_scale",
        "ground.aggregator.gem.p",
        "decoder.output.0.bias",
        "decoder.match_norms.0.weight",
    } <= kept
    assert all(name.endswith((".bias", ".weight", ".gamma", ".p", "_scale")) for name in kept)
    assert "decoder.output.0.weight" not in kept
    assert len(decayed["params"]) + len(kept) == len(names)


def test_learning_rate_by_hand() -> None:
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate_at(step, config, 12) for step in (0, 3, 4, 8, 12)] == pytest.approx([0.25, 1, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\ndata: {folder: x, last_seed: 1}\nlearning_rate: 1", "unknown key learning_rate"),
        ("steps: 1\ndata: {folder: x, last_seed: 1000}", "kept for testing"),
        ("data: {folder: x, last_seed: 1}", "steps"),
        ("steps: 1\ndata: {folder: x, last_seed: 1}\nlosses: {retrieval: -1}", "losses.retrieval is -1"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_settings(file, FitConfig)


def test_the_shipped_configs_are_valid() -> None:
    folder = Path(__file__).resolve().parents[1] / "configs"
    files = sorted(folder.glob("*.yaml"))
    assert files
    for file in files:
        read_settings(file, FitConfig)
