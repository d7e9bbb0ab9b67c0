"""Polygons: exact, whole across strips, and with one border for both neighbours."""

import subprocess
import sys

import numpy as np
import pytest
import shapely

from dinov3seg_jax.formats.outlines import all_outlines, outlines
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.rings import one_ring
from tests.formats.maps import MAPS, answer, blobs, painted
from tests.formats.test_regions import reference

PLAIN = Outputs()


def in_strips(given, outputs, rows):
    parts = list(outlines(given, outputs, "a test", "formats", strip=rows * given.width))
    first, *others = parts
    for more in others:
        first = first.and_these(more)
    return first


def inside(shape, size):
    """Pixels whose middle lies in a polygon."""
    rows, columns = np.indices(size)
    return shapely.contains_xy(shape, columns + 0.5, rows + 0.5)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "checkerboard"])
def test_polygons_are_the_regions(name, rows):
    labels = MAPS[name]
    found = in_strips(answer(labels), PLAIN, rows)
    expected = {mask.tobytes(): index for index, mask in reference(labels) if index >= 0}
    assert len(found.shapes) == len(expected)
    for shape, index, area, mean in zip(*found[:3], found.confidences(), strict=True):
        assert shape.is_valid
        assert shape.geom_type == "Polygon"
        mask = inside(shape, labels.shape)
        assert expected.pop(mask.tobytes()) == index
        assert shape.area == area == mask.sum()
        assert mean == pytest.approx(answer(labels).confidence[mask].mean(), rel=1e-6)
    assert not expected


def test_a_checkerboard():
    found = all_outlines(answer(MAPS["checkerboard"]), PLAIN, "a test", "formats")
    assert len(found.shapes) == 64 * 64
    assert (shapely.area(found.shapes) == 1).all()
    assert shapely.union_all(found.shapes).area == 64 * 64


def test_cuts_leave_no_corners():
    """The same corners as in one piece, but for where a ring begins."""
    labels = blobs(60, 80, 4, seed=3)
    whole, cut = (in_strips(answer(labels), PLAIN, rows) for rows in (60, 11))
    by_area = sorted(whole.shapes, key=lambda shape: shape.wkt)
    assert len(by_area) == len(cut.shapes)
    normal = {shapely.normalize(shape).wkt for shape in whole.shapes}
    beginnings = sum(shapely.normalize(shape).wkt not in normal for shape in cut.shapes)
    extra = shapely.get_num_coordinates(cut.shapes).sum() - shapely.get_num_coordinates(whole.shapes).sum()
    assert 0 <= extra <= beginnings


@pytest.mark.parametrize("rows", [13, 1000])
@pytest.mark.parametrize("tolerance", [1, 8])
def test_simplified_neighbours_share_their_border(rows, tolerance):
    """No gap, no overlap, fewer corners; also where there are no data."""
    labels = MAPS["blobs"].copy()
    labels[10:30, 20:45] = -1
    rounded = np.hypot(*(np.indices(labels.shape) - np.array([30, 60])[:, None, None])) < 15
    labels[rounded] = 3
    found = in_strips(answer(labels), Outputs(simplify=tolerance), rows)
    exact = in_strips(answer(labels), PLAIN, rows)
    assert len(found.shapes) == len(exact.shapes)
    assert shapely.is_valid(found.shapes).all()
    assert shapely.get_num_coordinates(found.shapes).sum() < shapely.get_num_coordinates(exact.shapes).sum()
    union = shapely.union_all(found.shapes)
    assert shapely.area(found.shapes).sum() == pytest.approx(union.area, abs=1e-6)  # no overlap
    tree = shapely.STRtree(found.shapes)
    first, second = tree.query(found.shapes, predicate="overlaps")
    assert shapely.area(shapely.intersection(found.shapes[first], found.shapes[second])).sum() < 1e-6
    frame = shapely.box(0, 0, 80, 60)
    assert union.within(frame.buffer(1e-9))
    gaps = shapely.get_parts(shapely.difference(frame, union))
    assert shapely.area(gaps).max() > 200  # where there are no data
    assert sorted(shapely.area(gaps))[:-1] == pytest.approx([0] * (len(gaps) - 1), abs=1e-6)
    moved = [shapely.symmetric_difference(*pair).area for pair in zip(found.shapes, exact.shapes, strict=True)]
    assert 0 < sum(moved) < labels.size * 0.1 * tolerance


