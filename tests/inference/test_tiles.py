"""Tiles cover pictures of any size, and what they say is blended without a seam."""

import dataclasses
from itertools import pairwise

import jax
import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import EarlyRefinementConfig, InferenceConfig
from dinov3seg_jax.data.resize import resize
from dinov3seg_jax.inference.classes.chunks import ScoredChunk
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.inference.views.blend import Shapes, bands, count_tiles, label_tiles
from dinov3seg_jax.inference.views.linear_resize import taps
from dinov3seg_jax.inference.views.tiles import (
    ArraySource,
    blend_weights,
    cut_tile,
    mirror,
    plan_tiles,
    read_scaled,
    tile_stride,
)
from dinov3seg_jax.models.graph import initialize

PATCH, SIDE, CELLS = 16, 64, 16
OPTIONS = InferenceConfig(image_size=SIDE)
SIZES = [(1, 1), (16, 16), (63, 65), (64, 64), (65, 64), (200, 50), (131, 313), (1, 300)]
NAMES = ("red circle", "grass", "a dog", "water", "sky")
RNG = np.random.default_rng(0)


def shapes_for(classes, options=OPTIONS, cells=CELLS):
    return Shapes.of(options.image_size, cells, classes, tile_stride(options, PATCH), options.tile_scale)


def run(score, images, classes, options=OPTIONS, batch_size=3, widest=10**6):
    """Labels and confidence of pictures."""
    work = [(ArraySource(image), plan_tiles(*image.shape[:2], options, PATCH)) for image in images]
    found = [(np.full(image.shape[:2], -1), np.full(image.shape[:2], np.nan)) for image in images]
    ran = []
    shapes = shapes_for(classes, options)
    for piece in label_tiles(work, score, shapes, batch_size, widest, ran.append):
        labels, confidence = found[piece.picture]
        place = np.s_[piece.top : piece.top + len(piece.labels), piece.left : piece.left + piece.labels.shape[1]]
        assert (labels[place] == -1).all(), "no pixel comes twice"
        labels[place], confidence[place] = piece.labels, piece.confidence
    assert sum(ran) == sum(count_tiles(tiling, shapes, widest) for _, tiling in work)
    return found


