"""The training run: resumes as if it had never stopped, fails early, refuses what does not fit."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from small_runs import SMALL, Dots, small_config

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import GRAPHS, Calibration, load_bundle
from unifygeo_training import export, losses
from unifygeo_training import fit as fit_module
from unifygeo_training.calibrate import CalibrationReport
from unifygeo_training.checkpoint import load_network, weights_sha256
from unifygeo_training.cli import main
from unifygeo_training.configuration import read_settings
from unifygeo_training.data.pairs import Batches, Pair
from unifygeo_training.fit import NonFiniteLossError, Run, _Clock, fit, optimiser_of, schedule_of
from unifygeo_training.fit_config import FitConfig, OptimiserConfig
from unifygeo_training.model import UnifyGeo


class Infinite(Dots):
    def read(self, member: int, rng: np.random.Generator) -> Pair:
        pair = super().read(member, rng)
        return Pair(pair.panorama, pair.tile, (float("nan"), 0.5))


@pytest.mark.parametrize("stop", [1, 3])
def test_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
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


def test_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path: Path) -> None:
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


def test_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    first = fit(small_config(steps=1), Dots(), tmp_path / "first")
    standing = {"warmup_steps": 0, "learning_rate": 1e-12}
    second = fit(small_config(steps=1, start_from=first, optimiser=standing), Dots(), tmp_path / "second")
    a, b = (dict(load_network(path)[0].named_parameters()) for path in (first, second))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-9, rtol=1e-5)


def test_ablations_train_only_what_they_use(tmp_path: Path) -> None:
    losses = {"distribution": 0, "matching": 0, "reranking": 0}
    network, content = load_network(fit(small_config(losses=losses, steps=1), Dots(), tmp_path))
    trained = {"retrieval": True, "localization": False, "matching": False}
    assert content["ablation"] == {**trained, "reranking_loss": False}
    with torch.no_grad():
        aerial = network.encode_aerial(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert aerial.descriptor is not None


def empty_graph(name: str) -> onnx.ModelProto:
    graph = onnx.helper.make_graph([], name, [], [])
    return onnx.helper.make_model(graph)


def test_checkpoint_becomes_a_bundle_with_its_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line from checkpoint to manifest; the graphs, which take long to make, are test_export's."""
    exported: list[str] = []

    def graphs_of(network: UnifyGeo, precision: str) -> dict[str, onnx.ModelProto]:
        exported.append(weights_sha256(network))
        return {graph: empty_graph(graph) for graph in GRAPHS}

    monkeypatch.setattr(export, "build_graphs", graphs_of)
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
    assert [weights_sha256(load_network(checkpoint)[0])] == exported == [manifest.weights_sha256]


def test_weight_decay_acts_on_matrices_and_kernels_alone() -> None:
    network = UnifyGeo(SMALL)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decays = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimiser_of(network, OptimiserConfig(weight_decay=0.04)).param_groups
        for parameter in group["params"]
    }
    assert decays.keys() == set(names.values())
    assert set(decays.values()) == {0.0, 0.04}
    kept = {name for name, decay in decays.items() if decay == 0.0}
    assert {
        "retrieval_scale",
        "ground.aggregator.gem.p",
        "decoder.output.0.bias",
        "decoder.match_norms.0.weight",
    } <= kept
    assert all(name.endswith((".bias", ".weight", ".gamma", ".p", "_scale")) for name in kept)
    assert "decoder.output.0.weight" not in kept


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (4, [0.25, 0.5, 0.75, 1, 1, *(0.5 + 0.5 * math.cos(math.pi * n / 8) for n in range(1, 9))]),
        (1, [1, *(0.5 + 0.5 * math.cos(math.pi * n / 11) for n in range(12))]),
        (0, [0.5 + 0.5 * math.cos(math.pi * n / 12) for n in range(13)]),
    ],
)
def test_learning_rate_by_hand(warmup: int, expected: list[float]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    schedule = schedule_of(optimiser, OptimiserConfig(learning_rate=1.0, warmup_steps=warmup), 12)
    found = []
    for _ in expected:
        found.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_labels_stand_where_the_camera_is_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """bfloat16 knows fractions of a tile to 1/256: a pixel and a half of 384."""
    seen = []
    label = losses.gaussian_label
    monkeypatch.setattr(losses, "gaussian_label", lambda *args: (seen.append(args[0]), label(*args))[1])
    config = small_config(steps=1, hardware={"accelerator": "cpu", "precision": precision, "threads": 1, "workers": 0})
    fit(config, Dots(), tmp_path)
    batch = Batches(Dots(), 4, config.augmentation, seed=0)[0]
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], torch.from_numpy(batch["position"]))


def test_float16_run_survives_gradients_that_overflow(tmp_path: Path) -> None:
    """With a large scale the first steps overflow: they are skipped, and later ones are not."""
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu")])
    run = Run(small_config(steps=12, losses={}), fabric)
    scaler = fabric.strategy.precision.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**18})
    before, scales, moved = run.network.decoder.output[0].weight.detach().clone(), [], []
    for step, batch in run.batches(Dots(), 0, 12, _Clock()):
        values = run.step(step, batch, tmp_path)
        moved.append(not torch.equal(run.network.decoder.output[0].weight, before))
        scales.append((bool(torch.isfinite(values["gradient_norm"])), scaler.get_scale()))
    assert scales[0] == (False, 2.0**17)  # overflowed, halved
    assert not moved[0]
    assert scales[-1][0]
    assert moved[-1]
    assert all(bool(torch.isfinite(value).all()) for value in run.network.state_dict().values())


