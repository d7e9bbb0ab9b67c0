"""Pictures that are read, segmented and written piece by piece: the same labels, in the memory that is given."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from PIL import Image

from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import class_colors
from dinov3seg_jax.inference.views.blend import Shapes
from dinov3seg_jax.inference.views.tiles import plan_tiles
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.pictures.rasters import PngLabels, look_at
from dinov3seg_jax.text.class_lists import ClassList
from tests.data.rasters import save_raster

ENOUGH = huge.RUNTIME_BYTES + 2**28
RNG = np.random.default_rng(0)


class Stub:
    """Stands in for a model: a class is a shade, and the scores are smooth in the colour."""

    config = Config(inference=InferenceConfig(image_size=64))
    CELLS = 16
    calibration = None

    def __init__(self, fail_after=10**9):
        self.batches, self.fail_after = [], fail_after

    def plan(self, height, width):
        return plan_tiles(height, width, self.config.inference, 16)

    def shapes(self, classes):
        return Shapes.of(64, self.CELLS, classes, 48, self.config.inference.tile_scale)

    @property
    def tiles(self):
        return self

    def held_bytes(self):
        return 0

    def view_bytes(self):
        return 2**20

    def score(self, pixels, names):
        self.batches.append(len(pixels))
        if len(self.batches) > self.fail_after:
            raise KeyboardInterrupt
        grey = pixels.reshape(len(pixels), self.CELLS, 4, self.CELLS, 4, 3).mean((2, 4, 5)) / 255
        shades = (np.arange(len(names)) + 0.5) / len(names)
        return (1 - np.abs(grey[:, None] - shades[:, None, None])).astype(np.float32)


def names_of(count):
    return tuple(f"shade {index}" for index in range(count))


def scene(height, width):
    rows, columns = np.mgrid[:height, :width] / 61
    waves = [np.sin(rows + columns), np.cos(rows - 2 * columns), np.sin(rows) * np.cos(columns)]
    return np.rint(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


def save(path, height, width, **options):
    Image.fromarray(scene(height, width)).save(path, **options)
    return path


def labels_in(path):
    return np.asarray(Image.open(path)).astype(int)


def segment(folder, source, count=5, memory=ENOUGH, **options):
    return huge.segment_file(Stub(), source, names_of(count), folder, "a", memory, **options)


def test_what_is_written(tmp_path):
    source = save(tmp_path / "wide.png", 300, 2500)
    out = tmp_path / "out" / "deeper"
    summary = segment(out, source)
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "a_labels.png", "a_overlay.png"]
    assert json.loads((out / "a.json").read_text()) == summary
    assert (summary["file"], summary["labels"]) == ("wide.png", "a_labels.png")
    assert (summary["height"], summary["width"], summary["names"]) == (300, 2500, list(names_of(5)))
    labels = labels_in(out / "a_labels.png")
    counts = np.bincount(labels.ravel(), minlength=5)
    assert [row["pixels"] for row in summary["classes"]] == counts.tolist()
    assert sum(row["fraction"] for row in summary["classes"]) == pytest.approx(1)
    assert all(0.8 < row["mean_confidence"] <= 1 for row in summary["classes"] if row["pixels"])
    image = Image.open(out / "a_labels.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.reshape(image.getpalette()[:15], (5, 3)), class_colors(names_of(5)))
    overlay = np.asarray(Image.open(out / "a_overlay.png"))
    assert overlay.shape[0] >= round(300 * 2048 / 2500)
    tinted = overlay[: round(300 * 2048 / 2500), :2048].astype(int)
    shown = labels[np.arange(len(tinted)) * 2500 // 2048][:, np.arange(2048) * 2500 // 2048]
    near = np.abs(tinted - class_colors(names_of(5)).astype(int)[shown]).mean()
    assert near < np.abs(tinted - class_colors(names_of(5)).astype(int)[(shown + 1) % 5]).mean() / 1.3


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (1, 700), (700, 1), (131, 313)])
def test_any_size(tmp_path, size):
    summary = segment(tmp_path / "out", save(tmp_path / "a.png", *size))
    assert labels_in(tmp_path / "out" / "a_labels.png").shape == size
    assert (summary["height"], summary["width"]) == size


def test_a_narrow_memory_gives_the_same_labels(tmp_path):
    source = save(tmp_path / "a.png", 100, 500)
    stub, column = Stub(), 4 * 300 * 17
    little = huge.RUNTIME_BYTES + 4 * 500 * 100 + 2**20 + 10**6 + 20 * column
    for name, memory in (("wide", ENOUGH), ("narrow", little)):
        huge.segment_file(stub, source, names_of(300), tmp_path / name, "a", memory, batch_size=1)
        stub.batches.append("end")
    wide = stub.batches.index("end")
    assert len(stub.batches) - wide - 2 > 1.5 * wide, "bands share tiles"
    found = [labels_in(tmp_path / name / "a_labels.png") for name in ("wide", "narrow")]
    np.testing.assert_array_equal(*found)
    assert found[0].max() > 255, "16 bits"


def test_the_batch_suits_the_memory():
    shapes = Stub().shapes(300)
    source = "a.png"
    plans = [huge.plan_memory(Stub(), shapes, huge.RUNTIME_BYTES + room, 0, source) for room in (2**22, 2**24, 2**28)]
    assert plans[0].batch_size == 1
    assert plans[0].batch_size < plans[1].batch_size < plans[2].batch_size == huge.MOST_AT_ONCE
    assert plans[0].widest < plans[1].widest < plans[2].widest
    with pytest.raises(UserError, match=r"a.png with 300 names needs \d+ MiB more than the memory allows"):
        huge.plan_memory(Stub(), shapes, huge.RUNTIME_BYTES + 2**20, 0, source)


def test_labels_equal_those_of_the_picture_as_a_whole(tiled, tmp_path):
    image = RNG.integers(0, 256, (70, 110, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    names = tiled.check_names("red circle, grass, a dog")
    expected = tiled.segment_arrays([image], names)[0]
    summary = huge.segment_file(tiled, tmp_path / "a.png", names, tmp_path / "out", "a", 2 * ENOUGH, batch_size=1)
    np.testing.assert_array_equal(labels_in(tmp_path / "out" / "a_labels.png"), expected.labels)
    assert summary["classes"] == expected.summary()["classes"]


@pytest.mark.parametrize("after", [0, 3])
def test_nothing_is_left_of_a_run_that_was_stopped(tmp_path, after):
    source = save(tmp_path / "a.png", 200, 300)
    with pytest.raises(KeyboardInterrupt):
        huge.segment_file(Stub(after), source, names_of(5), tmp_path / "out", "a", ENOUGH, batch_size=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_picture_that_cannot_be_read(tmp_path):
    source = save(tmp_path / "a.png", 200, 300)
    source.write_bytes(source.read_bytes()[:3000])
    with pytest.raises(UserError, match="a.png is truncated or damaged"):
        segment(tmp_path / "out", source)
    with pytest.raises(UserError, match="absent.png does not exist"):
        huge.needs_streaming(look_at(tmp_path / "absent.png"), 10**9)


def test_a_folder_that_cannot_be_written(tmp_path):
    source = save(tmp_path / "a.png", 20, 30)
    with pytest.raises(UserError, match="a.png cannot be written"):
        segment(source, source)


def test_only_pictures_too_large_for_the_memory_are_streamed(tmp_path):
    source = save(tmp_path / "a.png", 100, 100)
    assert not huge.needs_streaming(look_at(source), 10_000 * huge.BYTES_PER_PIXEL)
    assert huge.needs_streaming(look_at(source), 10_000 * huge.BYTES_PER_PIXEL - 1)


def test_pictures_get_what_the_model_leaves():
    model = SimpleNamespace(held_bytes=lambda: 10**9, view_bytes=lambda: 10**7)
    assert huge.room_for_pictures(model, 2**31, 3) == 2**31 - huge.RUNTIME_BYTES - 10**9 - 3 * 10**7
    assert huge.room_for_pictures(model, 10**9, 3) == huge.LEAST_ROOM


@pytest.mark.parametrize("version", [0, 1])
def test_auto_memory_in_a_container(tmp_path, monkeypatch, version):
    """What files take of a container's memory is free as soon as it is needed."""
    _, limit, used = huge.CONTROL_GROUPS[version]
    (tmp_path / limit).write_text(f"{10 * 2**20}\n")
    (tmp_path / used).write_text(f"{9 * 2**20}\n")
    (tmp_path / "memory.stat").write_text(f"file 1\ninactive_file {7 * 2**20}\ntotal_inactive_file 1\n")
    monkeypatch.setattr(huge, "CONTROL_GROUPS", [(tmp_path, limit, used), (tmp_path / "none", limit, used)])
    monkeypatch.setattr(huge.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3)))
    assert huge.auto_memory() == 3 + 4 * 2**20
    (tmp_path / limit).write_text("max\n")
    assert huge.auto_memory() > 3 + 4 * 2**20


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1"])
def test_every_kind_of_pixel_is_read_as_by_the_whole_picture(tmp_path, mode):
    from dinov3seg_jax.data.images import read_image
    from dinov3seg_jax.pictures.rasters import open_raster

    image = Image.fromarray(scene(40, 50))
    if mode == "I;16":
        image = Image.fromarray(scene(40, 50)[..., 0].astype(np.uint16) * 200)
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(scene(40, 50)[..., 1]))
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    raster = open_raster(tmp_path / "a.png")
    np.testing.assert_array_equal(raster.read(5, 30, 7, 50), read_image(tmp_path / "a.png")[5:30, 7:50])


