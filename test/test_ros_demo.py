"""The demo, whole, on a small made-up town: index, node, drive over DDS, replay, report."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from drives import write_drive
from ros_drive import domain_id, make_region

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.demo import run
from unifygeo_ros.demo.live_drive import LiveDrive
from unifygeo_ros.demo.run import BAG, PARAMETERS, TOWN, check_files, run_demo
from unifygeo_ros.parameters.settings import Settings, with_values

SETTINGS = """
unifygeo_localizer:
  ros__parameters:
    backend: onnx_cpu
    threads: 1
    camera: {x_m: 0.0}
    localizer: {gate_ambiguity: 1.0, gate_sigma_m: 1000.0, gate_score: -4.0}
    session: {heading_source: imu, camera_check_images: 0}
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder as the demo wants it, and the model that goes with it."""
    folder = tmp_path_factory.mktemp("demo")
    region = make_region(folder)
    data = folder / "data"
    (data / TOWN).parent.mkdir(parents=True)
    region.world.write_geotiff(data / TOWN)
    write_drive(
        data / BAG, region.world, open_index(region.index).frame, seconds=5.0, image_rate=2.0, image_delay_s=0.1
    )
    (data / PARAMETERS).write_text(SETTINGS)
    files = sorted(file for file in data.rglob("*") if file.is_file())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(data)}" for file in files]
    (data / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return data, region.bundle


def test_demo_localizes_a_drive_and_writes_its_report(demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain_id()))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    data, model = demo
    run_demo(data, model, tmp_path, rate=2.0)
    printed = capsys.readouterr().out
    lines = {
        line.split("  ")[1].strip(): line.split("  ")[-1] for line in printed.splitlines() if line.startswith("  ")
    }
    assert lines["images played"] == "11"
    assert int(lines["fixes"].split()[0]) >= 3
    assert lines["error, median / 95%"].endswith(" m")
    assert lines["image to fix, p50 / p95 / p99"].count(" ms") == 3
    # A busy machine may drop frames of the live drive; those that were localized are the replay's.
    same, common = re.search(r"(\d+) of (\d+) common fixes are the same", printed).groups()
    assert same == common
    assert int(common) >= 3
    assert "0 only live" in printed
    assert "dropped 11" not in printed  # then none was heard of
    assert (tmp_path / "report.html").stat().st_size > 100_000
    # A second run takes the index from the first.
    built = (tmp_path / "index" / "manifest.json").stat().st_mtime_ns
    run_demo(data, model, tmp_path, rate=4.0)
    assert (tmp_path / "index" / "manifest.json").stat().st_mtime_ns == built


@pytest.mark.parametrize(
    ("localized", "said"),
    [
        (20, ""),
        (19, "dropped 1 of 20 images for newer ones"),
        (17, "dropped 3 of 20 images for newer ones, .*Try `unifygeo demo --rate 0.5`"),
    ],
)
def test_agreement_says_how_many_images_the_node_dropped(
    monkeypatch: pytest.MonkeyPatch, localized: int, said: str
) -> None:
    """Rejected images count as well: a fix depends on what was seen before."""
    monkeypatch.setattr(run, "read_frames", lambda path: [])
    text = run._agreement(LiveDrive(20, {}, range(localized)), Path("frames"), rate=2.0)
    assert re.search(said, text, re.DOTALL)
    assert ("dropped" in text) == bool(said)
    assert ("Try" in text) == ("Try" in said)


def test_changed_file_is_refused(demo):
    data, _ = demo
    file = data / PARAMETERS
    text = file.read_text()
    file.write_text(text + "# changed\n")
    with pytest.raises(InputError, match=r"localizer\.yaml: SHA-256"):
        check_files(data)
    file.write_text(text)
    check_files(data)


def test_demo_replays_with_every_setting_of_its_parameter_file(monkeypatch, tmp_path):
    """Of every group, and from a section /** as from one of the node's name: else live and replay differ in silence."""
    values = {
        "camera.x_m": 0.25,
        "localizer.gate_sigma_m": 7.0,
        "odometry.scale": 0.03,
        "session.heading_source": "imu",
        "tracker.confirm_images": 3.0,
        "tracker.fix_from": "image",
    }
    lines = [f"    {name}: {value}" for name, value in values.items()]
    (tmp_path / PARAMETERS).write_text("\n".join(["/**:", "  ros__parameters:", *lines]) + "\n")

    class Replayed(Exception):
        """Carries the request, since nothing after the replay is of interest."""

    def evaluate(request):
        raise Replayed(request)

    manifest = SimpleNamespace(name="made in a test", trained_on="nothing")
    monkeypatch.setattr(run, "check_files", lambda data: None)
    monkeypatch.setattr(run, "load_bundle", lambda model: SimpleNamespace(manifest=manifest))
    monkeypatch.setattr(run, "_index", lambda *arguments: Tiles())
    monkeypatch.setattr(run, "_drive", lambda *arguments: None)
    monkeypatch.setattr(run, "evaluate", evaluate)
    with pytest.raises(Replayed) as replayed:
        run_demo(tmp_path, tmp_path / "model", tmp_path / "output", rate=1.0)
    assert replayed.value.args[0].settings == with_values(Settings(), values)


class Tiles(list):
    """Stands in for an index, of which the demo wants the length and the path."""

    path = Path("index")
