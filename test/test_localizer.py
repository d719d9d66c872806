"""The whole fix: against a re-computation in plain numpy, over its cases, and on real files."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import random_bundle
from colour_region import write_colour_region

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import EngineError, IndexFormatError
from unifygeo_ros.core.geodesy import Datum, wrap_angle, yaw_from_azimuth
from unifygeo_ros.core.records import (
    CameraImage,
    Distances,
    Fix,
    Heading,
    HeadingSource,
    Prior,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.images.files import read_image
from unifygeo_ros.inference.bundle import Confidence, load_bundle
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.familiarity import Familiarity, UsualFeatures
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization import localizer as localizer_module
from unifygeo_ros.localization.camera_alternatives import ALTERNATIVES, CONFIGURED, Alternative
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.localization.panorama import prepare_panorama

SHARED = Path(__file__).parents[2] / "shared" / "data"
OPEN_GATES = LocalizerConfig(gate_ambiguity=1.0, gate_sigma_m=1000.0, gate_heading_sigma_rad=math.pi, gate_score=-4.0)
PLACES = [(-20.0, 11.0), (9.0, 31.0), (-33.0, -8.0), (28.0, -30.0), (2.0, 3.0), (40.0, 12.0)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """World, bundle, engines and index, of which nothing changes."""
    folder = tmp_path_factory.mktemp("localizer")
    world, bundle = write_colour_region(folder), load_bundle(folder / "bundle")
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield world, bundle, engines, open_index(folder / "index", bundle=bundle)


@pytest.fixture
def localizer(setting):
    _, bundle, engines, index = setting
    return Localizer(index, bundle, engines, OPEN_GATES)


def heading_of(azimuth_rad, variance=1e-4):
    return Heading(float(yaw_from_azimuth(azimuth_rad)), variance, HeadingSource.CONSTANT)


@pytest.fixture(scope="module")
def sessions_and_tiles(setting):
    """Plain sessions of the three graphs, and what the aerial one says of every tile."""
    _, bundle, _, index = setting
    sessions = [
        onnxruntime.InferenceSession(str(bundle.graph_path(graph, "fp32")), providers=["CPUExecutionProvider"])
        for graph in ("ground_encoder", "aerial_encoder", "decoder")
    ]
    tiles = [run(sessions[1], image=np.ascontiguousarray(index.tile_pixels(i))[None]) for i in range(len(index))]
    return sessions, tiles


def run(session, **inputs):
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def brute_force(setting, sessions_and_tiles, pixels, mount, heading, candidates=5):
    """A fix from the files alone: plain sessions and numpy, no FAISS, no memory map, no cache.

    Returns ids and scores of the candidates in order, D of the winner, and base_link's position.
    """
    _, bundle, _, index = setting
    manifest = bundle.manifest
    sessions, tiles = sessions_and_tiles
    panorama = prepare_panorama(CameraImage(pixels, 0), manifest.ground, mount, heading).pixels
    ground = run(sessions[0], image=panorama[None])
    similarity = np.array([t["descriptor"][0] @ ground["descriptor"][0] for t in tiles])
    nearest = np.argsort(-similarity)[:candidates]
    peak = {i: max(float(v @ ground["f0"][0]) for v in tiles[i]["match_map"][0].reshape(-1, manifest.match_channels))
            for i in nearest}  # fmt: skip
    order = sorted(nearest, key=lambda i: -(similarity[i] + peak[i]))
    winner = order[0]
    logits = run(
        sessions[2],
        **{f"f{i}": ground[f"f{i}"] for i in range(4)},
        **{f"pyramid{i}": tiles[winner][f"pyramid{i}"] for i in range(4)},
    )["logits"][0].astype(float)
    weights = np.exp((logits - logits.max()) / manifest.calibration.distribution_temperature)
    d = weights / weights.sum()
    row, column = divmod(int(np.argmax(d)), d.shape[1])
    window = d[row - 1 : row + 2, column - 1 : column + 2]  # no place of the tests has its answer on an edge
    row += float(window[2].sum() - window[0].sum()) / window.sum()
    column += float(window[:, 2].sum() - window[:, 0].sum()) / window.sum()
    pixel_m = index.manifest.side_m / len(d)
    east = index.centres_m[winner, 0] + (column + 0.5) * pixel_m - index.manifest.side_m / 2
    north = index.centres_m[winner, 1] - (row + 0.5) * pixel_m + index.manifest.side_m / 2
    yaw = heading.yaw_rad
    east -= mount.x_m * math.cos(yaw) - mount.y_m * math.sin(yaw)
    north -= mount.x_m * math.sin(yaw) + mount.y_m * math.cos(yaw)
    return order, [similarity[i] + peak[i] for i in order], d, (east, north)


@pytest.mark.parametrize("place", PLACES)
def test_fix_equals_its_recomputation_in_plain_numpy(setting, sessions_and_tiles, place):
    world, bundle, engines, index = setting
    mount = CameraMount(x_m=0.7, y_m=-0.3, yaw_rad=0.5)
    heading = heading_of(0.9)
    pixels = world.panorama(*place, 0.9 - 0.5)  # the camera's middle column: clockwise azimuth minus the mount's yaw
    localizer = Localizer(index, bundle, engines, OPEN_GATES, mount)
    observation = localizer.observe(CameraImage(pixels, 0), Query(heading=heading))
    fix = localizer.decide(observation)
    order, scores, d, (east, north) = brute_force(setting, sessions_and_tiles, pixels, mount, heading)
    assert observation.matches.tile_ids.tolist() == [int(i) for i in order]
    np.testing.assert_allclose(observation.matches.scores, scores, atol=2e-3)  # the index keeps maps in fp16
    np.testing.assert_allclose(observation.distributions[0].probability, d, rtol=1e-3, atol=1e-7)
    assert (fix.east_m, fix.north_m) == pytest.approx((east, north), abs=1e-6)
    np.testing.assert_allclose(
        index.frame.map_from_geodetic(fix.latitude_deg, fix.longitude_deg), [east, north], atol=1e-6
    )


def test_locate_finds_known_places(setting, localizer):
    world, _, _, index = setting
    errors = []
    for place in PLACES:
        fix = localizer.locate(CameraImage(world.panorama(*place, 1.0), 0), Query(heading=heading_of(1.0)))
        errors.append(math.dist((fix.east_m, fix.north_m), world.in_map(index.frame, *place)))
    assert np.median(errors) < 1.5, errors


def test_mount_does_not_move_the_fix(setting):
    """Another mount and the image that it gives: the same fix up to the lever arm's own pixel."""
    world, bundle, engines, index = setting
    place, azimuth = (9.0, 31.0), 0.0
    plain = Localizer(index, bundle, engines, OPEN_GATES).locate(
        CameraImage(world.panorama(*place, azimuth), 0), Query(heading=heading_of(azimuth))
    )
    turned = world.panorama(*place, azimuth + math.pi / 2)[::-1, ::-1]
    mounted = Localizer(index, bundle, engines, OPEN_GATES, CameraMount(yaw_rad=-math.pi / 2, upside_down=True)).locate(
        CameraImage(turned, 0), Query(heading=heading_of(azimuth))
    )
    assert (mounted.east_m, mounted.north_m) == (plain.east_m, plain.north_m)


