"""Hard negatives: what is drawn by hand-made descriptors, and runs that draw by their own."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Dots, in_two_processes, small_config

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.checkpoint import load_network
from unifygeo_training.configuration import check_settings
from unifygeo_training.data.hard_negatives import (
    STEPS_OF_UNIT,
    DescriptorTable,
    HardNegatives,
    HardNegativesConfig,
    Tiles,
    in_steps,
)
from unifygeo_training.data.pairs import Pair
from unifygeo_training.fit import fit
from unifygeo_training.fit_config import FitConfig


class Streets(Dots):
    """Dots in streets of two places each, whose tiles overlap. Keeps what was read; may be killed while reading."""

    def __init__(self, places: int = 24, killed_at: int | None = None) -> None:
        self.places, self.killed_at = places, killed_at
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.places

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[int]:
        return [2 * int(n) for n in rng.choice(self.places // 2, count, replace=False)]

    def tiles(self, rng: np.random.Generator | None) -> Tiles:
        return Tiles(np.arange(self.places) // 2, np.zeros((self.places, 2)), 1.0)

    def member(self, place: int, tiles: Tiles) -> int:
        return place

    def read(self, member: int, rng: np.random.Generator) -> Pair:
        if len(self.reads) == self.killed_at:
            raise KeyboardInterrupt
        self.reads.append(member)
        return super().read(member, rng)


class Line:
    """Places on a line, 10 m apart, tiles of 15 m: neighbours overlap, the next ones do not."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def tiles(self, rng: np.random.Generator | None) -> Tiles:
        centres = np.stack([10.0 * np.arange(self.count), np.zeros(self.count)], axis=1)
        return Tiles(np.zeros(self.count, np.int64), centres, 15.0)

    def member(self, place: int, tiles: Tiles) -> int:
        return place

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        raise AssertionError("not by the data set")

    def read(self, member: int, rng: np.random.Generator) -> Pair:
        raise AssertionError("nothing is read")


def _table(angles_deg: Sequence[float], places: Sequence[int] | None = None) -> DescriptorTable:
    """Descriptors on a circle, the same for both views."""
    angles = np.radians(angles_deg)
    rows = in_steps(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    return DescriptorTable(0, np.arange(len(rows)) if places is None else np.array(places), rows, rows)


def _config(**changes: int) -> HardNegativesConfig:
    return HardNegativesConfig(**{"from_step": 1, "every": 1, **changes})


def test_places_are_encoded_at_the_scheduled_steps() -> None:
    config = HardNegativesConfig(from_step=3, every=4)
    assert [step for step in range(13) if config.describes_at(step)] == [3, 7, 11]
    assert [config.next_description(step) for step in (0, 2, 3, 6, 7, 10)] == [3, 3, 7, 7, 11, 11]


def test_tiles_overlap_in_both_axes_and_in_one_area() -> None:
    tiles = Tiles(np.array([0, 0, 0, 0, 1]), np.array([[0, 0], [69, 69], [70, 0], [0, -70], [0, 0]], float), 70.0)
    assert [tiles.excludes(0, [other]) for other in range(5)] == [True, True, False, False, False]
    assert tiles.excludes(0, [4, 2, 1])
    assert not tiles.excludes(0, [])


def test_hard_negative_batch_by_hand() -> None:
    """Every other place of the line, so that no tiles overlap; angles fall apart as the places do."""
    table = _table([0, 10, 20, 30, 40, 50, 60, 70], places=range(0, 16, 2))
    sampler = HardNegatives(Line(16), table, _config(pool=4, take=4))
    seen = set()
    for seed in range(40):
        batch = sampler.draw(np.random.default_rng(seed), 4)
        seen.add(tuple(sorted(batch)))
        assert len(set(batch)) == 4
    # Three join the anchor: the two nearest, and one of the two that are left of the pool of four. From the place at
    # 0° (place 0): 10°, 20° and then 30° or 40°. From 30° (place 6): 20° and 40° are equally near, then 10° and 50°.
    assert {(0, 2, 4, 6), (0, 2, 4, 8)} <= seen
    assert {(4, 6, 8, 2), (4, 6, 8, 10)} <= {(b[1], b[2], b[3], b[0]) for b in seen} | seen
    # Nothing reaches further than five places: the anchor and its pool of four are within 40°.
    assert max(batch[-1] - batch[0] for batch in seen) <= 8


def test_neighbours_that_overlap_are_left_out() -> None:
    # Place 1 looks just like place 0 and overlaps it; places 3 and 5 look less alike.
    table = _table([0, 1, 90, 20, 180, 30])
    sampler = HardNegatives(Line(6), table, _config(pool=2, take=2))
    batches = {tuple(sorted(sampler.draw(np.random.default_rng(seed), 3))) for seed in range(40)}
    assert (0, 3, 5) in batches
    assert all(b - a >= 2 for batch in batches for a, b in itertools.pairwise(batch))


def test_full_take_leaves_room_for_the_next_anchor() -> None:
    # Two clusters of three far apart on the circle; one joins each anchor, so a batch of four has two anchors.
    table = _table([0, 1, 2, 180, 181, 182], places=range(0, 12, 2))
    sampler = HardNegatives(Line(12), table, _config(pool=2, take=1))
    split = {sum(place < 6 for place in sampler.draw(np.random.default_rng(seed), 4)) for seed in range(40)}
    assert split == {1, 2, 3}  # 2 and 2 with an anchor in each cluster; 3 and 1 with both anchors in one


def test_too_few_places_are_an_error() -> None:
    sampler = HardNegatives(Line(6), _table([0] * 6), _config())
    with pytest.raises(ConfigurationError, match=r"6 places have room for \d of 5 tiles"):
        sampler.draw(np.random.default_rng(0), 5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 20), st.integers(1, 20))