@pytest.mark.parametrize(("classes", "mode"), [(3, "P"), (256, "P"), (257, "I;16")])
def test_a_png_written_in_parts(tmp_path, classes, mode):
    labels = RNG.integers(0, classes, (37, 23))
    labels[10:20] = labels[9]
    file = PngLabels(tmp_path / "a.png", 37, 23, class_colors(names_of(classes)))
    for rows in (labels[:1], labels[1:20], labels[20:]):
        file.write(rows)
    file.close()
    image = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), labels)


def test_a_tiff_without_rasterio(tmp_path, monkeypatch):
    source = save(tmp_path / "a.tif", 20, 30)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UserError, match=r"pip install rasterio"):
        segment(tmp_path / "out", source)
    assert not huge.needs_streaming(look_at(source), 10**9)


@pytest.mark.parametrize("classes", [5, 300])
def test_a_geotiff_keeps_its_place_on_earth(tmp_path, classes):
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 399960, 0, -0.5, 5800020)}
    source = save_raster(tmp_path / "a.tif", np.moveaxis(scene(200, 300), -1, 0), **place)
    assert huge.needs_streaming(look_at(source), 10**12), "however small"
    summary = segment(tmp_path / "out", source, classes)
    assert summary["labels"] == "a_labels.tif"
    segment(tmp_path / "png", save(tmp_path / "a.png", 200, 300), classes)
    with rasterio.open(tmp_path / "out" / "a_labels.tif") as file:
        assert (file.crs, file.transform) == (rasterio.CRS.from_string(place["crs"]), place["transform"])
        assert file.block_shapes == [(256, 256)]
        np.testing.assert_array_equal(file.read(1), labels_in(tmp_path / "png" / "a_labels.png"))
        if classes == 5:
            assert file.colormap(1)[1] == (*class_colors(names_of(5))[1], 255)


