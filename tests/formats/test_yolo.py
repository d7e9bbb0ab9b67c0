"""Ultralytics' text."""

import numpy as np
import pytest
import yaml

from dinov3seg_jax.formats import yolo
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import write_formats
from tests.formats.maps import MAPS, answer, painted

pytest.importorskip("shapely")


@pytest.mark.parametrize("name", [name for name in MAPS if name != "checkerboard"])
def test_the_lines_are_the_label_map(tmp_path, name):
    labels = MAPS[name]
    given = answer(labels)
    text, names = write_formats(given, asked("yolo"), tmp_path, "a")
    assert (text.name, names.name) == ("a.txt", "a_data.yaml")
    assert yaml.safe_load(names.read_text(encoding="utf-8"))["names"] == dict(enumerate(given.names))
    found = np.full(labels.shape, -1)
    for line in text.read_text().splitlines():
        index, *numbers = line.split()
        corners = np.array(numbers, float).reshape(-1, 2)
        assert corners.min() >= 0
        assert corners.max() <= 1
        mask = painted(labels.shape, np.round(corners * labels.shape[::-1]))
        assert (found[mask] == -1).all()
        found[mask] = int(index)
    np.testing.assert_array_equal(found, labels)
    assert yolo.is_ours(text)


@pytest.mark.parametrize("text", ["a dog on grass", "1 2 3 4 5 6 7", "0 0.5 0.5 0.1 0.1", "1"])
def test_another_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert not yolo.is_ours(tmp_path / "a.txt")


def test_a_simplified_circle(tmp_path):
    """Most of its pixels, with few corners."""
    mask = np.hypot(*(np.indices((100, 100)) - 49.5)) < 40
    lines = list(yolo.lines(answer(mask.astype(int)), asked("yolo", simplify=2)))
    (circle,) = (line.split() for line in lines if line.startswith("1"))
    corners = np.array(circle[1:], float).reshape(-1, 2) * 100
    assert len(corners) < 40
    x, y = corners.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(mask.sum(), rel=0.05)
