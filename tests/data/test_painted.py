"""Painted scenes: what is held out, that they repeat, and that the masks are exact."""

import pickle
from itertools import combinations

import numpy as np
import pytest

from dinov3seg_jax.data import painted
from dinov3seg_jax.data.painted import CLASS_NAMES, SEEN_CLASSES, UNSEEN_CLASSES, PaintedScenes
from dinov3seg_jax.data.painted_clutter import camouflaged
from dinov3seg_jax.data.painted_textures import STUFF

SIZE = 96


def _words(thing: painted.Thing) -> tuple[str, str, str]:
    return thing.texture, thing.colour, thing.shape


def test_classes_are_six_stuff_and_forty_things_a_quarter_of_them_unseen():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(STUFF) + 40
    assert len(UNSEEN_CLASSES) == 10
    assert CLASS_NAMES[: len(SEEN_CLASSES)] == SEEN_CLASSES
    assert frozenset(CLASS_NAMES[len(SEEN_CLASSES) :]) == UNSEEN_CLASSES
    assert {"red ball", "striped blue ring", "striped yellow box"} <= set(CLASS_NAMES)


@pytest.mark.parametrize("positions", [*combinations(range(3), 1), *combinations(range(3), 2)])
def test_every_word_and_pair_of_words_of_an_unseen_class_is_seen_in_others(positions):
    def parts(things):
        return {tuple(_words(thing)[position] for position in positions) for thing in things}

    assert parts(painted.UNSEEN_THINGS) <= parts(painted.SEEN_THINGS)


def test_training_scenes_hold_only_seen_classes_and_all_of_them():
    source = PaintedScenes("train", 0, 64, seed=3)
    present = {CLASS_NAMES[index] for i in range(250) for index in np.unique(source[i]["label"])}
    assert present == set(SEEN_CLASSES)


def test_evaluation_scenes_hold_unseen_classes_as_often_as_seen_ones():
    source = PaintedScenes("eval", 300, 64, seed=0)
    counts = np.zeros(len(CLASS_NAMES))
    for i in range(len(source)):
        counts[np.unique(source[i]["label"])] += 1
    seen, unseen = counts[len(STUFF) : len(SEEN_CLASSES)], counts[len(SEEN_CLASSES) :]
    assert counts.min() > 0
    assert abs(seen.mean() - unseen.mean()) < 0.2 * seen.mean()


def test_a_scene_depends_on_seed_split_and_index_alone():
    first, again = (PaintedScenes("train", 10, SIZE, seed=5) for _ in range(2))
    _ = again[2]
    for key in ("image", "label"):
        np.testing.assert_array_equal(first[7][key], pickle.loads(pickle.dumps(again))[7][key])
    others = [
        first[6],
        PaintedScenes("train", 10, SIZE, seed=6)[7],
        PaintedScenes("eval", 10, SIZE, seed=5)[7],
    ]
    assert all((other["image"] != first[7]["image"]).any() for other in others)


def test_length_and_bounds():
    source = PaintedScenes("eval", 3, SIZE, seed=0)
    assert len(list(source)) == len(source) == 3
    with pytest.raises(IndexError):
        source[3]
    assert len(PaintedScenes("train", 0, SIZE, seed=0)) == painted.ENDLESS


@pytest.mark.parametrize("size", [32, 96, 161])
def test_shapes_types_and_ranges(size):
    example = PaintedScenes("eval", 1, size, seed=0)[0]
    assert example["image"].shape == (size, size, 3)
    assert example["image"].dtype == np.uint8
    assert example["label"].shape == (size, size)
    assert example["label"].dtype == np.int32
    assert example["label"].min() >= 0
    assert example["label"].max() < len(CLASS_NAMES)
    assert example["image"].std() > 10


@pytest.mark.parametrize("clutter", [0.0, 0.7])
def test_a_view_is_a_cutting_of_the_whole_scene(clutter):
    """At a place of its own in each scene, and to a grey level: sums of float32 round differently."""
    whole, view = (PaintedScenes("train", 0, SIZE, 0, side, clutter) for side in (0, 40))
    places = set()
    for i in range(12):
        scene, part = whole[i], view[i]
        label = np.lib.stride_tricks.sliding_window_view(scene["label"], (40, 40))
        image = np.lib.stride_tricks.sliding_window_view(scene["image"].astype(int), (40, 40), axis=(0, 1))
        same = (label == part["label"]).all(axis=(2, 3))
        close = (np.abs(image - np.moveaxis(part["image"].astype(int), -1, 0)) <= 1).all(axis=(2, 3, 4))
        (place,) = np.argwhere(same & close)
        places.add(tuple(place))
    assert len(places) == 12