@pytest.mark.parametrize("length", [1, 16, 63, 64, 65, 112, 113, 1000])
def test_tiles_lie_on_patches_overlap_and_reach_the_edge(length):
    axis, _ = plan_tiles(length, 1, OPTIONS, PATCH)
    assert (axis.starts % PATCH == 0).all()
    assert (np.diff(axis.starts) <= SIDE * 3 // 4).all()
    assert 0 <= axis.starts[-1] + SIDE - max(length, SIDE) < PATCH


@pytest.mark.parametrize("starts", [[0], [0, 12], [0, 12, 24, 27], [0, 1], [0, 16]])
def test_weights_are_above_0_and_sum_to_1(starts):
    weights = blend_weights(np.array(starts), CELLS)
    assert weights.min() > 0
    total = np.zeros(starts[-1] + CELLS)
    for start, own in zip(starts, weights, strict=True):
        total[start : start + CELLS] += own
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_places_beyond_the_edges_are_mirrored():
    assert mirror(np.arange(-3, 8), 3).tolist() == [2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert mirror(np.arange(4), 1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("size", SIZES)
def test_a_tile_is_a_part_of_the_picture_or_its_mirror_image(size):
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    tiling = plan_tiles(*size, OPTIONS, PATCH)
    mirrored = np.pad(image, ((0, SIDE + PATCH), (0, SIDE + PATCH), (0, 0)), mode="symmetric")
    for row, top in enumerate(tiling.rows.starts):
        for column, left in enumerate(tiling.columns.starts):
            tile = cut_tile(ArraySource(image), tiling, row, column)
            np.testing.assert_array_equal(tile, mirrored[top : top + SIDE, left : left + SIDE])


@pytest.mark.parametrize("scale", [0.25, 0.4, 1.7])
def test_parts_of_a_scaled_picture_are_those_of_the_whole_one_scaled(scale):
    image = RNG.integers(0, 256, (301, 203, 3), np.uint8)
    tiling = plan_tiles(301, 203, dataclasses.replace(OPTIONS, tile_scale=scale), PATCH)
    height, width = (axis.scaled for axis in tiling)
    assert (height, width) == (round(301 * scale), round(203 * scale))
    whole = resize(image, (height, width), Image.Resampling.BILINEAR)
    box = height // 3, height, width // 4, width // 2
    part = read_scaled(ArraySource(image), tiling, *box)
    expected = whole[box[0] : box[1], box[2] : box[3]]
    assert np.abs(part.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_constant_scores_stay_constant(size):
    image = np.zeros((*size, 3), np.uint8)
    value = np.array([0.2, 0.7, 0.3], np.float32)

    def score(pixels):
        return np.broadcast_to(value[:, None, None], (len(pixels), 3, CELLS, CELLS))

    ((labels, confidence),) = run(score, [image], 3)
    assert (labels == 1).all()
    np.testing.assert_allclose(confidence, 0.7, atol=1e-6)


def noisy_score(pixels):
    """Depends on the tile as a whole and on the place in it, so that neighbours disagree."""
    cells = pixels.reshape(len(pixels), CELLS, 4, CELLS, 4, 3).mean((2, 4)) / 255
    scores = np.concatenate([cells, 1 - cells, cells**2], axis=-1)
    scores = (scores + scores.mean((1, 2), keepdims=True) * np.linspace(0, 1, CELLS)[:, None]) / 2
    return np.moveaxis(scores, -1, 1).astype(np.float32)


def plain(score, image, classes, options):
    """Everything at once: every tile's scores added up over the whole grid, and resized as a whole."""
    tiling = plan_tiles(*image.shape[:2], options, PATCH)
    starts = [axis.starts * CELLS // SIDE for axis in tiling]
    grid = [own[-1] + CELLS for own in starts]
    total, weight = np.zeros((classes, *grid)), np.zeros(grid)
    places = np.arange(CELLS) + 0.5
    ramp = np.minimum(np.minimum(places, CELLS - places) / (CELLS / 4), 1)
    for row, top in enumerate(starts[0]):
        for column, left in enumerate(starts[1]):
            tile = cut_tile(ArraySource(image), tiling, row, column)
            here = np.s_[top : top + CELLS, left : left + CELLS]
            total[:, *here] += score(tile[None])[0] * np.outer(ramp, ramp)
            weight[here] += np.outer(ramp, ramp)
    scores = total / weight
    for axis, own in enumerate(tiling, 1):
        down = taps(scores.shape[axis], own.length, own.scaled / own.length * CELLS / SIDE)
        ways = [np.take(scores, indices, axis) for indices in (down.first, down.second)]
        share = down.weight.reshape([-1 if place == axis else 1 for place in range(3)])
        scores = ways[0] * (1 - share) + ways[1] * share
    return scores


@pytest.mark.parametrize("widest", [10**6, 20, 5])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.5])
def test_labelling_in_parts_equals_everything_at_once(scale, widest):
    options = dataclasses.replace(OPTIONS, tile_scale=scale)
    images = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    for image, (labels, confidence) in zip(images, run(noisy_score, images, 9, options, widest=widest), strict=True):
        expected = plain(noisy_score, image, 9, options)
        np.testing.assert_allclose(confidence, expected.max(axis=0), atol=1e-5)
        chosen = np.take_along_axis(expected, labels[None], axis=0)[0]
        np.testing.assert_allclose(chosen, expected.max(axis=0), atol=1e-5)


def test_more_classes_than_are_labelled_together(monkeypatch):
    monkeypatch.setattr("dinov3seg_jax.inference.views.blend.CLASSES_AT_ONCE", 4)
    image = RNG.integers(0, 256, (90, 150, 3), np.uint8)
    ((labels, confidence),) = run(noisy_score, [image], 9)
    expected = plain(noisy_score, image, 9, OPTIONS)
    np.testing.assert_allclose(confidence, expected.max(axis=0), atol=1e-5)
    assert (labels == expected.argmax(axis=0)).mean() > 0.999


def test_bands_cover_the_grid_and_are_no_wider_than_asked():
    tiling = plan_tiles(10, 1000, OPTIONS, PATCH)
    for widest in (1, 7, 40, 252, 10**6):
        edges = bands(tiling, shapes_for(3), widest)
        assert edges[0][0] == 0
        assert edges[-1][1] == 1008 // 4
        assert all(before[1] == after[0] for before, after in pairwise(edges))
        assert all(0 < last - first <= widest for first, last in edges)


def smooth_scene(height, width):
    """Colours that change slowly."""
    rows, columns = np.mgrid[:height, :width] / 97
    waves = [np.sin(rows + 2 * columns), np.cos(2 * rows - columns), np.sin(rows * 1.5) * np.cos(columns)]
    return np.rint(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


def smooth_score(pixels):
    """Scores that are smooth in the colours, and so in the place."""
    cells = pixels.reshape(len(pixels), CELLS, 4, CELLS, 4, 3).mean((2, 4)) / 255
    return np.moveaxis(np.concatenate([cells, 1 - cells], axis=-1), -1, 1).astype(np.float32)


def test_a_shifted_grid_gives_the_same_labels():
    scene = smooth_scene(450, 550)
    shift = np.s_[20:, 28:]  # multiples of a cell, but neither of a patch nor of the tiles' stride
    (whole, _), (moved, _) = run(smooth_score, [scene, scene[shift]], 6)
    inner = np.s_[16:-16, 16:-16]  # besides the mirror images at the edges
    assert (whole[shift][inner] == moved[inner]).mean() >= 0.999
    truth = np.concatenate([scene / 255, 1 - scene / 255], axis=-1).argmax(axis=-1)
    assert len(np.unique(truth)) == 6
    assert (whole == truth)[inner].mean() > 0.98


def shades_in_context(pixels):
    """Five shades of grey, judged partly by what the tile shows as a whole: no tile agrees with its neighbours."""
    grey = pixels.reshape(len(pixels), CELLS, 4, CELLS, 4, 3).mean((2, 4, 5)) / 255
    grey = grey + 0.3 * grey.mean((1, 2), keepdims=True)
    shades = np.linspace(0.13, 1.17, 5)
    return (1 - np.abs(grey[:, None] - shades[:, None, None])).astype(np.float32)


def test_the_borders_between_classes_have_no_steps_wherever_the_grid_lies():
    """In a slope that grows lighter they are slanted lines, which move by 5 pixels at once where tiles are cut hard."""
    slope = np.add.outer(np.arange(600), np.arange(600)) * 255 / 1200
    scene = np.repeat(np.rint(slope).astype(np.uint8)[..., None], 3, axis=-1)
    inner = np.s_[16:-16, 16:-16]
    whole, moved = (labels[inner] for labels, _ in run(shades_in_context, [scene, scene[20:, 28:]], 5))
    for labels in (whole, moved):
        assert len(np.unique(labels)) == 5
        borders = [(labels <= shade).sum(axis) for shade in range(4) for axis in (0, 1)]
        assert max(np.abs(np.diff(border)).max() for border in borders) <= 2
    assert (whole[20:, 28:] == moved).mean() > 0.97


def test_where_tiles_disagree_there_is_no_seam():
    tiles = []

    def score(pixels):
        """Every other tile is surer than its neighbours."""
        tiles.extend(pixels)
        return np.full((len(pixels), 1, CELLS, CELLS), (0.3, 0.7)[len(tiles) % 2], np.float32)

    ((_, confidence),) = run(score, [np.zeros((64, 400, 3), np.uint8)], 1, batch_size=1)
    assert np.ptp(confidence) > 0.39
    steps = np.abs(np.diff(confidence, axis=1))
    assert steps.max() < 0.03, "0.4 within the 16 pixels that two tiles share; their plain mean makes 0.05"


def test_the_model_sees_a_picture_of_one_tile_as_a_square_one(tiled, model):
    image = RNG.integers(0, 256, (48, 48, 3), np.uint8)
    ours, theirs = tiled.segment(image, NAMES), model.segment(image, NAMES)
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-6)
    assert (ours.labels == theirs.labels).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("patch_size", "output_stride"), [(32, 16), (8, 8)])
def test_tiles_of_a_model_with_other_patches_and_early_refinement(config, patch_size, output_stride):
    model = dataclasses.replace(
        config.model,
        vision=dataclasses.replace(config.model.vision, patch_size=patch_size),
        early=EarlyRefinementConfig(dim=16, heads=2, output_stride=output_stride),
    )
    inference = dataclasses.replace(config.inference, mode="whole", image_size=2 * patch_size, resize="tiled")
    config = dataclasses.replace(config, model=model, inference=inference)
    image = RNG.integers(0, 256, (70, 40, 3), np.uint8)
    found = Segmenter(config, initialize(model, jax.random.key(0))).segment(image, NAMES)
    assert found.labels.shape == (70, 40)
    assert len(np.unique(found.confidence)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"best_classes": 3}, {"class_chunk": 2}, {"fusion": "logits"}, {"mode": "whole"}])