def test_background_and_unknown_are_classes_of_their_own(tmp_path):
    """The same in a PNG, a GeoTIFF, the overlay's legend and the summary."""
    png = save(tmp_path / "a.png", 200, 300)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 399960, 0, -0.5, 5800020)}
    tif = save_raster(tmp_path / "b.tif", np.moveaxis(scene(200, 300), -1, 0), **place)
    segment(tmp_path / "plain", png)
    plain = labels_in(tmp_path / "plain" / "a_labels.png")
    names, others = names_of(5)[:3], names_of(5)[3:]
    asked = ClassList.of(names, background=others, min_confidence=0.95, unknown="none")
    assert asked.names == (*names, "background", "none")
    for source in (png, tif):
        out = tmp_path / source.stem
        summary = huge.segment_file(Stub(), source, asked, out, "a", ENOUGH)
        if source == png:
            labels = labels_in(out / "a_labels.png")
        else:
            with rasterio.open(out / "a_labels.tif") as file:
                labels = file.read(1).astype(int)
                assert file.colormap(1)[4] == (128, 128, 128, 255)
        assert 0.1 < (labels == 4).mean() < 0.9
        sure = labels != 4
        np.testing.assert_array_equal(labels[sure], np.minimum(plain, 3)[sure])
        assert summary["names"] == list(asked.names)
        assert summary["asked"]["threshold"] == {"min_confidence": 0.95, "unknown": "none"}
        assert [row["pixels"] for row in summary["classes"]] == np.bincount(labels.ravel(), minlength=5).tolist()
        confidences = [row["mean_confidence"] for row in summary["classes"]]
        assert confidences[4] < 0.95 < min(confidences[:4])


