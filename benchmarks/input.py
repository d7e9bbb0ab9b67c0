"""Images a second of the training pipeline alone, by stage, and how many cores feed an accelerator.

    python -m benchmarks.input [--images 64] [--size 640 480] [--crop 384] [--classes_per_image 0] [--workers 0 1 2]
                               [--batch 4] [--step_seconds 0.1 0.2 0.4] [--json FILE]

JPEG pictures and 8-bit PNG masks of that size are made first, then read as a folder from disk (from its cache: a slow
disk or network comes on top) and augmented as the paper's training does. The stages run one after the other in one
thread and are timed by its own clock, so that other work on the machine does not count. The whole stream is then timed
by the wall, for each number of worker processes; 0 means threads of this process. A core's images a second follow from
the stages; an accelerator whose step takes so long with so large a batch needs batch / seconds of them.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.table import shown
from dinov3seg_jax.config import DataConfig
from dinov3seg_jax.data import transforms
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.data.folder import ImageFolder
from dinov3seg_jax.data.images import read_image
from dinov3seg_jax.data.masks import MaskReader
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.files import write_whole

CLASSES = 171
STAGES = (
    "read image",
    "read mask",
    "resize",
    "crop",
    "colour jitter",
    "flip and pad",
    "class sampling",
    "batch",
)


def main() -> None:
    """Make the pictures, time the stages and the stream, print both, and write the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height in pixels")
    parser.add_argument("--crop", type=int, default=384, help="crop and short side in pixels")
    parser.add_argument("--classes_per_image", type=int, default=0, help="0: all of them")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=(0, 1, 2), help="worker processes of the whole stream"
    )
    parser.add_argument("--batch", type=int, default=4, help="images a step; 4 as in the paper's protocol")
    parser.add_argument("--step_seconds", type=float, nargs="+", default=(0.1, 0.2, 0.4), help="of an accelerator")
    parser.add_argument("--repeats", type=int, default=3, help="times that the stages see every image")
    parser.add_argument("--json", type=Path, help="where the measurements go")
    options = parser.parse_args()
    data = DataConfig(
        crop_size=options.crop, short_side=(options.crop, options.crop), classes_per_image=options.classes_per_image
    )
    with tempfile.TemporaryDirectory() as folder:
        images, masks = Path(folder) / "images", Path(folder) / "masks"
        make_pictures(images, masks, options.images, *options.size)
        source = ImageFolder(images, masks, {index: index for index in range(CLASSES)}, (255,))
        file_bytes = sum(path.stat().st_size for path in images.iterdir()) / options.images
        stages = time_stages(source, data, options.batch, options.repeats)
        streams = [time_stream(source, data, options.batch, workers) for workers in options.workers]
    rate = 1 / sum(stages.values())
    feeding = [
        {"step_seconds": seconds, "images_per_second": options.batch / seconds, "cores": options.batch / seconds / rate}
        for seconds in options.step_seconds
    ]
    print(f"{options.images} pictures of {options.size[0]} x {options.size[1]}, {file_bytes / 1000:.0f} kB each")
    for stage, seconds in stages.items():
        print(f"{stage:16}{1e3 * seconds:8.2f} ms {1 / max(seconds, 1e-9):10.0f} images/s of a core")
    print(f"{'all':16}{1e3 / rate:8.2f} ms {rate:10.1f} images/s of a core")
    for stream in streams:
        where = f"{stream['workers']} worker processes" if stream["workers"] else "threads"
        print(f"whole stream, {where}: {shown('rate', stream['images_per_second'])} images/s")
    for need in feeding:
        print(f"steps of {need['step_seconds']} s with {options.batch} images need {need['cores']:.2f} cores")
    if options.json:
        measured = {
            "size": options.size,
            "crop": options.crop,
            "batch": options.batch,
            "machine_cores": os.cpu_count(),
            "jpeg_bytes": file_bytes,
            "stage_seconds": stages,
            "images_per_second_per_core": rate,
            "streams": streams,
            "feeding": feeding,
        }
        write_whole(options.json, json.dumps(measured, indent=1).encode())


def make_pictures(images: Path, masks: Path, count: int, width: int, height: int) -> None:
    """Pictures with edges and texture, about as costly to decode as photographs, and masks of a dozen regions."""
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    size = (width, height)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        texture = Image.fromarray(rng.integers(0, 256, (height // 2, width // 2, 3), np.uint8)).resize(size)
        Image.blend(coarse, texture, 0.2).save(images / f"{number:06}.jpg", quality=90)
        regions = Image.fromarray(rng.choice([*range(CLASSES), 255], (3, 4)).astype(np.uint8))
        regions.resize(size, Image.Resampling.NEAREST).rotate(10, fillcolor=255).save(masks / f"{number:06}.png")


def time_stages(source: ImageFolder, data: DataConfig, batch_size: int, repeats: int) -> dict[str, float]:
    """Seconds of this thread that an image costs, by stage; what `pipeline.Augment` does, step by step."""
    spent = dict.fromkeys(STAGES, 0.0)
    reader = MaskReader({index: index for index in range(CLASSES)}, (255,))
    rng = np.random.default_rng(0)
    batch: list[Any] = []

    def timed(stage: str, run: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time()
        result = run(*arguments)
        spent[stage] += time.thread_time() - started
        return result

    def read_mask(file: Path) -> Any:
        return reader.label(reader.open(file, str(file)))

    def flip_and_pad(image: Any, label: Any) -> Any:
        return transforms.pad(*transforms.random_flip(image, label, rng), data.crop_size)

    for index in (index for _ in range(repeats) for index in range(len(source))):
        _, image_file, mask_file = source.files(index)
        image = timed("read image", read_image, image_file)
        label = timed("read mask", read_mask, mask_file)
        image, label = timed("resize", transforms.resize_short_side, image, label, data.short_side[0])
        image, label = timed("crop", transforms.random_crop, image, label, data.crop_size, rng, data.crop_tries)
        image = timed("colour jitter", transforms.color_jitter, image, rng)
        image, label = timed("flip and pad", flip_and_pad, image, label)
        sampled = timed("class sampling", transforms.sample_classes, label, data.classes_per_image, CLASSES, rng)
        batch.append((image, *sampled))
        if len(batch) == batch_size:
            timed("batch", lambda: [np.stack(parts) for parts in zip(*batch, strict=True)])
            batch.clear()
    return {stage: seconds / (repeats * len(source)) for stage, seconds in spent.items()}


def time_stream(source: ImageFolder, data: DataConfig, batch_size: int, workers: int) -> dict[str, Any]:
    """Images a second of the stream that training reads, by the wall, once its workers have started."""
    dataset = Dataset(source, tuple(map(str, range(CLASSES))), None)
    options = DataConfig(
        crop_size=data.crop_size,
        short_side=data.short_side,
        classes_per_image=data.classes_per_image,
        workers=workers,
    )
    stream = train_iterator(dataset, options, batch_size, seed=0)
    for _ in range(4 + 4 * workers):  # what was prepared ahead, while workers started
        next(stream)
    batches = max(8, 2 * len(source) // batch_size)
    used, started = time.process_time(), time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds, own = time.perf_counter() - started, time.process_time() - used
    stream.close()
    return {"workers": workers, "images_per_second": batches * batch_size / seconds, "cpu_share_here": own / seconds}


if __name__ == "__main__":
    main()