@pytest.mark.parametrize("clutter", [0.0, 1.0])
def test_masks_are_the_shapes_of_the_topmost_objects(monkeypatch, clutter):
    """Paint the same scene with each thing in one flat colour of its own, and compare colours with labels."""
    monkeypatch.setattr(painted, "_photograph", lambda canvas, *_: canvas)
    monkeypatch.setattr(painted, "camouflaged", lambda colours, *_: colours)
    monkeypatch.setattr(
        painted, "_thing_colours", lambda thing, *_: np.full((3, 1, 1), 1000 * (1 + _index(thing)) + 1, np.float32)
    )
    monkeypatch.setattr(painted, "SURFACES", dict.fromkeys(painted.SHAPES, lambda u, v, distance, *_: 0 * distance))
    monkeypatch.setattr(painted, "_coverage", lambda distance: (distance <= 0).astype(np.float32))
    for i in range(20):
        example = PaintedScenes("eval", 20, SIZE, seed=1, clutter=clutter)[i]
        # Shadows darken what lies below, but never by half; a step of 1000 a class is thus only exact for the topmost.
        things = example["label"] >= len(STUFF)
        painted_over = example["image"][0] > 300
        np.testing.assert_array_equal(things, painted_over)
        unshaded = example["image"][0] % 1000 == 1
        own = example["image"][0] == 1000 * (1 + example["label"]) + 1
        assert (own | ~unshaded | ~things).all()
        assert own.sum() > 0.5 * things.sum()


def test_clutter_makes_things_more_and_smaller_and_their_light_uneven():
    found = []
    for clutter in (0.0, 0.5, 1.0):
        scenes = PaintedScenes("eval", 40, SIZE, seed=0, clutter=clutter)
        labels = [scenes[i]["label"] for i in range(len(scenes))]
        found.append(
            [
                np.mean([len(np.unique(label)) for label in labels]),
                np.mean(
                    [(label == index).sum() for label in labels for index in np.unique(label[label >= len(STUFF)])]
                ),
                np.std([scenes[i]["image"][:20, :20].mean() for i in range(40)]),
            ]
        )
    classes, areas, light = np.transpose(found)
    assert (np.diff(classes) > 0).all()
    assert (np.diff(areas) < 0).all()
    assert light[2] > light[0]


def test_clutter_leaves_what_a_plain_scene_has_in_its_place():
    """The first things are the same ones, and the ground."""
    plain, hard = (PaintedScenes("train", 20, SIZE, seed=2, clutter=clutter) for clutter in (0.0, 0.3))
    for i in range(20):
        of_plain, of_hard = (scenes[i]["label"] for scenes in (plain, hard))
        both_stuff = (of_plain < len(STUFF)) & (of_hard < len(STUFF))
        np.testing.assert_array_equal(of_plain[both_stuff], of_hard[both_stuff])


def test_camouflage_takes_on_the_ground():
    ground = np.random.default_rng(0).uniform(40, 200, (3, 8, 8)).astype(np.float32)
    red = painted.COLOURS["red"]
    np.testing.assert_array_equal(camouflaged(red, ground, 0.0), red + 0 * ground)
    distances = [np.abs(camouflaged(red, ground, share) - ground).mean() for share in (0.0, 0.5, 0.85)]
    assert distances[0] > distances[1] > distances[2]


def _index(thing: painted.Thing) -> int:
    return CLASS_NAMES.index(thing.name)


def test_shapes_cover_what_their_names_say():
    rows, columns = np.mgrid[-60:61, -60:61].astype(np.float32)
    area = {
        name: float((distance(columns, rows, np.float32(40), np.float32(1)) <= 0).mean() * 121**2) / 40**2
        for name, distance in painted.DISTANCES.items()
    }
    assert area["ball"] == pytest.approx(np.pi, rel=0.02)
    assert area["box"] == pytest.approx(1.8**2, rel=0.03)
    assert area["cross"] == pytest.approx(2 * 2.2 * 0.96 - 0.96**2, rel=0.03)
    assert area["ring"] == pytest.approx(np.pi * (1.1**2 - 0.34**2), rel=0.03)


@pytest.mark.parametrize("shape", painted.SHAPES)
def test_no_shape_reaches_beyond_its_circumradius(shape):
    rows, columns = np.mgrid[-80:81, -80:81].astype(np.float32)
    inside = painted.DISTANCES[shape](columns, rows, np.float32(40), np.float32(1)) <= 0
    assert np.hypot(rows, columns)[inside].max() <= 40 * painted.CIRCUMRADIUS[shape]
