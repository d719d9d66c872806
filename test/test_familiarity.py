"""Pictures unlike what a model was calibrated on: distances, their meaning, and what the runtime makes of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from bundles import random_bundle
from colour_region import write_colour_region

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.familiarity import imagery_familiarity
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import BundleError, ConfigurationError
from unifygeo_ros.core.records import (
    CameraImage,
    Distances,
    Fix,
    Heading,
    HeadingSource,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.inference.bundle import (
    Calibration,
    Clues,
    Confidence,
    load_bundle,
    replace_manifest,
    with_calibration,
)
from unifygeo_ros.inference.familiarity import (
    Familiarity,
    UsualFeatures,
    joined_familiarity,
    panorama_features,
    tile_features,
    usual_features,
)
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.decision import unfamiliar
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.sessions.familiarity_watch import FamiliarityWatch

RNG = np.random.default_rng(4)


def towns(count: int, size: int, *, spread: float = 1.0, centre: float = 0.0) -> list[np.ndarray]:
    """Features with correlated numbers of different scales, as of so many towns."""
    mixing = np.array([[1.0, 0.0, 0.0], [0.9, 0.2, 0.0], [0.0, 0.0, 30.0]])
    return [centre + spread * RNG.standard_normal((size, 3)) @ mixing.T for _ in range(count)]


def test_distance_of_one_holds_99_of_100_pictures_of_the_calibration() -> None:
    known = usual_features(towns(4, 500))
    fresh = known.distances(np.concatenate(towns(1, 20_000)))
    assert np.mean(fresh < 1) == pytest.approx(0.99, abs=0.005)
    assert known.size == 3


def test_distance_follows_the_correlations_and_not_the_scales() -> None:
    known = usual_features(towns(4, 2000))
    along, across, third = known.distances(np.array([[1.0, 0.9, 0.0], [1.0, -0.9, 0.0], [0.0, 0.0, 30.0]]))
    assert across > 2 * along  # the first two go together
    assert third == pytest.approx(along, rel=0.4)
    assert known.distances(np.zeros((1, 3)))[0] < 0.1


def test_unit_comes_from_towns_that_did_not_take_part() -> None:
    """Towns that differ from each other more than within: one town says little of the next."""
    different = [town + 5 * RNG.standard_normal(3) for town in towns(3, 200)]
    together = usual_features([np.concatenate(different)])
    apart = usual_features(different)
    point = np.array([[20.0, -20.0, 0.0]])
    assert apart.distances(point)[0] < 0.8 * together.distances(point)[0]


def test_what_is_familiar_to_either_is_familiar_to_both_together_and_nothing_else() -> None:
    """Two kinds of pictures ten standard deviations apart in one of three directions, and a third kind in another."""
    rng = np.random.default_rng(4)
    away = np.array([10.0, 0.0, 0.0])
    first, second = (rng.standard_normal((4, 500, 3)) * [1.0, 2.0, 0.5] + shift for shift in (0 * away, away))
    one, other = (usual_features(list(group)) for group in (first, second))
    both = joined_familiarity(Familiarity(one, one, 1.5, 1.5), Familiarity(other, other, 1.3, 1.4))
    assert (both.ground_limit, both.aerial_limit) == (1.3, 1.4)
    assert one.distances(second[0]).min() > 1.2
    for group in (first, second):
        within = np.mean(both.ground.distances(group.reshape(-1, 3)) < 1)
        assert 0.97 < within < 0.999
    strange = first.reshape(-1, 3) + np.array([0.0, 0.0, 5.0])
    assert both.aerial.distances(strange).min() > 1.2


def test_pictures_of_networks_of_other_sizes_cannot_be_joined() -> None:
    small, large = (usual_features([RNG.standard_normal((50, size))]) for size in (2, 3))
    with pytest.raises(ConfigurationError, match=r"\(2, 2\) and \(2, 3\) features"):
        joined_familiarity(Familiarity(small, small, 1.5, 1.5), Familiarity(small, large, 1.5, 1.5))


def test_mean_features_leave_out_where_things_are() -> None:
    f0 = RNG.standard_normal((2, 12))
    np.testing.assert_allclose(panorama_features(f0, 4), f0.reshape(2, 4, 3).mean(axis=1))
    # A panorama turned by a sector, and a tile turned over, have the same.
    np.testing.assert_allclose(panorama_features(np.roll(f0, 3, axis=1), 4), panorama_features(f0, 4))
    maps = RNG.standard_normal((5, 6, 6, 12)).astype(np.float16)
    expected = [
        [np.mean([maps[n, :, :, s * 3 + c].astype(float) for s in range(4)]) for c in range(3)] for n in range(5)
    ]
    np.testing.assert_allclose(tile_features(maps, 4), expected, rtol=1e-6)
    np.testing.assert_allclose(tile_features(maps[:, ::-1], 4), expected, rtol=1e-6)


def known(ground_limit: float = 1.5, aerial_limit: float = 2.0, size: int = 3) -> Familiarity:
    usual = usual_features([RNG.standard_normal((300, size)) for _ in range(3)])
    return Familiarity(usual, usual, ground_limit, aerial_limit)


def test_manifest_keeps_what_is_known_and_one_without_it_reads_as_before(tmp_path: Path) -> None:
    old = random_bundle(tmp_path / "old")
    assert old.manifest.calibration.familiarity is None
    entries = json.loads((tmp_path / "old/manifest.json").read_text())["calibration"]
    assert not {"familiarity", "elevation_widening"} & entries.keys()
    assert "unknown" in old.manifest.familiarity_text
    sha256 = json.loads((tmp_path / "old/manifest.json").read_text())["sha256"]
    assert old.manifest.sha256 == sha256  # nothing was added to what it says
    channels = old.manifest.match_channels // old.manifest.ground.columns
    calibration = dataclasses.replace(
        old.manifest.calibration,
        familiarity=known(size=channels),
        confidence=Confidence(unfamiliar_weight=-2.0),
        elevation_widening=1.5,
    )
    replace_manifest(old, with_calibration(old.manifest, calibration, "test", "data"))
    read = load_bundle(tmp_path / "old").manifest
    assert read.calibration == calibration
    assert read.familiarity_text == "known; limits 1.50 (panoramas), 2.00 (tiles)"
    wrong = dataclasses.replace(calibration, familiarity=known(size=channels + 1))
    replace_manifest(old, with_calibration(old.manifest, wrong, "test", "data"))
    with pytest.raises(BundleError, match=f"familiarity has {channels + 1} numbers instead of {channels}"):
        load_bundle(tmp_path / "old")


@pytest.mark.parametrize(
    ("mean", "whitening", "message"),
    [("AAAA", "AAAAAA==", "no base64 of float32"), ("AADAfw==", "AACAPw==", "do not belong"), ("?", "?", "no base64")],
)
def test_damaged_statistics_are_refused(mean: str, whitening: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        UsualFeatures(mean, whitening)


def test_limit_below_the_usual_is_refused() -> None:
    with pytest.raises(BundleError, match="at least 1"):
        known(ground_limit=0.9)


def test_unfamiliarity_is_what_lies_beyond_the_usual_in_both_views_and_lowers_the_odds() -> None:
    assert Distances(0.3, 0.99).unfamiliarity == 0.0
    assert Distances(1.5, 0.2).unfamiliarity == pytest.approx(0.5)
    assert Distances(1.5, 3.0).unfamiliarity == pytest.approx(2.5)
    confidence = Confidence(unfamiliar_weight=-2.0)
    odds = [confidence.log_odds(Clues(0.9, 1.0, unfamiliarity=away)) for away in (0.0, 0.5)]
    assert odds == pytest.approx([math.log(9), math.log(9) - 1.0])
    with pytest.raises(BundleError, match="unfamiliar_weight at most 0"):
        Confidence(unfamiliar_weight=0.1)


@pytest.mark.parametrize(
    ("distances", "words"),
    [
        (None, None),
        (Distances(1.5, 2.0), None),
        (Distances(1.51, 0.1), "the image is 1.51 times as far"),
        (Distances(0.1, 2.2), "the aerial imagery is 2.20 times as far"),
    ],
)
def test_beyond_a_limit_the_sentence_names_what_and_how_far(distances: Distances | None, words: str | None) -> None:
    problem = unfamiliar(distances, Calibration(familiarity=known()))
    assert (problem is None) == (words is None)
    assert words is None or (problem is not None and problem.startswith(words) and "the limit is" in problem)
    assert unfamiliar(Distances(9.0, 9.0), Calibration()) is None  # nothing is known: nothing is refused


def test_watch_warns_of_a_drive_and_not_of_an_image() -> None:
    watch = FamiliarityWatch()
    for _ in range(9):
        watch.see(Distances(3.0, 0.5))
    assert watch.warnings == {}
    watch.see(Distances(3.0, 0.5))
    (warning,) = watch.warnings.values()
    assert "the images are unlike what the model knows: half of the last 10 are 3.0 times as far" in warning
    for _ in range(11):
        watch.see(Distances(0.9, 1.2))
    (warning,) = watch.warnings.values()
    assert warning.startswith("the aerial imagery is unlike")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("familiarity")
    world, bundle = write_colour_region(folder), load_bundle(folder / "bundle")
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield world, bundle, engines, open_index(folder / "index", bundle=bundle), folder / "world.tif", folder


def calibrated_on(bundle, features, limit):  # type: ignore[no-untyped-def]
    """The bundle as if it had been calibrated on tiles and panoramas with these features."""
    usual = usual_features(features)
    familiarity = Familiarity(usual, usual, 1e6, limit)
    calibration = dataclasses.replace(bundle.manifest.calibration, familiarity=familiarity)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, calibration=calibration))


def test_localizer_refuses_a_place_on_imagery_that_the_model_does_not_know(setting, caplog) -> None:  # type: ignore[no-untyped-def]
    world, bundle, engines, index, imagery, folder = setting
    columns = bundle.manifest.ground.columns
    own = tile_features(index.match_maps[np.arange(len(index))], columns)
    image = CameraImage(world.panorama(3.0, 4.0, 0.3), 1)
    query = Query(heading=Heading(math.pi / 2 - 0.3, 1e-3, HeadingSource.IMU))
    config = LocalizerConfig(gate_ambiguity=1.0, gate_sigma_m=1000.0, check_projection=False)

    like = calibrated_on(bundle, [own[::2], own[1::2]], 3.0)
    localizer = Localizer(index, like, engines, config)
    observation = localizer.observe(image, query)
    assert not isinstance(observation, Rejection)
    assert observation.distances is not None
    tile = int(observation.matches.tile_ids[0])
    assert observation.distances.aerial == pytest.approx(float(localizer.tile_distances(np.array([tile]))[0]))
    found = imagery_familiarity(index, like)
    assert found is not None
    assert not found.unlike
    assert found.unusual_share < 0.1
    assert isinstance(localizer.locate(image, query), Fix)

    unlike = calibrated_on(bundle, [own[::2] + 5 * own.std(axis=0), own[1::2] + 5 * own.std(axis=0)], 1.2)
    result = Localizer(index, unlike, engines, config).locate(image, query)
    assert isinstance(result, Rejection)
    assert result.reason is RejectionReason.UNFAMILIAR
    assert "the aerial imagery is" in result.detail
    with caplog.at_level(logging.WARNING):
        build_index([imagery], unlike, engines, folder / "unlike")
    assert any("the imagery is unlike what the model knows" in record.message for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build_index([imagery], like, engines, folder / "like")
        build_index([imagery], bundle, engines, folder / "unknown")
    assert not [record for record in caplog.records if "what the model knows" in record.message]
    assert imagery_familiarity(index, bundle) is None