def test_average_is_the_weighted_mean_and_can_be_started_from(tmp_path: Path) -> None:
    first = fit(small_config(steps=1), Dots(), tmp_path / "first")
    second = fit(small_config(steps=3, seed=5), Dots(), tmp_path / "second")
    output = tmp_path / "mean.pt"
    assert main(["average", str(first), str(second), "--share", "0.3", "--output", str(output)]) == 0
    (a, _), (b, _), (mean, content) = (load_network(path) for path in (first, second, output))
    counters = [name for name, value in mean.state_dict().items() if not value.is_floating_point()]
    assert all(name.endswith("num_batches_tracked") for name in counters)
    for name, value in mean.state_dict().items():
        if name in counters:
            continue
        expected = 0.7 * a.state_dict()[name].double() + 0.3 * b.state_dict()[name].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-7, rtol=1e-6)
    assert not torch.equal(mean.decoder.output[0].weight, b.decoder.output[0].weight)
    assert content["averaged"] == {"first": weights_sha256(a), "second": weights_sha256(b), "share": 0.3}
    assert content["config"]["seed"] == 5
    fit(small_config(steps=1, start_from=output), Dots(), tmp_path / "next")


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
def test_average_refuses_shares_beyond_its_checkpoints(
    tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", "a.pt", "b.pt", f"--share={share}", "--output", str(tmp_path / "c.pt")]) == 2
    assert "must be between 0, the first weights, and 1, the second" in capsys.readouterr().err


def test_average_names_what_differs_and_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(small_config(steps=1), Dots(), tmp_path / "first")
    coarser = SMALL.model_copy(update={"metres_per_pixel": 2.0})
    second = fit(small_config(steps=1, network=coarser), Dots(), tmp_path / "second")
    assert main(["average", str(first), str(second), "--output", str(tmp_path / "mean.pt")]) == 2
    assert "differ in network.metres_per_pixel; give weights of the same network" in capsys.readouterr().err
    before = second.read_bytes()
    assert main(["average", str(first), str(first), "--output", str(second)]) == 2
    assert "exists" in capsys.readouterr().err
    assert second.read_bytes() == before


@pytest.mark.parametrize(
    ("precision", "device", "ratio", "warns"),
    [
        ("bf16-mixed", "cpu", 9.04, True),
        ("bf16-mixed", "cpu", 0.6, False),
        ("32-true", "cpu", 9.04, False),
        ("bf16-mixed", "cuda", 9.04, False),
    ],
)
def test_emulated_bf16_is_a_warning_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    device: str,
    ratio: float,
    warns: bool,
) -> None:
    monkeypatch.setattr(fit_module, "bf16_time_ratio", lambda: ratio)
    fit_module.warn_of_emulated_bf16(precision, torch.device(device))
    text = " ".join(caplog.messages)
    assert ("takes 9.0 times as long as float32 on this CPU" in text) == warns
    assert ("--set hardware.precision=32-true" in text) == warns
    assert len(caplog.messages) == warns


def test_bf16_time_ratio_is_of_processor_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that a convolution moves by 3 s in bfloat16 and by 2 s in float32, the first time by more."""
    clock, calls = [0.0], []

    def convolve(images: torch.Tensor, kernel: torch.Tensor) -> None:
        calls.append(images.dtype)
        assert images.dtype == kernel.dtype
        clock[0] += {torch.bfloat16: 3.0, torch.float32: 2.0}[images.dtype] * (10 if len(calls) < 3 else 1)

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    monkeypatch.setattr(fit_module.time, "process_time", lambda: clock[0])
    assert fit_module.bf16_time_ratio() == pytest.approx(1.5)


def test_run_warns_once_and_writes_plain_lines_where_there_is_no_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fit_module, "bf16_time_ratio", lambda: 12.0)
    caplog.set_level("INFO")
    hardware = {"accelerator": "cpu", "precision": "bf16-mixed", "threads": 1, "workers": 0}
    fit(small_config(steps=3, log_every=2, hardware=hardware), Dots(), tmp_path)
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 2 of 3", "step 3 of 3"]
    assert all(" min left: loss " in line for line in lines)
    assert sum("12.0 times" in message for message in caplog.messages) == 1
    captured = capsys.readouterr()
    assert "\r" not in captured.err + captured.out


def test_run_draws_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    fit(small_config(steps=1), Dots(), tmp_path)
    assert "0/1" in terminal.getvalue()


def test_fit_removes_the_remains_of_a_killed_run(tmp_path: Path) -> None:
    tmp_path.joinpath(".last.pt.part").write_bytes(b"half a checkpoint")
    fit(small_config(steps=1), Dots(), tmp_path)
    assert {file.suffix for file in tmp_path.iterdir() if not file.name.startswith("events")} == {".pt", ".json"}


def test_every_flipped_bit_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    """In what the weights are read from: flips in the archive's padding change nothing."""
    path = fit(small_config(steps=1), Dots(), tmp_path)
    content, weights = path.read_bytes(), weights_sha256(load_network(path)[0])
    refused, flips = 0, np.random.default_rng(0).integers(0, 8 * len(content), 16)
    for bit in flips.tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert weights_sha256(load_network(path)[0]) == weights
        except InputError:
            refused += 1
    assert refused >= 13


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\ndata: {folder: x, last_seed: 1}\nlearning_rate: 1", "unknown key learning_rate"),
        ("steps: 1\ndata: {folder: x, last_seed: 1000}", "kept for testing"),
        ("data: {folder: x, last_seed: 1}", "steps"),
        ("steps: 1\ndata: {folder: x, last_seed: 1}\nlosses: {retrieval: -1}", "losses.retrieval is -1"),
    ],
)
def test_config_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_settings(file, FitConfig)


def test_shipped_configs_are_valid() -> None:
    folder = Path(__file__).resolve().parents[1] / "configs"
    files = sorted(folder.glob("*.yaml"))
    assert files
    for file in files:
        read_settings(file, FitConfig)
