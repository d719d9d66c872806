"""Paths with the user's home folder in them."""

import os
import pwd
from pathlib import Path

import pytest

from unifygeo_ros import cli
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.paths import home_path
from unifygeo_ros.inference.engine_cache import default_cache_dir


def test_home_path_replaces_a_leading_tilde_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ä b")
    assert home_path("~/maps") == Path("/home/ä b/maps")
    assert home_path("/maps/~x") == Path("/maps/~x")
    assert home_path(f"~{pwd.getpwuid(os.getuid()).pw_name}") == Path(pwd.getpwuid(os.getuid()).pw_dir)


def test_home_path_refuses_an_unknown_home_with_the_remedy(monkeypatch):
    def unknown(_):
        raise KeyError("no such user")

    with pytest.raises(ConfigurationError, match=r"~nobody-here/maps: .* set HOME, or write the whole path"):
        home_path("~nobody-here/maps")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert home_path("/maps/town") == Path("/maps/town")
    with pytest.raises(ConfigurationError, match="the home folder is not known"):
        home_path("~/maps")
    with pytest.raises(ConfigurationError, match="the home folder is not known"):
        default_cache_dir()


def test_replay_expands_the_home_folder_as_the_node_does(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--set", "bundle=~/model", "--set", "index=~/town", "--output", str(tmp_path / "o.mcap")]
    assert cli.main(["replay", "bag", *options]) == 2
    assert f"{tmp_path}/model" in capsys.readouterr().err
