"""A video against a folder of its frames: frames a second and memory of `dinov3seg predict`.

    python -m benchmarks.video [--checkpoint runs/quickstart] [--frames 1000] [--batch 8]

The video is a view that wanders over `examples/scene.png`. Each command runs twice, in a process of its own; the first
time compiles programs and is not counted. Memory is the largest that the process held in each quarter of its time: for
a video it should not grow after the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from dinov3seg_jax.data.clips import import_av, open_clip

SCENE = Path(__file__).parent.parent / "examples" / "scene.png"
CLASSES = "striped green ball, striped green cross, blue ring, red box, grass, wood, sand"
HEIGHT, WIDTH, RATE = 120, 160, 25
SECONDS_BETWEEN_LOOKS = 0.2


def main() -> None:
    """Time both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/quickstart")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video, pictures = Path(folder, "clip.mp4"), Path(folder, "frames")
        write_video(video, options.frames)
        pictures.mkdir()
        with open_clip(video) as clip:
            for frame in clip:
                Image.fromarray(frame.rgb()).save(pictures / f"{frame.number:07}.png")
        report = {"frames": options.frames, "batch": options.batch}
        for name, source in (("video", video), ("folder", pictures)):
            for turn in ("warm", "timed"):
                seconds, megabytes = run(source, Path(folder, f"{name}_{turn}"), options)
            report |= {f"{name}_frames_per_second": options.frames / seconds, f"{name}_megabytes": megabytes}
    print(json.dumps(report))


def write_video(path: Path, frames: int) -> None:
    """A view that wanders over the scene."""
    av = import_av()
    scene = np.asarray(Image.open(SCENE).convert("RGB"))
    room = scene.shape[0] - HEIGHT, scene.shape[1] - WIDTH
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            top = round(room[0] * (1 + np.sin(number / 40)) / 2)
            left = round(room[1] * (1 + np.cos(number / 55)) / 2)
            view = np.ascontiguousarray(scene[top : top + HEIGHT, left : left + WIDTH])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        out.mux(stream.encode(None))


def run(source: Path, out: Path, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Seconds, and megabytes in each quarter of the time."""
    command = [sys.executable, "-m", "dinov3seg_jax", "predict", "--checkpoint", options.checkpoint]
    asked = ["--image", str(source), "--classes", CLASSES, "--out", str(out), "--batch", str(options.batch)]
    started = time.perf_counter()
    process = subprocess.Popen(command + asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    held = []
    while process.poll() is None:
        held.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"the command failed: {' '.join(command + asked)}")
    return seconds, [round(float(part.max())) for part in np.array_split(held, 4)]


if __name__ == "__main__":
    main()
