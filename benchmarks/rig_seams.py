"""How well the cameras of a rig fit together: PandaSet's sequence 002, or a recorded drive.

    python benchmarks/rig_seams.py ../shared/data/rigs/pandaset_002
    python benchmarks/rig_seams.py DRIVE --columns 2048     # a drive of `unifygeo-train towns drive --rig`
    python benchmarks/rig_seams.py DRIVE --columns 2048 --sets 120 --turning 12     # its sharpest turns

Features are matched where two cameras see the same, in the strips that they contribute to a panorama. Each match gives
two rays from two known places, and by triangulation a distance. The table has for each seam, over the features at least
`--beyond-m` away:

- "one distance": by how much the two cameras disagree about a feature if all that is not the road is taken to be at
  `distance_m`, median. Parallax is a part of it.
- "composed": the same in the panorama as it is composed, where the parallax in the overlaps is estimated and taken out.
  For it the features are matched again; each has the distance of the nearest one of before, within one degree.
- "without parallax": by how much the two rays miss each other, median. No distance explains that: it is what lenses,
  mounts, stamps and matching leave, and what a panorama would show that knew the distance of each feature.

Each once with the cameras' own stamps, and once with all images taken as of the first camera's instant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.se2 import Pose2, rotation_matrix
from unifygeo_ros.evaluation.rig_check import gather
from unifygeo_ros.images.files import read_image
from unifygeo_ros.parameters.settings import Settings, with_values
from unifygeo_ros.rig.composer import STANDING, CameraView, Composer
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.rig import Rig
from unifygeo_ros.rig.seams import Seam, match_seams, match_strips

RIG = Path(__file__).parents[1] / "config" / "rigs" / "six_pinholes.yaml"


class Sequence:
    """PandaSet's poses and stamps as motions of base_link."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        self._folder, self._rig = folder, rig
        front = rig.cameras[0]
        self._stamps = {camera.name: self._json(camera.name, "timestamps") for camera in rig.cameras}
        poses = []
        for pose in self._json(front.name, "poses"):
            turn = (
                Rotation.from_quat([pose["heading"][axis] for axis in "xyzw"]).as_matrix() @ front.base_from_optical.T
            )
            place = np.array([pose["position"][axis] for axis in "xyz"]) - turn @ front.position_m
            poses.append((place[0], place[1], math.atan2(turn[1, 0], turn[0, 0])))
        self._poses = np.array(poses)
        self._poses[:, 2] = np.unwrap(self._poses[:, 2])

    def _json(self, camera: str, name: str) -> Any:
        return json.loads((self._folder / f"{camera}_camera" / f"{name}.json").read_text())

    def _at(self, time_s: float) -> Pose2:
        x, y, yaw = (float(np.interp(time_s, self._stamps["front"], values)) for values in self._poses.T)
        return Pose2(x, y, yaw)

    def views(self, frame: int, stamps: bool) -> dict[str, CameraView]:
        """The images of a frame, moved to the front camera's instant, or taken as of it."""
        found = {}
        for camera in self._rig.cameras:
            image = read_image(self._folder / f"{camera.name}_camera" / f"{frame:02d}.jpg")
            own, instant = self._stamps[camera.name][frame], self._stamps["front"][frame]
            found[camera.name] = CameraView(image, self._at(own).between(self._at(instant)) if stamps else STANDING)
        return found


class RecordedDrive:
    """Sets of images of a bag, moved by its odometry."""

    def __init__(self, folder: Path, count: int, turning: int | None) -> None:
        """turning: of so many sets only those in which the vehicle turns most while the cameras expose."""
        settings = with_values(Settings(), {"rig.file": str(folder / "rig.yaml")})
        self.gathered = gather(folder / "bag", count, settings)
        turns_deg = [
            math.degrees(max(abs(view.motion.yaw_rad) for view in one.views.values())) for one in self.gathered.sets
        ]
        order = np.argsort(turns_deg)[::-1][: turning or None]
        self.frames = sorted(int(frame) for frame in order)
        chosen = [turns_deg[frame] for frame in self.frames]
        print(f"{len(chosen)} sets; cameras turn by {np.median(chosen):.1f}° between them in the median\n")

    def views(self, frame: int, stamps: bool) -> Mapping[str, CameraView]:
        """As `Sequence.views`; frame: number of the set."""
        views = self.gathered.sets[frame].views
        return views if stamps else {name: CameraView(view.pixels) for name, view in views.items()}


@dataclass(frozen=True)
class Judged:
    """The matches of one seam, float64 (n,) each."""

    distance_m: Float64
    """By triangulation; inf where the rays do not meet in front of the cameras."""
    apart_deg: Float64
    """In a panorama for one distance."""
    across_deg: Float64
    """That no distance explains."""
    composed_m: Float64
    """Distance of the features that were matched again after the parallax was taken out, float64 (m,)."""
    composed_deg: Float64
    """By how much they are apart, float64 (m,)."""

    def cells(self, beyond_m: float) -> list[str]:
        """Count, median distance and medians of the features at least so far away."""
        far, far_composed = self.distance_m >= beyond_m, self.composed_m >= beyond_m
        met = self.distance_m[far & np.isfinite(self.distance_m)]
        distance = f"{np.median(met):.0f} m" if len(met) else "–"
        medians = self.apart_deg[far], self.composed_deg[far_composed], self.across_deg[far]
        return [f"{far.sum()}", distance, *(f"{np.median(values):.2f}°" if len(values) else "–" for values in medians)]


