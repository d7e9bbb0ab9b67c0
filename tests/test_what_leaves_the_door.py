"""Whatever the public functions are given, they answer it or raise `UserError`: a census over random inputs."""

import collections
import io
import pathlib
import random

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dinov3seg_jax
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation

DTYPES = (
    "uint8",
    "int8",
    "uint16",
    "int32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "bool",
    "object",
    "U3",
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "PA", "La")
TEXTS = (
    "",
    " ",
    "grass",
    "grass, wood",
    "grass;wood|",
    "\0",
    "@",
    "@/",
    "~",
    "~nobody/x",
    "a" * 5000,
    "[",
    "{}",
    "\ud800",
)
TEXTS += ("..", "/dev/null", "1", "grass, Grass", "<|endoftext|>", "\u200b", "[[1]]", "names.csv", "*.png", "-", "NaN")


def array(draw):
    """Of any dtype and shape, also of no pixels."""
    shape = [draw.choice((0, 1, 2, 3, 4, 5, 17)) for _ in range(draw.randrange(5))]
    if draw.random() < 0.4:
        shape = [draw.choice((1, 8, 40)), draw.choice((1, 9, 33)), draw.choice((1, 2, 3, 4, 5))]
    values = np.random.default_rng(draw.randrange(2**32)).random(shape) * draw.choice((1, 255, 70_000, np.nan, -1e9))
    with np.errstate(invalid="ignore"):
        made = np.asarray(values).astype(draw.choice(DTYPES))
    return draw.choice((made, made.T, made[::-1] if made.ndim else made))


def picture(draw):
    """A PIL image of any mode, or the bytes of a file, whole or not."""
    image = Image.new(draw.choice(MODES), (draw.choice((1, 7, 50)), draw.choice((1, 30))))
    if draw.random() < 0.5:
        return image
    content = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(content, draw.choice(("PNG", "JPEG", "TIFF", "GIF")))
    cut = content.getvalue()[: draw.choice((None, 0, 10, -20))]
    return draw.choice((cut, bytearray(cut), memoryview(cut), io.BytesIO(cut), io.StringIO("text")))


def anything(draw, depth=0):
    """A value that somebody may pass by mistake."""
    kinds = [
        lambda: draw.choice((None, True, 0, -1, 1, 2, 10**30, 0.5, float("nan"), float("inf"), 1j)),
        lambda: draw.choice(TEXTS),
        lambda: draw.choice(
            (b"", b"grass", bytearray(b"x"), object(), len, Exception, range(3), iter(()), np.str_("sky"))
        ),
        lambda: pathlib.Path(draw.choice(TEXTS)),
        lambda: array(draw),
        lambda: picture(draw),
        lambda: jnp.asarray(np.zeros(draw.choice(((3, 4, 3), (2,), ())), np.uint8)),
    ]
    if depth < 2:
        several = lambda: [anything(draw, depth + 1) for _ in range(draw.randrange(4))]  # noqa: E731
        kinds += [several, lambda: tuple(several()), lambda: (value for value in several())]
        kinds += [lambda: {draw.choice((0, 1, "a", None, 2.5)): anything(draw, depth + 1) for _ in range(3)}]
        kinds += [lambda: set(draw.sample(TEXTS, 2))]
    return draw.choice(kinds)()


@pytest.mark.parametrize("seed", range(4))
def test_only_user_errors_leave(seed, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    draw, seen = random.Random(seed), collections.Counter()
    fine = np.zeros((20, 24, 3), np.uint8)
    result = Segmentation(np.zeros((2, 3), int), np.ones((2, 3)), ("grass",), np.zeros((2, 3, 3), np.uint8))
    calls = {
        "load": lambda: dinov3seg_jax.load(anything(draw)),
        "load with overrides": lambda: dinov3seg_jax.load(tmp_path, anything(draw)),
        "segment": lambda: model.segment(anything(draw), ["grass", "wood"]),
        "segment with names": lambda: model.segment(fine, anything(draw)),
        "segment_arrays": lambda: model.segment_arrays(anything(draw), "grass"),
        "segment_arrays with a batch size": lambda: model.segment_arrays([fine], "grass", anything(draw)),
        "segment_many": lambda: model.segment_many([anything(draw), fine], "grass"),
        "save": lambda: result.save(anything(draw)),
        "save with a stem": lambda: result.save(tmp_path / "out", anything(draw)),
        "check_names": lambda: model.check_names(anything(draw)),
    }
    wrong = []
    for _ in range(500):
        name, call = draw.choice(list(calls.items()))
        state = draw.getstate()
        try:
            call()
            seen["answered"] += 1
        except UserError as error:
            seen["UserError"] += 1
            if "\n" in str(error):
                wrong.append((name, "more than one line", str(error)))
        except Exception as error:
            draw.setstate(state)
            wrong.append((name, repr(anything(draw))[:100], repr(error)[:200]))
    assert not wrong, "\n".join(map(str, wrong))
    assert seen["UserError"] > 200
    assert seen["answered"] > 20