def test_batches_are_whole_and_without_overlap(seed: int, count: int, pool: int, take: int) -> None:
    rng = np.random.default_rng(seed)
    sampler = HardNegatives(Line(60), _table(rng.uniform(0, 360, 60).tolist()), _config(pool=pool, take=take))
    batch = sampler.draw(np.random.default_rng(seed), count)
    assert len(batch) == count
    assert np.diff(np.sort(batch)).min() >= 2
    assert batch == sampler.draw(np.random.default_rng(seed), count)


def test_similarities_are_exact() -> None:
    """The sums of the least favourable case, all of one sign, in float32 as in whole numbers."""
    rng = np.random.default_rng(0)
    rows = np.abs(rng.standard_normal((200, 768))).astype(np.float32)
    whole = in_steps(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    exact = whole.astype(np.int64) @ whole.astype(np.int64).T
    assert np.array_equal(whole.astype(np.float32) @ whole.astype(np.float32).T, exact)
    assert exact.max() < 2**24
    assert np.abs(exact / STEPS_OF_UNIT**2 - rows @ rows.T / np.outer(*2 * [np.linalg.norm(rows, axis=1)])).max() < 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hard_negatives": {"from_step": 2, "every": 1}}, "above losses.retrieval_from_step 2"),
        ({"hard_negatives": {"from_step": 3, "every": 1}, "losses": {"retrieval": 0}}, "never trains the descriptors"),
        ({"hard_negatives": {"from_step": 3, "every": 0}}, "hard_negatives.every is 0"),
        ({"hard_negatives": {"from_step": 3, "every": 1, "often": 1}}, "unknown key hard_negatives.often"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, object], message: str) -> None:
    raw = {**small_config().model_dump(mode="json"), **changes}
    with pytest.raises(ConfigurationError, match=message):
        check_settings(raw, FitConfig, "fit.yaml")


def test_data_set_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    config = small_config(hard_negatives={"from_step": 3, "every": 1})
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        fit(config, Dots(), tmp_path)


# -- runs -------------------------------------------------------------------------------------------------------------

HARD = {"from_step": 3, "every": 3, "pool": 3, "take": 3}


def _run_config(**changes: object) -> FitConfig:
    """Steps 0 … 2 drawn by the data set, places described before 3 and 6; a checkpoint every second step."""
    return small_config(steps=8, checkpoint_every=2, hard_negatives=HARD, **changes)


def _batches_of(reads: list[int], size: int = 4) -> list[list[int]]:
    return [reads[n : n + size] for n in range(0, len(reads), size)]


