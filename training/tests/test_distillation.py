"""What a teacher adds to the losses of a run, and the trunk and weights that a small network starts from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from scipy.special import log_softmax, softmax
from small_runs import SMALL, Dots, small_config

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training import losses
from unifygeo_training.distillation import Teacher, taught_descriptors, taught_distribution, taught_matching
from unifygeo_training.fit import Run, fit, optimiser_of
from unifygeo_training.fit_config import FitConfig, OptimiserConfig
from unifygeo_training.model import NetworkConfig
from unifygeo_training.model.lite_trunk import SHORT, lite_trunk, load_lite_weights
from unifygeo_training.model.network import UnifyGeo
from unifygeo_training.objective import LossConfig, Objective


def cross_entropy(logits: np.ndarray, taught: np.ndarray) -> float:
    """Of rows, by SciPy."""
    return float(-(softmax(taught, axis=1) * log_softmax(logits, axis=1)).sum(axis=1).mean())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_are_the_cross_entropies_of_both_answers() -> None:
    ours, theirs = noise(3, 4, 4), noise(3, 4, 4, seed=1)
    flat = [x.numpy().astype(np.float64).reshape(3, 16) for x in (ours, theirs)]
    assert float(taught_distribution(ours, theirs)) == pytest.approx(cross_entropy(*flat), rel=1e-5)
    assert float(taught_matching(ours, theirs)) == pytest.approx(cross_entropy(flat[0] / 0.1, flat[1] / 0.1), rel=1e-5)
    ground, aerial, alike = noise(3, 5), noise(3, 5, seed=1), noise(3, 3, seed=2)
    logits = 7.0 * ground.double().numpy() @ aerial.double().numpy().T
    wanted = 0.5 * (cross_entropy(logits, alike.numpy()) + cross_entropy(logits.T, alike.numpy().T))
    assert float(taught_descriptors(ground, aerial, torch.tensor(math.log(7.0)), alike)) == pytest.approx(
        wanted, rel=1e-5
    )


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "panorama": torch.randint(256, (4, 32, 64, 3), generator=draw, dtype=torch.uint8),
        "tile": torch.randint(256, (4, 64, 64, 3), generator=draw, dtype=torch.uint8),
        "position": torch.rand(4, 2, generator=draw) * 0.5 + 0.25,
    }


def test_a_network_taught_by_itself_learns_nothing_from_it() -> None:
    """The gradient of a cross-entropy against one's own answer is zero, so the teacher adds a constant."""
    torch.manual_seed(0)
    network = UnifyGeo(SMALL).eval()  # norms as the teacher's
    teacher = Teacher(UnifyGeo(SMALL), SMALL, float(1 / losses.scale(network.retrieval_scale)))
    teacher.network.load_state_dict(network.state_dict())
    gradients = []
    for objective in (Objective(network, LossConfig()), Objective(network, LossConfig(), teacher, 0.5)):
        network.zero_grad()
        objective(**batch(), alpha=100.0)["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(wanted.abs().max()) for wanted in gradients[0].values())
    for name, wanted in gradients[0].items():
        assert torch.allclose(gradients[1][name], wanted, atol=1e-6 * largest, rtol=1e-3), name


def test_loss_is_the_sum_of_all_terms_and_the_teacher_is_not_trained() -> None:
    torch.manual_seed(0)
    student = UnifyGeo(SMALL).eval()
    teacher = Teacher(UnifyGeo(SMALL), SMALL, 0.05)
    objective = Objective(student, LossConfig(), teacher, 0.5)
    found = {name: float(value.detach()) for name, value in objective(**batch(), alpha=100.0).items()}
    of_labels = found["L_D"] + 100 * found["L_G"] + 10 * found["L_M"] + found["L_R"]
    assert found["loss"] == pytest.approx(
        of_labels + 0.5 * (found["T_D"] + 100 * found["T_G"] + 10 * found["T_M"]), rel=1e-5
    )
    plain = {
        name: float(value.detach()) for name, value in Objective(student, LossConfig())(**batch(), alpha=100.0).items()
    }
    assert plain["loss"] == pytest.approx(of_labels, rel=1e-5)
    with torch.no_grad():
        ours, theirs = (
            (network.encode_ground(batch()["panorama"]).descriptor, network.encode_aerial(batch()["tile"]).descriptor)
            for network in (student, teacher.network)
        )
    logits = (ours[0] @ ours[1].T).numpy() / 0.07  # where the student's temperature starts
    taught = (theirs[0] @ theirs[1].T).numpy() / 0.05
    wanted = 0.5 * (cross_entropy(logits, taught) + cross_entropy(logits.T, taught.T))
    assert found["T_G"] == pytest.approx(wanted, rel=1e-4)
    assert not any(name.startswith("teacher") for name in objective.state_dict())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert len(list(objective.parameters())) == len(list(student.parameters()))


def test_teacher_sees_the_panorama_in_its_own_size() -> None:
    """A constant panorama looks the same in every size."""
    torch.manual_seed(0)
    wide = SMALL.model_copy(update={"ground_width": 128})
    master = UnifyGeo(wide).eval()
    grey = torch.full((1, 32, 64, 3), 90, dtype=torch.uint8)
    tile = batch()["tile"][:1]
    _, answer = Teacher(master, SMALL, 0.05)(grey, tile, descriptor=False)
    with torch.no_grad():
        levels = master.encode_ground(torch.full((1, 32, 128, 3), 90, dtype=torch.uint8), descriptor=False).levels
        wanted = master.decode(levels, master.encode_aerial(tile, descriptor=False).pyramid)
    assert torch.allclose(answer.logits, wanted.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("aerial_size", 96), ("metres_per_pixel", 0.5), ("output_stride", 1), ("ground_elevation_top_deg", 45)],
)
def test_a_teacher_whose_answers_are_of_other_places_is_refused(name: str, value: float) -> None:
    teacher = UnifyGeo(SMALL.model_copy(update={name: value}))
    with pytest.raises(ConfigurationError, match=f"network.{name}: the teacher has {value}"):
        Teacher(teacher, SMALL, 0.05)


