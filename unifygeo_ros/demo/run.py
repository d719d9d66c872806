"""The first run: index → node → drive over DDS → fixes → replay → report, with the real parts all the way."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.core.errors import IndexFormatError, InputError
from unifygeo_ros.core.records import Fix
from unifygeo_ros.demo.live_drive import LiveDrive, play_to_node
from unifygeo_ros.demo.node_process import NodeProcess
from unifygeo_ros.evaluation.evaluate import ReplayRequest, evaluate
from unifygeo_ros.evaluation.metrics.results import read_frames
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.recordings.truth import Truth
from unifygeo_ros.evaluation.replay import read_truth
from unifygeo_ros.evaluation.report.page import verdict
from unifygeo_ros.inference.bundle import ModelBundle, load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.parameters.files import read_settings_file

TOWN, BAG, PARAMETERS = "drive/town.tif", "drive/bag", "localizer.yaml"
IMAGE_TOPIC, ODOMETRY_TOPIC, IMU_TOPIC = "/camera/image/compressed", "/odom", "/imu/data"
TRUTH_TOPIC = "/ground_truth/navsat"
UNPLAYED_TOPICS = (TRUTH_TOPIC, "/ground_truth/odometry", "/tf_static")
"""What the node must not know, and the mount, which the parameter file gives: tf2_msgs does not install with pip."""
REMAPS = {"image/compressed": IMAGE_TOPIC, "odometry": ODOMETRY_TOPIC, "imu": IMU_TOPIC}
CLOSE_M = 5.0
SAME_M = 0.01
"""A live fix and the replay's fix of the same image agree if they are no further apart."""
DROPPED_SHARE = 0.1
"""If the node drops more of the images, the drive is played too fast for the machine."""


def run_demo(data: Path, model: Path, output: Path, rate: float) -> None:
    """Run the whole demo and print what came of it. Raises UnifyGeoError for data or a node that cannot be used."""
    check_files(data)
    output.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(model)
    print(f"1. Model {bundle.manifest.name}, trained on {bundle.manifest.trained_on}.")
    index = _index(data / TOWN, bundle, output / "index")
    print(f"2. Index of {data / TOWN}: {len(index)} aerial tiles, in {index.path}")

    parameters = data / PARAMETERS
    print(f"3. The node runs in its own process; the drive is played to it over DDS at {rate:g} times its pace.")
    print("   To see it in a browser, run `unifygeo watch` in another terminal.")
    live = _drive(data / BAG, parameters, index.path, model, rate, output / "node.log")

    print("4. The same drive replayed without ROS, for the report.")
    report = output / "report.html"
    summary = evaluate(
        ReplayRequest(
            bag=data / BAG,
            index=index.path,
            model=model,
            output=output / "fixes.mcap",
            report=report,
            image_topic=IMAGE_TOPIC,
            truth_topic=TRUTH_TOPIC,
            odometry_topic=ODOMETRY_TOPIC,
            imu_topic=IMU_TOPIC,
            settings=read_settings_file(parameters),
            restart=True,
        )
    )
    print()
    print(live_table(live, _live_errors_m(live, data / BAG, index)))
    print(_agreement(live, output / "fixes.frames.jsonl", rate))
    print(verdict(summary))
    print(
        "\nThe model learned where images belong from procedural towns alone, and this town was not among them: the\n"
        "numbers say that the system works, not how well it would do on real streets. For real imagery and the\n"
        "published weights see docs/how-to/real_imagery.md."
    )
    print(f"\nReport: {report.resolve()}")
    print(f"Play the drive in a browser: unifygeo watch {index.path} --replay {output} --bag {data / BAG}")


def check_files(data: Path) -> None:
    """Compare the demo's files with SHA256SUMS. Raises InputError naming the first that differs."""
    sums = data / "SHA256SUMS"
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
        for line in lines:
            expected, name = line.split(maxsplit=1)
            found = hashlib.sha256((data / name).read_bytes()).hexdigest()
            if found != expected:
                raise InputError(
                    f"{data / name}: SHA-256 is {found[:12]}…, {sums} says {expected[:12]}…; "
                    "check the repository out again"
                )
    except (OSError, ValueError) as error:
        raise InputError(f"{sums}: cannot be used ({error}); check the repository out again") from error