def directions(azimuth_deg: Float64, elevation_deg: Float64) -> Float64:
    """Unit vectors (n, 3) in base_link's axes."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    return np.stack(
        [np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=1
    )


def judge(seam: Seam, rig: Rig, motions: Mapping[str, Pose2]) -> Judged:
    """Triangulate the matches of a seam."""
    seen = directions(seam.azimuth_deg, seam.elevation_deg)
    moved = seam.right_deg / np.cos(np.radians(seam.elevation_deg))
    also = directions(seam.azimuth_deg + moved, seam.elevation_deg + seam.up_deg)
    places, rays = [], []
    for name, direction in ((seam.first, seen), (seam.second, also)):
        # What the composer takes a direction of the panorama for: a point on the ground or at distance_m.
        height = rig.centre_m[2] - rig.ground_z_m
        reach = np.minimum(height / np.maximum(-direction[:, 2], 1e-9), rig.distance_m)
        camera = next(camera for camera in rig.cameras if camera.name == name)
        motion = motions[name]  # base_link at the panorama's instant in base_link at the exposure
        turn = np.eye(3)
        turn[:2, :2] = rotation_matrix(motion.yaw_rad)
        place = turn.T @ (camera.position_m - np.array([motion.x_m, motion.y_m, 0.0]))
        ray = rig.centre_m + direction * reach[:, None] - place
        places.append(place)
        rays.append(ray / np.linalg.norm(ray, axis=1, keepdims=True))
    base = places[1] - places[0]
    # The part of the second ray beside the plane of the baseline and the first ray.
    normal = np.cross(np.broadcast_to(base, rays[0].shape), rays[0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    across = np.abs(np.degrees(np.arcsin(np.clip(np.sum(normal * rays[1], axis=1), -1, 1))))
    flat = rays[1] - np.sum(rays[1] * normal, axis=1, keepdims=True) * normal
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    turned = np.sum(normal * np.cross(rays[0], flat), axis=1)  # sine of the parallax, negative where the rays part
    towards = np.cross(np.broadcast_to(base, flat.shape), flat)
    distance = np.where(turned > 1e-4, np.linalg.norm(towards, axis=1) / np.maximum(turned, 1e-4), np.inf)
    return Judged(distance, np.hypot(seam.right_deg, seam.up_deg), across, np.zeros(0), np.zeros(0))


def with_composed(judged: Judged, seam: Seam, composed: Seam | None) -> Judged:
    """The same with the matches of the composed panorama. seam: those of one distance."""
    if composed is None or not len(composed) or not len(seam):
        return judged
    there = directions(composed.azimuth_deg, composed.elevation_deg)
    nearness = there @ directions(seam.azimuth_deg, seam.elevation_deg).T
    nearest = nearness.argmax(axis=1)
    near = nearness[np.arange(len(nearest)), nearest] > math.cos(math.radians(1.0))
    apart = np.hypot(composed.right_deg, composed.up_deg)
    return dataclasses.replace(judged, composed_m=judged.distance_m[nearest[near]], composed_deg=apart[near])


def judge_frames(
    sequence: Sequence | RecordedDrive, rig: Rig, frames: Iterable[int], stamps: bool, width: int
) -> dict[tuple[str, str], Judged]:
    """The matches of several frames by seam. width: of the panorama in which they are found."""
    composer = Composer(rig, width)
    found: dict[tuple[str, str], list[Judged]] = {}
    for frame in frames:
        views = sequence.views(frame, stamps)
        motions = {name: view.motion for name, view in views.items()}
        composed = {(seam.first, seam.second): seam for seam in match_strips(composer.aligned(views)[0], width)}
        for seam in match_seams(composer, views):
            names = seam.first, seam.second
            judged = with_composed(judge(seam, rig, motions), seam, composed.get(names))
            found.setdefault(names, []).append(judged)
    return {
        seam: Judged(
            *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Judged))
        )
        for seam, parts in found.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="PandaSet's sequence 002, or a drive with bag and rig.yaml")
    parser.add_argument("--frames", type=int, nargs="+", default=[0, 38], help="of PandaSet: even, 0 to 38")
    parser.add_argument("--sets", type=int, default=12, help="of a drive (default: %(default)s)")
    parser.add_argument("--turning", type=int, help="of a drive: only so many sets, those in which it turns most")
    parser.add_argument("--columns", type=int, default=4096, help="of the panorama in which features are matched")
    parser.add_argument("--distance-m", type=float, help="in place of the rig file's")
    parser.add_argument("--beyond-m", type=float, default=15.0, help="nearer features are left out")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    sequence: Sequence | RecordedDrive
    if (args.folder / "bag").is_dir():
        sequence = RecordedDrive(args.folder, args.sets, args.turning)
        rig, frames = sequence.gathered.rig, sequence.frames
    else:
        rig, frames = read_rig(RIG).rig(), args.frames
        sequence = Sequence(args.folder, rig)
    if args.distance_m is not None:
        rig = dataclasses.replace(rig, distance_m=args.distance_m)
    by_stamps = {stamps: judge_frames(sequence, rig, frames, stamps, args.columns) for stamps in (True, False)}
    one_instant = "one instant: one distance | composed | without parallax"
    print(f"| seam | features | distance | one distance | composed | without parallax | {one_instant} |")
    print("|" + "---|" * 9)
    for seam, own in by_stamps[True].items():
        cells = [" – ".join(seam), *own.cells(args.beyond_m)]
        cells += by_stamps[False][seam].cells(args.beyond_m)[2:] if seam in by_stamps[False] else ["–", "–", "–"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