def test_what_rasterio_reads(tmp_path):
    from dinov3seg_jax.pictures.rasters import open_raster

    grey = scene(20, 30)[..., 0]
    kinds = {"8": grey[None], "16": grey[None].astype(np.uint16) * 257, "5": np.stack([grey] * 5)}
    for name, values in (kinds | {"float": grey[None].astype(np.float32)}).items():
        source = save_raster(tmp_path / f"{name}.tif", values)
        assert not huge.needs_streaming(look_at(source), 10**9), "no place on Earth"
        np.testing.assert_array_equal(open_raster(source).read(2, 9, 3, 30), np.stack([grey[2:9, 3:]] * 3, axis=-1))
    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(UserError, match="bad.tif is (truncated or damaged|no picture)"):
        open_raster(tmp_path / "bad.tif")


def test_a_palette_of_16_bits(tmp_path):
    from dinov3seg_jax.pictures.rasters import open_raster

    source = tmp_path / "a.tif"
    shape = {"count": 1, "height": 1, "width": 3, "dtype": "uint16"}
    with rasterio.open(source, "w", driver="GTiff", photometric="palette", **shape) as file:
        file.write(np.array([[[2, 300, 65535]]], np.uint16))
        file.write_colormap(1, {2: (1, 2, 3, 255), 300: (4, 5, 6, 255)})
    assert open_raster(source).read(0, 1, 0, 3).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]


def test_a_tiff_that_found_no_room_is_not_taken_for_whole(tmp_path):
    """The last of a file is written as it is closed, which rasterio does in silence, whatever becomes of it."""
    from resource import RLIMIT_FSIZE, getrlimit, setrlimit

    from dinov3seg_jax.pictures.rasters import GeoLabels, open_raster

    labels = RNG.integers(0, 5, (300, 400))
    picture = open_raster(save(tmp_path / "a.tif", *labels.shape))

    def write(path):
        file = GeoLabels(path, picture, class_colors(names_of(5)))
        file.write(labels)
        file.close()
        return path.stat().st_size

    size, before = write(tmp_path / "whole.tif"), getrlimit(RLIMIT_FSIZE)
    try:
        for room in (size - 10, size // 2):
            setrlimit(RLIMIT_FSIZE, (room, before[1]))
            with pytest.raises(OSError, match=r"cannot be read back|[Ff]ailed"):
                write(tmp_path / f"{room}.tif")
    finally:
        setrlimit(RLIMIT_FSIZE, before)


# Of a process itself; `resource.getrusage` would begin with that of the process it comes from.
PEAK_BYTES = """
from pathlib import Path
def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
READ_ALL = """
import sys
from pathlib import Path
from dinov3seg_jax.pictures.rasters import open_raster
raster = open_raster(Path(sys.argv[1]))
raster.read(0, 256, 0, raster.width)
before = peak()
for top in range(0, raster.height, 256):
    raster.read(top, min(top + 256, raster.height), 0, raster.width)
print((peak() - before) / raster.held_bytes)
"""


def test_a_tiff_is_read_in_the_memory_that_it_says(tmp_path):
    source, side = tmp_path / "a.tif", 10_000
    shape = {"count": 1, "height": side, "width": side, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    with rasterio.open(source, "w", driver="GTiff", sparse_ok=True, **shape):
        pass
    done = subprocess.run(
        [sys.executable, "-c", PEAK_BYTES + READ_ALL, str(source)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.2


PEAK = """
import sys
from types import SimpleNamespace
from tests.pictures.test_huge import Stub, names_of
from dinov3seg_jax.pictures import huge
source, memory = Path(sys.argv[1]), int(sys.argv[2])
huge.segment_file(Stub(), source, names_of(100), source.parent / source.stem, "a", memory)
print(peak())
"""


@pytest.mark.slow
def test_memory_stays_within_what_is_given(tmp_path):
    memory = huge.RUNTIME_BYTES + 16 * 2**20
    peaks = []
    for height, width in [(300, 2000), (900, 6000)]:
        source = tmp_path / f"{width}.png"
        Image.fromarray(np.tile(scene(300, 1000), (height // 300, width // 1000, 1))).save(source)
        with pytest.raises(UserError, match="needs"):
            huge.segment_file(Stub(), source, names_of(100), tmp_path, "a", huge.RUNTIME_BYTES)
        room = memory + 4 * height * width
        done = subprocess.run(
            [sys.executable, "-c", PEAK_BYTES + PEAK, str(source), str(room)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
        assert peaks[-1] < room
    grid = 4 * 100 * (900 // 4) * (6000 // 4)  # bytes of all scores
    print([round(peak / 2**20) for peak in peaks], "MiB, and all scores", round(grid / 2**20))
    assert peaks[1] - peaks[0] < 4 * (900 * 6000 - 300 * 2000) + grid / 4, "only the picture itself is larger"
