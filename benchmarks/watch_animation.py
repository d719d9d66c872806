"""Makes docs/pictures/watch.webp: the start of the demo's drive as `unifygeo watch` plays it, in a headless Chromium.

make demo
python benchmarks/watch_animation.py out/demo docs/pictures/watch.webp
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "test"))

from browser import Browser  # noqa: E402

from unifygeo_ros.aerial.index import open_index  # noqa: E402
from unifygeo_ros.watch.replay import ReplaySource  # noqa: E402
from unifygeo_ros.watch.server import WatchServer  # noqa: E402

SIZE = (684, 432)
STEPS = [(number, 500) for number in range(0, 6)] + [(number, 240) for number in range(6, 42, 2)]
"""Image of the drive, and milliseconds that it stays."""


def main(demo: Path, picture: Path) -> None:
    """demo: output folder of `make demo`."""
    source = ReplaySource(demo, open_index(demo / "index"), ROOT / "demo/drive/bag", None)
    server = WatchServer(source, "127.0.0.1", 0)
    server.start()
    shots = []
    with tempfile.TemporaryDirectory() as folder:
        page = Browser(Path(folder) / "profile", 1140, 720)
        page.open(server.url)
        page.wait_for("past.frames.length > 0")
        page.evaluate("document.querySelector('#tools').hidden = true; setFollow(true); map.scale = 3.2")
        for number, _ in STEPS:
            page.evaluate(f"select({number}, true)")
            page.wait_for(f"shown === past.frames[{number}] && !map.dirty")
            page.wait_for("[...map.tiles.values()].every(tile => !tile || tile.complete)")
            page.wait_for("document.querySelector('#camera').complete")
            page.screenshot(Path(folder) / "shot.png")
            content = io.BytesIO((Path(folder) / "shot.png").read_bytes())
            shots.append(Image.open(content).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS))
        page.close()
    server.stop()
    times = [milliseconds for _, milliseconds in STEPS]
    times[-1] = 2000
    shots[0].save(picture, save_all=True, append_images=shots[1:], duration=times, loop=0, quality=40, method=6)
    print(f"{picture}: {len(shots)} pictures, {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