def test_run_with_a_teacher_resumes_to_the_same_bits(tmp_path: Path) -> None:
    teacher = fit(small_config(steps=1), Dots(), tmp_path / "teacher")
    config = small_config(distillation={"teacher": teacher})
    whole = torch.load(fit(config, Dots(), tmp_path / "whole"), weights_only=False)
    fit(config, Dots(), tmp_path / "parts", stop_after=2)
    parts = torch.load(fit(config, Dots(), tmp_path / "parts"), weights_only=False)
    alone = torch.load(fit(small_config(), Dots(), tmp_path / "alone"), weights_only=False)
    assert whole["model"].keys() == alone["model"].keys()
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    assert any(not torch.equal(whole["model"][name], alone["model"][name]) for name in whole["model"])


def test_trunks_learn_at_their_own_rate() -> None:
    network = UnifyGeo(SMALL)
    groups = optimiser_of(network, OptimiserConfig(learning_rate=0.01, trunk_rate=0.3)).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.003 if ".trunk." in name else 0.01), name
        assert decays[id(parameter)] == (0.04 if parameter.ndim > 1 else 0.0), name


def lite_file(folder: Path, **changes: torch.Tensor) -> Path:
    """Weights of a trunk under other names, with layers behind them."""
    torch.manual_seed(5)
    state = {f"_{n}.{name}": value for n, (name, value) in enumerate(lite_trunk().state_dict().items())}
    torch.save({**state, "_fc.weight": torch.zeros(10, 3), **changes}, folder / "lite0.pth")
    return folder / "lite0.pth"


def test_both_trunks_start_from_the_file_of_weights(tmp_path: Path) -> None:
    network = NetworkConfig(backbone=SHORT, ground_height=32, ground_width=64, aerial_size=64, output_stride=2)
    file = lite_file(tmp_path)
    run = Run(small_config(network=network, trunk_weights=file), Fabric(accelerator="cpu"))
    wanted = list(torch.load(file, weights_only=True).values())[:-1]
    for branch in (run.network.ground, run.network.aerial):
        assert [torch.equal(a, b) for a, b in zip(branch.trunk.state_dict().values(), wanted, strict=True)] == [
            True
        ] * len(wanted)
    assert run.network.ground.channels == (24, 40, 80)
    maps = run.network.ground.trunk(torch.zeros(1, 3, 32, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 8, 16), (40, 4, 8), (80, 2, 4)]


def test_other_weights_are_refused_with_the_layer(tmp_path: Path) -> None:
    state = torch.load(lite_file(tmp_path, **{"_0.conv_stem.weight": torch.zeros(32, 3, 5, 5)}), weights_only=True)
    with pytest.raises(
        InputError, match=r"a\.pth: has _0.conv_stem.weight \(32, 3, 5, 5\) where conv_stem.weight \(32, 3, 3, 3\)"
    ):
        load_lite_weights(lite_trunk(), state, "a.pth")
    with pytest.raises(InputError, match=r"has nothing \(0,\) where bn1.weight"):
        load_lite_weights(lite_trunk(), {"a": torch.zeros(32, 3, 3, 3)}, "a.pth")
    with pytest.raises(ValueError, match=r"other trunks than network.backbone test_convnext2"):
        FitConfig.model_validate({**small_config().model_dump(), "trunk_weights": tmp_path / "lite0.pth"})


def test_pretrained_does_not_pass_for_weights_that_timm_has_not() -> None:
    network = NetworkConfig(backbone=SHORT, ground_height=32, ground_width=64, aerial_size=64, output_stride=2)
    with pytest.raises(ConfigurationError, match="give a file as trunk_weights"):
        UnifyGeo(network, pretrained=True)
