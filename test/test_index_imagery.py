"""An index as imagery: its tiles, encoded with another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import random_bundle
from imagery_files import town

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.inference.select import open_engines

DATUM = Datum(48.5, 9.0, 312.0)  # not the one that a build would choose


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    bundle = random_bundle(folder / "bundle")
    settings = BuildSettings(stride=0.7, minimum_coverage=0.2)  # tiles of the border are mostly unknown
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        build_index([town(folder / "town.tif")], bundle, engines, folder / "index", datum=DATUM, settings=settings)
    return folder / "index"


def test_tiles_are_the_same_and_their_features_the_other_models(earlier: Path, tmp_path: Path) -> None:
    other = random_bundle(tmp_path / "other", seed=1)
    with open_engines(other, backend="onnx_cpu", threads=1) as engines:
        report = build_index([earlier], other, engines, tmp_path / "index")
        old, new = open_index(earlier), open_index(report.path, bundle=other, verify=True)
        assert report.encoded == len(new) == len(old)
        assert np.array_equal(new.centres_m, old.centres_m)
        assert [new.tile_png(n) for n in range(len(new))] == [old.tile_png(n) for n in range(len(old))]
        for name in ("datum", "stride_m", "imagery", "metres_per_pixel"):
            assert getattr(new.manifest, name) == getattr(old.manifest, name)
        expected = engines.aerial_encoder.run({"image": old.tile_pixels(3)[None]})["descriptor"][0]
    assert new.descriptors[3] == pytest.approx(expected, abs=1e-6)
    assert np.abs(new.descriptors[3] - old.descriptors[3]).max() > 0.1


def test_index_as_imagery_is_refused_where_its_tiles_do_not_fit(earlier: Path, tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    larger = random_bundle(tmp_path / "larger", aerial_size=128)
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        with pytest.raises(ConfigurationError, match="leave --datum out"):
            build_index([earlier], bundle, engines, tmp_path / "index", datum=Datum(48.5, 9.0))
        with pytest.raises(InputError, match=r"the model takes 128 at 0\.5 m; give the imagery"):
            build_index([earlier], larger, engines, tmp_path / "index")
        with pytest.raises(InputError, match="cannot be mixed with other imagery"):
            build_index([earlier, earlier], bundle, engines, tmp_path / "index")
    assert not (tmp_path / "index").exists()