def test_every_recipe_can_be_tiled(config, parameters, options):
    inference = dataclasses.replace(config.inference, resize="tiled", **options)
    square = dataclasses.replace(inference, resize="square")
    image = RNG.integers(0, 256, (48, 48, 3), np.uint8)
    ours, theirs = (
        Segmenter(dataclasses.replace(config, inference=own), parameters).segment(image, NAMES)
        for own in (inference, square)
    )
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-6)
    assert (ours.labels == theirs.labels).mean() > 0.999


def test_pictures_of_twelve_sizes_share_all_programs(tiled, compiled):
    tiled.segment(RNG.integers(0, 256, (48, 48, 3), np.uint8), NAMES)
    compiled.clear()
    for height, width in RNG.integers(1, 120, (12, 2)):
        result = tiled.segment(RNG.integers(0, 256, (height, width, 3), np.uint8), NAMES)
        assert result.labels.shape == (height, width)
    assert not compiled


def test_scores_of_a_list_that_comes_in_chunks(tiled, monkeypatch):
    scores = RNG.random((2, 8, 3, 3), np.float32)  # eight entries for five names
    chunks = [ScoredChunk(first, scores[:, first : first + 4], np.ones(4, bool)) for first in (0, 4)]
    monkeypatch.setattr(tiled.tiles, "_score_list", lambda pixels, names: chunks)
    np.testing.assert_array_equal(tiled.tiles.score(np.zeros(2), NAMES), scores[:, :5])

    lists = np.array([[0, 2, 3], [1, 2, 4]])  # what each tile keeps
    chunks = [ScoredChunk(0, scores[:, :2], np.ones(2), lists), ScoredChunk(2, scores[:, 2:4], np.ones(2), lists)]
    found = tiled.tiles.score(np.zeros(2), NAMES)
    for tile, kept in enumerate(lists):
        np.testing.assert_array_equal(found[tile, kept], scores[tile, :3])
        assert not np.delete(found[tile], kept, axis=0).any()
