"""The command line's parser: negative values, one-line errors."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unifygeo_ros.cli import build_parser, main
from unifygeo_ros.core.options import CommandParser, join_negative_values, numbers

ROOT = Path(__file__).parents[1]
BUILD = ["index", "build", "a.tif", "--model", "m", "--output", "o"]
LOCATE = ["locate", "a.jpg", "--index", "i", "--model", "m"]


@pytest.mark.parametrize("text", ["-33.9,18.4", "-33.9,-70.6,540", "-.5,1"])
def test_datum_takes_negative_latitudes(text):
    expected = [float(part) for part in text.split(",")]
    for arguments in (["--datum", text], [f"--datum={text}"]):
        datum = build_parser().parse_args([*BUILD, *arguments]).datum
        assert [datum.latitude_deg, datum.longitude_deg, datum.height_m][: len(expected)] == expected


def test_prior_takes_negative_latitudes():
    assert build_parser().parse_args([*LOCATE, "--prior", "-33.9,18.4,20"]).prior == (-33.9, 18.4, 20.0)
    assert build_parser().parse_args([*LOCATE, "--prior", "-33.9,18.4,20", "--heading-deg", "-90"]).heading_deg == -90.0


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["--a", "-1,2"], ["--a=-1,2"]),
        (["--a", "1", "-2"], ["--a", "1", "-2"]),
        (["--a=3", "-2"], ["--a=3", "-2"]),
        (["--a", "-v"], ["--a", "-v"]),
        (["--", "-1"], ["--", "-1"]),
        (["--a", "-.5"], ["--a=-.5"]),
    ],
)
def test_join_negative_values(given, joined):
    assert join_negative_values(given) == joined


def test_option_may_be_shortened_and_a_name_may_follow_two_minuses():
    assert str(build_parser().parse_args(["index", "info", "--verif", "--", "--odd"]).index) == "--odd"


def test_parser_of_the_class_passes_it_to_subparsers():
    parser = CommandParser(prog="tool")
    command = parser.add_subparsers().add_parser("go")
    command.add_argument("--at", type=lambda text: numbers(text, (2,), "X,Y"))
    assert parser.parse_args(["go", "--at", "-1,-2"]).at == [-1.0, -2.0]


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "1,x", "nan,1", "1,inf"])
def test_numbers_refuses_wrong_counts_and_values_that_are_not_finite(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r} is not X,Y"):
        numbers(text, (2,), "X,Y")


def test_reader_that_goes_away_ends_the_command_without_a_traceback():
    """As `unifygeo … | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "unifygeo_ros.cli", "bundle", "info", ROOT / "models/towns-photo"]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_encoding_without_the_needed_letters_is_no_error():
    """As LC_ALL=de_DE.ISO-8859-1 gives it, which has no … and no Greek."""
    program = [sys.executable, "-m", "unifygeo_ros.cli", "index", "--help"]
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "aerial imagery \\u2192 index" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BUILD, "--datum", "120.5,30.2"], "argument --datum: datum 120.5, 30.2 is outside latitude"),
        ([*BUILD, "--datum", "30.2"], "argument --datum: '30.2' is not LAT,LON"),
        ([*BUILD, "--bands", "1,2.5,3"], "argument --bands: '1,2.5,3' is not"),
        ([*LOCATE, "--prior", "120.5,30.2,5"], "argument --prior: '120.5,30.2,5' is not a latitude"),
        (["index", "build", "a.tif", "--modell", "m"], "there is no option --modell; did you mean --model? (options"),
        ([*LOCATE, "--gate-sgma-m=3"], "there is no option --gate-sgma-m; did you mean --gate-sigma-m?"),
        ([*LOCATE, "--zzz", "3"], "there is no option --zzz (options"),
        (["index", "build"], "the following arguments are required"),
        (["nothing"], "invalid choice"),
    ],
)
def test_wrong_option_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_interrupted_command_ends_with_one_line(monkeypatch, capsys):
    def interrupted(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("unifygeo_ros.aerial.command._info", interrupted)
    assert main(["index", "info", "town"]) == 130
    assert capsys.readouterr().err == "unifygeo: interrupted\n"
