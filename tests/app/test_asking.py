"""What is asked on the page is what `segment` is asked, within limits."""

import numpy as np
import pytest

from dinov3seg_jax.app import asking
from dinov3seg_jax.app.asking import Asker, Typed, has_place
from dinov3seg_jax.app.limits import Limits
from dinov3seg_jax.app.models import Models
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.run import write_config
from tests.tiny import MODEL

NAMES = "red ball|ball, grass, water"


@pytest.fixture
def asker(tmp_path, model):
    write_config(tmp_path / "tiny", Config(model=MODEL))
    models = Models({"tiny": tmp_path / "tiny"})
    models._loaded["tiny"] = model
    return Asker(models, Limits(names=5))


def answers(work):
    said = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as finished:
            return said, finished.value


def test_an_answer_and_what_is_said_meanwhile(asker, model, picture):
    said, ((asked, result),) = answers(asker.ask(picture, "my.png", [Typed(NAMES, "sand", "best", 0.1)], "tiny"))
    assert said == ["reading my.png", "segmenting 60 x 40 pixels, 3 classes"]
    expected = model.segment(picture, NAMES, background="sand", synonyms="best", min_confidence=0.1)
    assert asked.names == result.names == ("red ball", "grass", "water", "background", "unknown")
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.confidence, expected.confidence)
    np.testing.assert_array_equal(result.colors, expected.colors)


def test_a_class_of_two_lists_has_one_colour(asker, picture):
    lists = [Typed("grass, water"), Typed('[{"name": "sand", "color": "#010203"}, "water", "grass"]')]
    _, ((_, first), (_, second)) = answers(asker.ask(picture, "a.png", lists, "tiny"))
    assert second.names == ("sand", "water", "grass")
    assert second.colors.tolist() == [[1, 2, 3], first.colors[1].tolist(), first.colors[0].tolist()]


def test_a_picture_for_which_memory_is_short_goes_tile_by_tile(asker, model, picture, monkeypatch):
    monkeypatch.setattr("dinov3seg_jax.pictures.huge.auto_memory", lambda: 0)
    monkeypatch.setattr("dinov3seg_jax.pictures.huge.LEAST_ROOM", 0)
    _, ((_, result),) = answers(asker.ask(picture, "a.png", [Typed(NAMES)], "tiny"))
    (expected,) = model.segment_in_tiles([result.image], NAMES)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert (result.confidence != model.segment(picture, NAMES).confidence).any()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (Typed("a, b, c", "d, e, f"), "the list has 6 names, more than 5"),
        (Typed("a|b|c|d|e|f"), "the list has 6 names, more than 5"),
        (Typed("dog", "@names.txt"), "'@names.txt' names a file"),
        (Typed("dog", synonyms="worst"), "synonyms is 'worst'"),
        (Typed("dog", min_confidence=2), "min_confidence is 2"),
        (Typed("dog, dog"), "the class name 'dog' appears twice"),
        (Typed("/etc/hostname.txt"), "looks like a file"),
    ],
)
def test_what_cannot_be_asked(asker, typed, message):
    with pytest.raises(UserError, match=message):
        asker.understand(typed, "tiny")


def test_a_path_is_a_name_and_is_not_read(asker):
    (one,) = asker.understand(Typed("/etc/hostname")).classes
    assert one.names == ("/etc/hostname",)


def test_scores_that_would_fill_the_memory(asker, model, picture, monkeypatch):
    asked = asker.understand(Typed(NAMES))
    rgb = asker.read(picture, "a.png").rgb
    np.testing.assert_array_equal(asker.scores(rgb, asked, "tiny"), model.segment(picture, NAMES, scores=True).scores)
    monkeypatch.setattr(asking, "MOST_SCORE_BYTES", 4 * 3 * 60 * 40 - 1)
    with pytest.raises(
        UserError, match=r"the scores of 3 names in 60 x 40 pixels take 0.0 GB, more than 0; name fewer"
    ):
        asker.scores(rgb, asked, "tiny")


def test_a_damaged_picture_is_called_by_its_own_name(asker, picture, tmp_path):
    damaged = tmp_path / "kept_here.png"
    damaged.write_bytes(picture.read_bytes()[:300])
    with pytest.raises(UserError, match=r"^mine\.png is truncated or damaged"):
        asker.read(damaged, "mine.png")


def test_which_files_have_a_place_on_earth(picture, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for name, place in (("with", {"crs": "EPSG:32633"}), ("without", {})):
        transform = rasterio.transform.from_origin(4e5, 5e6, 10, 10) if place else None
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", "GTiff", 3, 2, 3, dtype="uint8", transform=transform, **place
        ) as file:
            file.write(np.full((3, 2, 3), 90, np.uint8))
    assert has_place(tmp_path / "with.tif")
    assert not has_place(tmp_path / "without.tif")
    assert not has_place(picture)
