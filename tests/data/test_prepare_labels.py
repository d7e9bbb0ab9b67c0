"""The rules that labels go by: run lengths, shrinking, and which values may occur, against what others computed."""

import numpy as np
import pytest

from dinov3seg_jax.data.label_maps import original_ids, stray_value, to_classes
from dinov3seg_jax.data.prepare.decoding import shrink
from dinov3seg_jax.data.run_lengths import decode_runs

# Of the mask in `_striped_ellipse`, by pycocotools 2.0.11.
RUNS = (
    r"Q83X12ELXO6e0K[O6d0J\O6c0K]O6a0K_O6`0J@6d0500JBB>>BB>=CC==CC==CC=?0AE;;EE;;EE;;EF::FF::FF::FF69JL64JL55KL44LL44LL"
    r"44LL44LL4OL55KK55KK55KK55KK55KK55KK55FK:0B44L:0B44L:0B44L:0B44L:0B44L:0B44L:0B9>GG99GG99GF::FF::FF::FF::FF69JL73IL"
    r"84HL84HL93GL:4FL:4FL;NE6<JD6=IC6>JB6?IA6`0J@6a0I_O6e04100O2M3NXb0"
)

# Of the picture in `_picture` shrunk to 8 x 5 by OpenCV 5.0's INTER_LINEAR: its first channel.
OPENCV = [
    [50, 161, 74, 147, 123, 52, 157, 101],
    [163, 146, 136, 128, 105, 162, 74, 143],
    [100, 108, 149, 46, 198, 95, 136, 144],
    [100, 170, 82, 139, 116, 108, 165, 109],
    [142, 87, 192, 120, 97, 170, 82, 193],
]
OPENCV_NEAREST = ([0, 1, 2, 4, 5], [0, 1, 2, 4, 5, 6, 8, 9])  # the rows and columns that INTER_NEAREST keeps


def _striped_ellipse() -> np.ndarray:
    y, x = np.mgrid[:40, :90]
    return ((y - 20) ** 2 / 250 + (x - 40) ** 2 / 1200 < 1) & ((x // 7 + y // 5) % 4 > 0)


def _picture() -> np.ndarray:
    return (np.arange(7 * 11 * 3).reshape(7, 11, 3) * 37 % 256).astype(np.uint8)


def test_runs_as_text_are_pycocotools():
    np.testing.assert_array_equal(decode_runs(RUNS, 40, 90), _striped_ellipse())


def test_runs_go_down_the_columns():
    np.testing.assert_array_equal(decode_runs([1, 2, 3], 2, 3), [[False, True, False], [True, False, False]])


@pytest.mark.parametrize("runs", [[], [5], [3, 4], [8, -2], "", RUNS[:-3]], ids=str)
def test_runs_fill_the_picture(runs):
    with pytest.raises(ValueError, match="does not fill its 3 x 2 pixels"):
        decode_runs(runs, 2, 3)


def test_shrinking_is_opencvs():
    label = np.arange(77).reshape(7, 11)
    image, shrunk = shrink(_picture(), label, 5)
    np.testing.assert_allclose(image[..., 0].astype(int), OPENCV, atol=1)
    np.testing.assert_array_equal(shrunk, label[np.ix_(*OPENCV_NEAREST)])


def test_a_small_picture_is_not_shrunk():
    image, label = _picture(), np.arange(77).reshape(7, 11)
    assert shrink(image, label, 7) == (image, label)


@pytest.mark.parametrize(
    ("label_map", "value"),
    [("ade_150", 151), ("voc_20", 21), ("voc_20b", 254), ("pc_459", 0), ("pc_459", 461), ("coco_stuff_171", 2**16)],
)
def test_values_of_no_data_set_are_found(label_map, value):
    allowed = original_ids(label_map)[0]
    assert stray_value(np.array([[allowed, value]]), label_map) == value
    assert stray_value(np.array([[allowed, -1]]), label_map) == -1


@pytest.mark.parametrize(
    ("label_map", "values"),
    [
        ("ade_150", [0]),
        ("voc_20", [0, 255]),
        ("voc_20b", [255]),
        ("pc_459", [460]),
        ("pc_59", [0, 1, 459]),
        ("ade_847", [0, 1]),
        ("coco_stuff_171", [11, 182, 255]),
    ],
)
def test_values_without_a_class_are_ignored(label_map, values):
    assert stray_value(np.array([values]), label_map) is None
    assert (to_classes(np.array([values]), label_map) == -1).all()
    assert stray_value(np.array([original_ids(label_map)]), label_map) is None