def test_observation_says_how_much_is_seen_and_the_clues_count_it(setting, localizer):
    """Of the panorama's azimuths a quarter is not seen. It counts by the weight of the calibration."""
    world, bundle, _, _ = setting
    pixels, query = world.panorama(*PLACES[0]), Query(heading=heading_of(0.0))
    seen = np.ones(pixels.shape[:2], bool)
    seen[:, : pixels.shape[1] // 4] = False
    whole = localizer.observe(CameraImage(pixels, 1), query)
    part = localizer.observe(CameraImage(pixels, 1, seen=seen), query)
    assert (whole.seen.azimuth, whole.seen.elevation) == pytest.approx((1.0, 1.0))
    assert (part.seen.azimuth, part.seen.elevation) == pytest.approx((0.75, 1.0), abs=0.01)
    clues = localizer.answer(part).clues
    assert (clues.blind_azimuth, clues.blind_elevation) == pytest.approx((0.25, 0.0), abs=0.01)
    confidence = dataclasses.replace(bundle.manifest.calibration.on_map_confidence, bias=0.0, azimuth_weight=4.0)
    calibration = dataclasses.replace(bundle.manifest.calibration, on_map_confidence=confidence)
    without = dataclasses.replace(clues, blind_azimuth=0.0)
    ratio = calibration.outside_ratio(without, searched=False) / calibration.outside_ratio(clues, searched=False)
    assert ratio == pytest.approx(math.exp(4.0 * clues.blind_azimuth))


def test_heading_is_found_where_none_is_given(setting, localizer):
    world, _, _, index = setting
    found = 0
    for number, place in enumerate(PLACES):
        azimuth = -2.0 + number
        result = localizer.locate(CameraImage(world.panorama(*place, azimuth), 0))
        assert isinstance(result, Fix)
        error = math.dist((result.east_m, result.north_m), world.in_map(index.frame, *place))
        turn = abs(wrap_angle(result.yaw_rad - float(yaw_from_azimuth(azimuth))))
        found += error < 3.0 and turn < math.radians(30)
    assert found >= 4
    assert {"heading_encoder", "heading_search"} <= set(result.timings_ms)


def test_heading_search_encodes_the_image_under_headings_all_around(setting, localizer, monkeypatch):
    """The descriptor, which finds the tiles, does not roll."""
    world, *_ = setting
    yaws_rad = []

    def recorded(image, ground, mount, heading):
        yaws_rad.append(heading.yaw_rad)
        return prepare_panorama(image, ground, mount, heading)

    monkeypatch.setattr(localizer_module, "prepare_panorama", recorded)
    localizer.observe(CameraImage(world.panorama(2.0, 3.0, 1.0), 0), Query())
    searched = np.sort(np.mod(yaws_rad[:-1], 2 * math.pi))  # the last one is the heading that was found
    gaps_rad = np.diff(np.append(searched, searched[0] + 2 * math.pi))
    assert math.degrees(gaps_rad.max()) < 50.0  # a sector has 45° here


def test_each_decoded_tile_has_its_own_heading_where_it_was_searched(setting, localizer):
    world, *_ = setting
    image = CameraImage(world.panorama(2.0, 3.0, 1.0), 0)
    searched = localizer.observe(image, Query(distributions=3))
    assert all(d.heading is not None and d.heading.source is HeadingSource.SEARCH for d in searched.distributions)
    given = localizer.observe(image, Query(heading=heading_of(1.0), distributions=3))
    assert all(d.heading is None for d in given.distributions)


def test_several_distributions_equal_those_decoded_alone(setting, localizer):
    world, bundle, engines, index = setting
    image, heading = CameraImage(world.panorama(2.0, 3.0), 0), heading_of(0.0)
    observation = localizer.observe(image, Query(heading=heading, distributions=4))
    assert [d.tile_id for d in observation.distributions] == observation.matches.tile_ids[:4].tolist()
    for distribution in observation.distributions:
        # A gate around one tile's centre, with one candidate, decodes that tile.
        prior = Prior(distribution.centre_east_m, distribution.centre_north_m, np.eye(2) * 1e-6)
        query = Query(prior, heading, candidates=100, distributions=100)
        alone = Localizer(index, bundle, engines, OPEN_GATES).observe(image, query)
        again = {d.tile_id: d for d in alone.distributions}[distribution.tile_id]
        np.testing.assert_array_equal(again.probability, distribution.probability)


def test_cached_pyramid_gives_the_same_fix(setting, localizer):
    world, *_ = setting
    image, heading = CameraImage(world.panorama(-20.0, 11.0), 0), heading_of(0.0)
    first, second = localizer.observe(image, Query(heading=heading)), localizer.observe(image, Query(heading=heading))
    np.testing.assert_array_equal(first.distributions[0].probability, second.distributions[0].probability)
    a, b = localizer.decide(first), localizer.decide(second)
    assert (a.east_m, a.north_m, a.score) == (b.east_m, b.north_m, b.score)
    np.testing.assert_array_equal(a.covariance_m2, b.covariance_m2)


class CountingEncoder:
    """The real encoder, counted."""

    def __init__(self, engine):
        self._engine, self.runs = engine, 0

    def run_resident(self, inputs, resident, outputs=None):
        self.runs += 1
        return self._engine.run_resident(inputs, resident, outputs)


def test_cache_forgets_what_was_used_longest_ago(setting):
    world, bundle, engines, index = setting
    encoder = CountingEncoder(engines.aerial_encoder)
    counted = EngineSet(engines.ground_encoder, encoder, engines.decoder, engines.description)
    config = LocalizerConfig(pyramid_cache_tiles=2, gate_ambiguity=1.0)
    localizer = Localizer(index, bundle, counted, config)

    def visit(place):
        before = encoder.runs
        tile = (
            localizer.observe(CameraImage(world.panorama(*place), 0), Query(heading=heading_of(0.0)))
            .distributions[0]
            .tile_id
        )
        return tile, encoder.runs - before

    a, b, c = PLACES[0], PLACES[1], PLACES[3]
    tiles = [visit(p) for p in (a, a, b, a, c, a, b)]
    assert len({tile for tile, _ in tiles}) == 3
    assert [encoded for _, encoded in tiles] == [1, 0, 1, 0, 1, 0, 1]  # c drove b out, not a


def test_prior_limits_the_search_and_gives_the_gated_best(setting, localizer):
    world, _, _, index = setting
    place = (-20.0, 11.0)
    image, heading = CameraImage(world.panorama(*place), 0), heading_of(0.0)
    everything = localizer.observe(image, Query(heading=heading, candidates=len(index)))
    at = world.in_map(index.frame, *place)
    prior = Prior(float(at[0]), float(at[1]), np.diag([4.0, 9.0]))
    gated = localizer.observe(image, Query(prior, heading, candidates=len(index)))
    half = index.manifest.side_m / 2
    # Independent of the gate's own geometry: sample the ellipse's filled area.
    angle, radius = np.meshgrid(np.linspace(0, 2 * np.pi, 721), np.linspace(0, 1, 41))
    ellipse = at + OPEN_GATES.prior_gate_sigma * np.stack([2 * np.cos(angle), 3 * np.sin(angle)], -1).reshape(-1, 2) * (
        radius.reshape(-1, 1)
    )
    touching = {
        i for i, c in enumerate(index.centres_m) if (np.abs(ellipse - c) <= half).all(axis=1).any()
    }  # fmt: skip
    assert set(gated.matches.tile_ids.tolist()) == touching
    expected = [i for i in everything.matches.tile_ids.tolist() if i in touching]
    assert gated.matches.tile_ids.tolist() == expected


REJECTED = {
    "black": (lambda w: np.zeros_like(w), {}, RejectionReason.BLACK_IMAGE, "brightness"),
    "half": (lambda w: np.ascontiguousarray(w[:, : w.shape[1] // 2]), {}, RejectionReason.BAD_IMAGE, "aspect"),
    "blank": (lambda w: np.full_like(w, 90), {}, RejectionReason.BLURRED_IMAGE, "sharpness"),
    "far": (lambda w: w, {"prior": Prior(5000.0, 0.0, np.eye(2))}, RejectionReason.OFF_MAP, "east 5000.0 m"),
    "far, no heading": (
        lambda w: w,
        {"prior": Prior(5000.0, 0.0, np.eye(2)), "heading": None},
        RejectionReason.OFF_MAP,
        "no tile",
    ),
    "nan prior": (lambda w: w, {"prior": Prior(math.nan, 0.0, np.eye(2))}, RejectionReason.BAD_PRIOR, "nan"),
    "flat prior": (lambda w: w, {"prior": Prior(0, 0, np.zeros((2, 2)))}, RejectionReason.BAD_PRIOR, "eigenvalue 0"),
    "crooked prior": (
        lambda w: w,
        {"prior": Prior(0, 0, np.array([[1.0, 0.5], [0.0, 1.0]]))},
        RejectionReason.BAD_PRIOR,
        "symmetric",
    ),
    "nan heading": (
        lambda w: w,
        {"heading": Heading(math.nan, 0.1, HeadingSource.IMU)},
        RejectionReason.NO_HEADING,
        "nan",
    ),
    "heading without error": (
        lambda w: w,
        {"heading": Heading(0.0, 0.0, HeadingSource.CONSTANT)},
        RejectionReason.NO_HEADING,
        "with variance 0.0 rad²; both must be finite, the variance above 0",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_localizer_rejects_unusable_images_with_the_reason(setting, localizer, name):
    world, *_ = setting
    change, inputs, reason, words = REJECTED[name]
    image = CameraImage(change(world.panorama(2.0, 3.0)), 11)
    result = localizer.locate(image, Query(inputs.get("prior"), inputs.get("heading", heading_of(0.0))))
    assert isinstance(result, Rejection)
    assert (result.reason, result.stamp_ns) == (reason, 11)
    assert words in result.detail
    assert result.timings_ms["total"] > 0


def test_without_heading_and_without_search_there_is_no_fix(setting):
    world, bundle, engines, index = setting
    localizer = Localizer(index, bundle, engines, LocalizerConfig(heading_search=False))
    result = localizer.locate(CameraImage(world.panorama(2.0, 3.0), 0))
    assert isinstance(result, Rejection)
    assert result.reason is RejectionReason.NO_HEADING


def test_score_of_a_place_that_is_not_on_the_map_is_low(setting):
    """Noise is no panorama of this world: with the minimum score calibrated between the two, it is rejected."""
    world, bundle, engines, index = setting
    localizer = Localizer(index, bundle, engines, dataclasses.replace(OPEN_GATES, check_projection=False))
    own = [localizer.locate(CameraImage(world.panorama(*p), 0), Query(heading=heading_of(0.0))).score for p in PLACES]
    # A grey street under a grey sky, with a little texture to pass for an image.
    noise = np.random.default_rng(3).integers(60, 90, (128, 256, 1), np.uint8).repeat(3, 2)
    strange = localizer.locate(CameraImage(noise, 0), Query(heading=heading_of(0.0))).score
    assert strange < min(own)
    least = (strange + min(own)) / 2 - bundle.manifest.calibration.minimum_score
    gate = LocalizerConfig(gate_score=least, check_projection=False)
    gated = Localizer(index, bundle, engines, gate)
    assert gated.locate(CameraImage(noise, 0), Query(heading=heading_of(0.0))).reason is RejectionReason.LOW_SCORE


def test_index_of_other_weights_is_refused(setting, tmp_path):
    _, _, engines, index = setting
    other = random_bundle(tmp_path / "other", seed=1)
    with pytest.raises(IndexFormatError, match=other.manifest.weights_sha256[:12]):
        Localizer(index, other, engines)


class NotFinite:
    """An engine whose fp16 overflowed: the real outputs with one infinity."""

    def __init__(self, engine, output):
        self._engine, self._output, self.description = engine, output, "overflowing"

    def run(self, inputs):
        return self.run_resident(inputs, ())[0]

    def run_resident(self, inputs, resident, outputs=None):
        host, kept = self._engine.run_resident(inputs, resident, outputs)
        host = {name: value.copy() for name, value in host.items()}
        host[self._output].flat[0] = np.inf
        return host, kept


@pytest.mark.parametrize(("engine", "output"), [("ground_encoder", "f2"), ("decoder", "logits")])
def test_locate_returns_no_values_that_are_not_finite(setting, engine, output):
    world, bundle, engines, index = setting
    broken = EngineSet(
        **{name: getattr(engines, name) for name in ("ground_encoder", "aerial_encoder", "decoder", "description")}
        | {engine: NotFinite(getattr(engines, engine), output)}
    )
    with pytest.raises(EngineError, match="not finite"):
        Localizer(index, bundle, broken, OPEN_GATES).locate(
            CameraImage(world.panorama(2.0, 3.0), 0), Query(heading=heading_of(0.0))
        )


def test_every_stage_is_timed(setting, localizer):
    world, *_ = setting
    fix = localizer.locate(CameraImage(world.panorama(2.0, 3.0), 0), Query(heading=heading_of(0.0)))
    stages = {
        "checks", "preprocessing", "ground_encoder", "retrieval", "reranking", "aerial_encoder", "decoder",
        "distribution", "decision",
    }  # fmt: skip
    assert set(fix.timings_ms) == {*stages, "total"}
    assert sum(fix.timings_ms[s] for s in stages) <= fix.timings_ms["total"]


def test_live_settings_change_and_others_do_not(setting, localizer):
    world, *_ = setting
    image = CameraImage(world.panorama(2.0, 3.0), 0)
    localizer.reconfigure(dataclasses.replace(OPEN_GATES, gate_sigma_m=0.1))
    assert localizer.locate(image, Query(heading=heading_of(0.0))).reason is RejectionReason.UNCERTAIN
    with pytest.raises(ValueError, match="candidates"):
        localizer.reconfigure(dataclasses.replace(OPEN_GATES, candidates=7))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize(
    ("imagery", "metres_per_pixel"), [("OSBS_029.tif", 0.25), ("5b90f92da0d7280005fab355_4310.tif", 1.0)]
)
def test_real_imagery_and_panoramas_run_through(tmp_path, imagery, metres_per_pixel):
    """A network made by hand does not localize them; the path must still end in a reason or in finite numbers."""
    bundle = random_bundle(tmp_path / "bundle", metres_per_pixel=metres_per_pixel)
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        build_index([SHARED / "geotiff" / imagery], bundle, engines, tmp_path / "index", datum=None)
        index = open_index(tmp_path / "index", bundle=bundle)
        for name in ("equirectangular_image_001.jpg", "equirectangular_image_002.jpg", "R0014760.JPG"):
            image = CameraImage(read_image(SHARED / "panoramas" / name), 1)
            for config in (LocalizerConfig(), OPEN_GATES):
                localizer = Localizer(index, bundle, engines, config)
                for heading in (None, heading_of(0.3)):
                    result = localizer.locate(image, Query(heading=heading))
                    if isinstance(result, Rejection):
                        assert config is not OPEN_GATES
                        assert result.reason in (RejectionReason.AMBIGUOUS, RejectionReason.UNCERTAIN,
                                                 RejectionReason.NO_HEADING)  # fmt: skip
                        assert result.detail
                    else:
                        assert np.isfinite([result.latitude_deg, result.longitude_deg]).all()
                        assert np.linalg.eigvalsh(result.covariance_m2)[0] > 0
                        assert isinstance(index.manifest.datum, Datum)


def judging(localizer: Localizer, **calibration: object) -> Localizer:
    """The localizer with another calibration."""
    changed = dataclasses.replace(localizer._model.calibration, **calibration)
    localizer._model = dataclasses.replace(localizer._model, calibration=changed)
    return localizer


ON_MAP = Confidence(bias=-1.0, belief_weight=0.3, score_weight=2.0, spread_weight=-0.4, agreeing_weight=0.2)


def test_camera_fits_are_the_log_odds_of_what_localizers_with_other_mounts_observe(setting, localizer):
    world, bundle, engines, index = setting
    image, heading = CameraImage(world.panorama(*PLACES[0], azimuth_rad=0.4), 1), heading_of(0.4)
    alternatives = tuple(a for a in ALTERNATIVES if a.possible(image, CameraMount()))
    fits = judging(localizer, on_map_confidence=ON_MAP).camera_fits(image, heading, alternatives)
    plain = Alternative(CONFIGURED, "")
    assert list(fits) == [CONFIGURED, *(alternative.words for alternative in alternatives)]
    for alternative in (plain, *alternatives):
        taken, mount = alternative.applied(image, CameraMount())
        settings = dataclasses.replace(OPEN_GATES, check_projection=False, minimum_sharpness=0.0)
        other = judging(Localizer(index, bundle, engines, settings, mount), on_map_confidence=ON_MAP)
        clues = other.answer(other.observe(taken, Query(heading=heading))).clues
        assert fits[alternative.words] == pytest.approx(ON_MAP.log_odds(clues), abs=1e-5)
    assert len(set(fits.values())) > 5


def test_camera_fits_near_a_place_look_there_as_well(setting, localizer):
    """With one candidate from the whole index, the right tile may be found by the prior alone."""
    world, _, _, index = setting
    image, heading = CameraImage(world.panorama(*PLACES[1], azimuth_rad=0.4), 1), heading_of(0.4)
    asked = []
    judging(localizer, on_map_confidence=ON_MAP)
    matched, decode = localizer._match, localizer._decode
    localizer._match = lambda f0s, tile_ids: asked.append(set(tile_ids.tolist())) or matched(f0s, tile_ids)
    localizer._decode = lambda tile_id, *rest: asked.append(tile_id) or decode(tile_id, *rest)
    far = world.in_map(index.frame, -PLACES[1][0], -PLACES[1][1])
    prior = Prior(*far, np.eye(2))
    localizer.camera_fits(image, heading, ())
    localizer.camera_fits(image, heading, (), prior=prior)
    whole, best, both, best_of_both = asked
    near = set(index.tiles_within(localizer.gate(prior, heading)).tolist())
    assert len(whole) == 5
    assert whole < both
    assert both - whole <= near
    assert best_of_both == best  # the image was taken where the whole index has it


def test_camera_fits_of_unfamiliar_images_say_nothing(setting, localizer):
    world, *_ = setting
    image, heading = CameraImage(world.panorama(*PLACES[0], azimuth_rad=0.4), 1), heading_of(0.4)
    localizer._distances = lambda features, tile_id: Distances(9.0, 0.0)
    usual = UsualFeatures("AAAAAA==", "AACAPw==")  # one feature: 0, and 1
    judging(localizer, on_map_confidence=ON_MAP, familiarity=Familiarity(usual, usual, 1.2, 1.2))
    assert localizer.camera_fits(image, heading, ()) == {CONFIGURED: -math.inf}
