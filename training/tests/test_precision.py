"""In which precision a machine trains where nobody chose one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_training import fit as fit_module
from unifygeo_training.adapt import learn
from unifygeo_training.adapt.settings import LearnSettings
from unifygeo_training.drives.pairs import DrivesConfig


@pytest.mark.parametrize(
    ("cuda", "ratio", "precision"),
    [(False, 0.4, "bf16-mixed"), (False, 1.0, "32-true"), (False, 9.0, "32-true"), (True, 9.0, "bf16-mixed")],
)
def test_fastest_precision(monkeypatch: pytest.MonkeyPatch, cuda: bool, ratio: float, precision: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(fit_module, "bf16_time_ratio", lambda: ratio)
    assert fit_module.fastest_precision() == precision


@pytest.mark.parametrize("ratio", [0.4, 9.0])
def test_adapt_trains_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ratio: float) -> None:
    class FittedError(Exception):
        pass

    def fit(config: Any, *_: Any) -> Path:
        assert config.hardware.precision == ("bf16-mixed" if ratio < 1 else "32-true")
        raise FittedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fit_module, "bf16_time_ratio", lambda: ratio)
    monkeypatch.setattr(DrivesConfig, "open", lambda *_: None)
    monkeypatch.setattr(learn, "room", lambda *_: 8)
    monkeypatch.setattr(learn, "fit", fit)
    parent = load_bundle(Path(__file__).resolve().parents[2] / "models/towns-atto")
    with pytest.raises(FittedError):
        learn.learn(parent, tmp_path / "drives.yaml", tmp_path, LearnSettings())
