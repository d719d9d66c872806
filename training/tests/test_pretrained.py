"""`pretrained: true`, with random weights in the place of timm's, read from a file by timm's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_runs import SMALL

from unifygeo_ros.core.errors import InputError
from unifygeo_training.model import UnifyGeo

BACKBONE = "convnext_atto"
MEMBER = SMALL.model_copy(update={"backbone": BACKBONE})


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A whole classifier of random numbers, which timm takes for its pretrained weights."""
    generator = torch.Generator().manual_seed(0)
    create = timm.create_model
    state = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in create(BACKBONE, conv_mlp=False).state_dict().items()
    }
    torch.save(state, tmp_path / "weights.pth")

    def from_file(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"file": str(tmp_path / "weights.pth"), "hf_hub_id": None, "url": ""} if pretrained else None
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", from_file)
    return state


def test_trunks_and_all_four_heads_start_from_the_pretrained_stages(weights: dict[str, torch.Tensor]) -> None:
    network = UnifyGeo(MEMBER, pretrained=True)
    for branch in (network.ground, network.aerial):
        for name, value in branch.trunk.state_dict().items():
            theirs = name.replace("stem_", "stem.").replace("stages_", "stages.")
            assert torch.equal(value, weights[theirs]), name
        for head in (branch.fine_head, branch.semantic_head):
            parts = {"norm": "downsample.0", "down": "downsample.1", "block": "blocks.0"}
            for ours, theirs in parts.items():
                for name, value in getattr(head, ours).state_dict().items():
                    assert torch.equal(value, weights[f"stages.3.{theirs}.{name}"]), f"{ours}.{name}"
        copies = [head.down.weight.data_ptr() for head in (branch.fine_head, branch.semantic_head)]
        assert len(set(copies)) == 2  # copies, not shared


def test_without_pretrained_weights_everything_starts_at_random(weights: dict[str, torch.Tensor]) -> None:
    network = UnifyGeo(MEMBER)
    assert not torch.equal(network.ground.trunk.stem_0.weight, weights["stem.0.weight"])
    assert float(network.ground.fine_head.block.gamma.detach().mean()) == pytest.approx(MEMBER.layer_scale)


def test_unavailable_pretrained_weights_are_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("[Errno 101] Network is unreachable\nand much more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match=r"convnext_atto.*unreachable\).*HF_HOME.*pretrained=false") as caught:
        UnifyGeo(MEMBER, pretrained=True)
    assert "\n" not in str(caught.value)


def test_member_without_pretrained_weights_is_named() -> None:
    """timm 1.0 has none for this one."""
    with pytest.raises(InputError, match="test_convnext_none"):
        UnifyGeo(SMALL.model_copy(update={"backbone": "test_convnext_none"}), pretrained=True)