def live_table(live: LiveDrive, errors_m: dict[int, float]) -> str:
    """What the live node did, as text."""
    rows = [("images played", f"{live.images}"), ("fixes", f"{len(live.fixes)} ({len(live.fixes) / live.images:.0%})")]
    if errors_m:
        errors = np.array(list(errors_m.values()))
        rows += [
            ("error, median / 95%", f"{np.median(errors):.2f} m / {np.quantile(errors, 0.95):.2f} m"),
            (f"fixes within {CLOSE_M:g} m", f"{np.mean(errors <= CLOSE_M):.1%}"),
        ]
    latencies_ms = np.array([fix.latency_s for fix in live.fixes.values()]) * 1e3
    latencies_ms = latencies_ms[np.isfinite(latencies_ms)]
    if latencies_ms.size:
        quantiles = np.quantile(latencies_ms, (0.5, 0.95, 0.99))
        rows.append(("image to fix, p50 / p95 / p99", " / ".join(f"{value:.0f} ms" for value in quantiles)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(["The live node", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _index(imagery: Path, bundle: ModelBundle, folder: Path) -> TileIndex:
    """The index from an earlier run if it is whole and of this model, else a new one."""
    try:
        return open_index(folder, bundle=bundle)
    except IndexFormatError:
        shutil.rmtree(folder, ignore_errors=True)
        with open_engines(bundle) as engines:
            build_index([imagery], bundle, engines, folder)
    return open_index(folder, bundle=bundle)


def _drive(bag: Path, parameters: Path, index: Path, model: Path, rate: float, log: Path) -> LiveDrive:
    overrides = {
        "bundle": model.resolve(),
        "index": index.resolve(),
        "autostart": True,
        "use_sim_time": True,
        "image_transport": "compressed",
        "reliability": "reliable",  # nothing of the drive is to be lost, so that the replay can be compared
    }
    process = NodeProcess(parameters, log, overrides=overrides, remaps=REMAPS)
    try:
        images = Bag(bag).topics[IMAGE_TOPIC].count
        with tqdm(total=images, unit="image", desc="   drive", disable=None) as bar:

            def show(published: int, fixes: int) -> None:
                bar.set_postfix_str(f"{fixes} fixes", refresh=False)
                bar.update(published - bar.n)

            motion = (ODOMETRY_TOPIC, IMU_TOPIC)
            return play_to_node(bag, IMAGE_TOPIC, motion, process, rate=rate, without=UNPLAYED_TOPICS, progress=show)
    finally:
        process.stop()


def _live_errors_m(live: LiveDrive, bag_path: Path, index: TileIndex) -> dict[int, float]:
    """Distance of each live fix from the truth, by stamp; fixes without ground truth are left out."""
    bag = Bag(bag_path)
    truth = Truth(read_truth(bag, bag.topics[TRUTH_TOPIC]), index.frame)
    errors = {}
    for stamp, fix in live.fixes.items():
        if (pose := truth.at(stamp)) is not None:
            errors[stamp] = math.hypot(fix.east_m - pose.east_m, fix.north_m - pose.north_m)
    return errors


def _agreement(live: LiveDrive, frames: Path, rate: float) -> str:
    """How the live fixes compare with the replay's, image by image, and how many images they are without."""
    replayed = {
        frame.outcome.stamp_ns: frame.outcome for frame in read_frames(frames) if isinstance(frame.outcome, Fix)
    }
    both = live.fixes.keys() & replayed.keys()
    apart_m = [
        math.hypot(live.fixes[s].east_m - replayed[s].east_m, live.fixes[s].north_m - replayed[s].north_m) for s in both
    ]
    same = sum(distance <= SAME_M for distance in apart_m)
    text = (
        f"live against replay: {same} of {len(both)} common fixes are the same to {SAME_M * 100:g} cm "
        f"(largest difference {max(apart_m, default=0.0):.2f} m); "
        f"{len(live.fixes.keys() - both)} only live, {len(replayed.keys() - both)} only in the replay"
    )
    dropped = live.images - len(live.localized)
    if dropped:
        text += (
            f"\nThe node dropped {dropped} of {live.images} images for newer ones, since this machine is busy or slow."
            "\nThe replay localized them, so fixes after them may differ."
        )
    if dropped > DROPPED_SHARE * live.images:
        text += f" Try `unifygeo demo --rate {max(rate / 4, 0.1):g}`."
    return text