def test_nearest_of_the_networks_own_descriptors_share_a_batch(tmp_path: Path) -> None:
    """Against all similarities of the checkpoint's network, computed here in float32 from the images."""
    pairs = Streets()
    network, _ = load_network(fit(_run_config(), pairs, tmp_path, stop_after=3))
    assert _batches_of(pairs.reads)[0] == Streets().draw(np.random.default_rng((0, 0)), 4)  # by the data set
    pairs.reads.clear()
    fit(_run_config(), pairs, tmp_path, stop_after=5)
    described, drawn = pairs.reads[:24], _batches_of(pairs.reads[24:])
    assert described == list(range(24))
    assert len(drawn) == 2

    images = [Dots().read(place, np.random.default_rng()) for place in range(24)]
    with torch.no_grad():
        ground = network.encode_ground(torch.from_numpy(np.stack([pair.panorama for pair in images]))).descriptor
        aerial = network.encode_aerial(torch.from_numpy(np.stack([pair.tile for pair in images]))).descriptor
    assert ground is not None
    assert aerial is not None
    similarity = (ground @ aerial.T).numpy()
    for batch in drawn:
        assert len({place // 2 for place in batch}) == 4  # no two of one street

        def worst_lead(anchor: int, batch: list[int] = batch) -> float:
            """How much more like the anchor the best place left out is than the worst taken (of each street one)."""
            taken = [place for place in batch if place != anchor]
            streets = {place // 2 for place in batch}
            left = [place for place in range(24) if place // 2 not in streets]
            return float(similarity[anchor, left].max() - similarity[anchor, taken].min())

        assert min(worst_lead(anchor) for anchor in batch) < 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last checkpoint of a run that nothing disturbed."""
    return torch.load(fit(_run_config(), Streets(), tmp_path_factory.mktemp("whole")), weights_only=True)


def _assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["step"] == b["step"] == 8
    assert a["hard_negatives"]["step"] == b["hard_negatives"]["step"] == 6
    for key in ("model", "hard_negatives"):
        for name, value in a[key].items():
            assert name == "step" or torch.equal(value, b[key][name]), name


@pytest.mark.parametrize(
    "read_before",
    [
        pytest.param(3 * 4 + 1, id="while described first"),
        pytest.param(3 * 4 + 24 + 2, id="in the first batch drawn by descriptor"),
        pytest.param(5 * 4 + 24 + 3, id="after a checkpoint that holds descriptors"),
        pytest.param(6 * 4 + 24 + 11, id="while described again"),
        pytest.param(7 * 4 + 2 * 24 + 1, id="at the end"),
    ],
)
def test_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path, whole: dict[str, Any], read_before: int) -> None:
    """Killed when so many images had been read."""
    with pytest.raises(KeyboardInterrupt):
        fit(_run_config(), Streets(killed_at=read_before), tmp_path)
    _assert_same_bits(whole, torch.load(fit(_run_config(), Streets(), tmp_path), weights_only=True))


def test_worker_processes_change_nothing(tmp_path: Path, whole: dict[str, Any]) -> None:
    hardware = {"accelerator": "cpu", "precision": "32-true", "threads": 1, "workers": 1}
    path = fit(_run_config(hardware=hardware), Streets(), tmp_path)
    _assert_same_bits(whole, torch.load(path, weights_only=True))


def test_checkpoint_from_before_hard_negatives_is_continued(tmp_path: Path) -> None:
    path = fit(small_config(), Dots(), tmp_path, stop_after=1)
    state = torch.load(path, weights_only=True)
    assert "hard_negatives" not in state
    assert state["config"].pop("hard_negatives") is None
    torch.save(state, path)
    assert torch.load(fit(small_config(), Dots(), tmp_path, stop_after=2), weights_only=True)["step"] == 2


def test_only_some_places_are_encoded_if_configured(tmp_path: Path) -> None:
    config = small_config(steps=7, hard_negatives={**HARD, "places": 16})
    pairs = Streets()
    first = torch.load(fit(config, pairs, tmp_path, stop_after=4), weights_only=True)["hard_negatives"]["places"]
    assert len(first) == 16
    assert set(pairs.reads[12:28]) == set(first.tolist())
    assert set(pairs.reads[28:]) <= set(first.tolist())
    second = torch.load(fit(config, pairs, tmp_path), weights_only=True)["hard_negatives"]["places"]
    assert set(first.tolist()) != set(second.tolist())


def _rank(rank: int, folder: str, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2", GROUP_RANK="0", TORCHELASTIC_RUN_ID="test",
    )  # as torchrun sets them  # fmt: skip
    hardware = {"accelerator": "cpu", "precision": "32-true", "threads": 1, "workers": 0}
    config = _run_config(hardware={**hardware, "strategy": "ddp", "devices": 2})
    whole, parts = Streets(), Streets()
    fit(config, whole, f"{folder}/whole")
    fit(config, parts, f"{folder}/parts", stop_after=5)
    fit(config, parts, f"{folder}/parts")
    torch.save({"whole": whole.reads, "parts": parts.reads}, f"{folder}/reads_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_draw_one_batch_and_resume_with_the_same_bits(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_two_processes(_rank, str(tmp_path), port)
    whole, parts = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    _assert_same_bits(whole, parts)
    reads = [torch.load(tmp_path / f"reads_{rank}.pt", weights_only=True) for rank in range(2)]
    assert reads[0]["whole"] == reads[0]["parts"]

    # Each reads 3 batches of 2, describes every other place, 3 batches, describes again, 2 batches.
    for rank in range(2):
        assert reads[rank]["whole"][6:18] == reads[rank]["whole"][24:36] == list(range(rank, 24, 2))
    # The last two batches, put together, are what one process draws from the table in the checkpoint.
    table = DescriptorTable.from_state(whole["hard_negatives"])
    sampler = HardNegatives(Streets(), table, HardNegativesConfig(**HARD))
    for step, place in ((6, 36), (7, 38)):
        together = reads[0]["whole"][place : place + 2] + reads[1]["whole"][place : place + 2]
        assert together == sampler.draw(np.random.default_rng((0, step)), 4)