def test_simplified_staircases_become_straight():
    rows, columns = np.indices((40, 40))
    found = all_outlines(answer((rows > columns).astype(int)), Outputs(simplify=1.5), "a test", "formats")
    assert shapely.get_num_coordinates(found.shapes).max() <= 8
    assert shapely.area(found.shapes).sum() == 1600


def test_small_regions_are_left_out():
    labels = np.zeros((10, 10), int)
    labels[0, 0], labels[5:7, 5:7] = 1, 1
    given = answer(labels)
    for rows in (1, 10):
        found = in_strips(given, Outputs(min_area={given.names[1]: 2}), rows)
        assert sorted(found.areas.tolist()) == [4, 95]
    found = in_strips(given, Outputs(min_area={"": 5, given.names[1]: 1}), 10)
    assert sorted(found.areas.tolist()) == [1, 4, 95]


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("checkerboard", "300 classes")])
def test_one_ring_holds_the_same_pixels(name):
    for shape in all_outlines(answer(MAPS[name]), PLAIN, "a test", "formats").shapes:
        mask = painted(MAPS[name].shape, one_ring(shape))
        np.testing.assert_array_equal(mask, inside(shape, mask.shape))


def test_cuts_cross_nothing():
    """Of holes of any shapes, side by side and one behind the other; the ring touches itself, but crosses nowhere."""
    labels = np.zeros((60, 60), int)
    for top, left in np.random.default_rng(5).integers(2, 50, (40, 2)):
        labels[top : top + 5, left : left + 7] = 1
    shape = max(all_outlines(answer(labels), PLAIN, "a test", "formats").shapes, key=lambda shape: len(shape.interiors))
    assert len(shape.interiors) > 5
    ring = one_ring(shape)
    closed = np.concatenate([ring, ring[:1]])
    lines = shapely.linestrings(np.stack([closed[:-1], closed[1:]], axis=1))
    outside = shapely.difference(lines, shape)
    assert shapely.length(outside).max() == 0
    assert abs(shapely.Polygon(ring).area) == shape.area


CHILD = """
import sys, threading, time, psutil
from pathlib import Path
import numpy as np
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import write_formats

folder, height = Path(sys.argv[1]), int(sys.argv[2])
labels = np.memmap(folder / "labels", np.int8, "w+", shape=(height, 4000))
confidence = np.memmap(folder / "confidence", np.float32, "w+", shape=(height, 4000))
for top in range(0, height, 40):
    labels[top : top + 40] = np.repeat(np.random.default_rng(top).integers(0, 4, 100), 40)
answer = Answer("a.tif", labels, confidence, tuple("abcd"), np.zeros((4, 3), np.uint8))
process, most = psutil.Process(), [0]

def watch():
    while True:
        taken = process.memory_info()
        most[0] = max(most[0], taken.rss - taken.shared)  # without the maps, which lie on disk
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
write_formats(answer, asked("gpkg,csv", simplify=2), folder, "a")
print(most[0])
"""


@pytest.mark.slow
def test_memory_knows_nothing_of_the_height(tmp_path):
    """Four times as high, with four times as many regions."""
    pytest.importorskip("pyogrio")
    low, high = (
        int(subprocess.run([sys.executable, "-c", CHILD, tmp_path, height], check=True, capture_output=True).stdout)
        for height in ("2000", "8000")
    )
    assert high < 1.3 * low
