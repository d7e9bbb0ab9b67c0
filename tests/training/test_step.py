"""Which classes of an image's list enter the head; batches in parts; one compile."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.training.finetune import join, partition
from dinov3seg_jax.training.flops import count_flops
from dinov3seg_jax.training.losses import masked_mean, sigmoid_cross_entropy
from dinov3seg_jax.training.program import CompiledStep, describe_step, while_training
from dinov3seg_jax.training.sharding import make_mesh
from dinov3seg_jax.training.step import (
    Aside,
    Batch,
    _weights_of,
    choose_hardest,
    for_all_names,
    make_gradient,
    make_loss,
    seen,
)
from tests.training.several_devices import CONFIG as SMALL
from tests.training.several_devices import NAMES as NAMES_HERE
from tests.training.several_devices import VOCABULARY, batch_of

NAMES, LISTED, SIDE = 12, 8, 4
SUMS = 1e-5  # relatively, of float32 means over some thousand pixels, added up in another order
RNG = np.random.default_rng(0)
CORRELATION = RNG.uniform(-0.1, 0.1, (2, NAMES, 2, 2, 2)).astype(np.float32)
CLASS_IDS = np.stack([RNG.permutation(NAMES)[:LISTED] for _ in range(2)]).astype(np.int32)


def label_with(*present):
    """[2, SIDE, SIDE]: the same positions in both images, and some pixels ignored."""
    return np.resize(np.array([*present, -1], np.int32), (2, SIDE, SIDE))


def named(class_ids, label):
    """Names in place of positions, -1 where ignored."""
    return np.stack([np.where(one >= 0, ids[one], -1) for ids, one in zip(np.asarray(class_ids), label, strict=True)])


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_are_present_are_kept_and_mean_the_same(seed):
    label = label_with(1, 6, 3)
    kept, shortened = choose_hardest(jax.random.key(seed), CORRELATION, CLASS_IDS, label, 4)
    assert kept.shape == (2, 4)
    np.testing.assert_array_equal(named(kept, np.asarray(shortened)), named(CLASS_IDS, label))


def test_the_name_an_image_resembles_most_comes_next():
    correlation = CORRELATION.copy()
    for image, position in enumerate((2, 7)):
        correlation[image, CLASS_IDS[image, position], 0, 0, 0] = 1.0
    for seed in range(5):
        kept, _ = choose_hardest(jax.random.key(seed), correlation, CLASS_IDS, label_with(1), 2)
        np.testing.assert_array_equal(kept, [[CLASS_IDS[0, 1], CLASS_IDS[0, 2]], [CLASS_IDS[1, 1], CLASS_IDS[1, 7]]])


def test_easy_names_are_met_too():
    others = {
        int(choose_hardest(jax.random.key(seed), CORRELATION, CLASS_IDS, label_with(1), 2)[0][0, 1])
        for seed in range(30)
    }
    assert len(others) >= 4


def test_pixels_of_classes_that_find_no_place_are_ignored():
    label = label_with(0, 1, 2)
    kept, shortened = choose_hardest(jax.random.key(0), CORRELATION, CLASS_IDS, label, 2)
    before, after = named(CLASS_IDS, label), named(kept, np.asarray(shortened))
    np.testing.assert_array_equal(after, np.where(np.isin(before, np.asarray(kept)), before, -1))
    assert (after >= 0).any()


def test_a_list_that_is_short_enough_stays_whole():
    kept, _ = choose_hardest(jax.random.key(0), CORRELATION, CLASS_IDS, label_with(0), 99)
    np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(CLASS_IDS, axis=1))


def test_weights_follow_their_classes_into_a_shorter_list():
    weights = RNG.random((2, LISTED), np.float32)
    kept, _ = choose_hardest(jax.random.key(0), CORRELATION, CLASS_IDS, label_with(1, 6), 4)
    found = _weights_of(kept, Batch(None, None, CLASS_IDS, weights), NAMES)
    for image in range(2):
        of_name = dict(zip(CLASS_IDS[image].tolist(), weights[image].tolist(), strict=True))
        np.testing.assert_array_equal(found[image], [of_name[name] for name in np.asarray(kept[image]).tolist()])


@pytest.mark.slow
@pytest.mark.parametrize("hardest", [0, 2])
def test_weights_of_a_batch_weigh_its_loss(hardest):
    train = dataclasses.replace(SMALL.train, hardest_classes=hardest, accumulate=1)
    config = dataclasses.replace(SMALL, train=train)
    graph, _ = build(SMALL.model)
    split = partition(initialize(SMALL.model, jax.random.key(0)), SMALL.model, train)
    text = np.random.default_rng(0).standard_normal((NAMES_HERE, 2 * SMALL.model.vision.dim)).astype(np.float32)
    batch = batch_of(0)
    loss = jax.jit(make_loss(config, graph))

    def weighed(weights):
        return float(loss(*split, text, jnp.int32(3), batch._replace(weights=weights))[0])

    ones = np.ones(batch.class_ids.shape, np.float32)
    plain = weighed(None)
    assert weighed(ones) == pytest.approx(plain, rel=1e-6)
    assert weighed(3 * ones) == pytest.approx(3 * plain, rel=1e-6)
    each = [weighed(ones * (batch.class_ids == name)) for name in range(NAMES_HERE)]
    assert sum(each) == pytest.approx(plain, rel=1e-5)
    assert min(each) > 0


def in_parts(count):
    return dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, accumulate=count))


def uneven_batch():
    """One whose parts do not count alike."""
    batch = batch_of(0)
    batch.label[::2, :20] = -1
    batch.label[::4] = -1
    return batch


def test_parts_count_by_what_they_have_labelled_and_each_draws_anew(monkeypatch):
    drawn = []

    def make_pixel_loss(config, graph):
        def loss(trainable, frozen, text, step, batch):
            jax.debug.callback(lambda step: drawn.append(int(step)), step)
            labelled = batch.label >= 0
            squared = (trainable["scale"] * batch.image.mean(-1, dtype=jnp.float32) / 255 - batch.label) ** 2
            return masked_mean(squared, labelled), Aside(labelled.sum())

        return loss

    monkeypatch.setattr("dinov3seg_jax.training.step.make_loss", make_pixel_loss)
    arguments = ({"scale": jnp.float32(2)}, {}, jnp.int32(3), np.zeros((5, 8), np.float32), uneven_batch())
    whole, parts = (jax.jit(make_gradient(in_parts(count), None))(*arguments) for count in (1, 4))
    jax.effects_barrier()
    assert sorted(drawn) == [3, 12, 13, 14, 15]
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=SUMS)
    assert float(parts[2]["scale"]) == pytest.approx(float(whole[2]["scale"]), rel=SUMS)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["alignment", "masks"])
def test_a_batch_in_parts_has_the_loss_and_the_gradients_of_the_whole(objective):
    train = dataclasses.replace(SMALL.train, objective=objective)
    graph, _ = build(SMALL.model)
    split = partition(initialize(SMALL.model, jax.random.key(0)), SMALL.model, train)
    names = np.random.default_rng(0).integers(1, VOCABULARY, (5, 8), np.int32)
    batch = uneven_batch()
    whole, parts = (
        jax.jit(make_gradient(dataclasses.replace(SMALL, train=dataclasses.replace(train, accumulate=count)), graph))(
            *split, jnp.int32(3), names, batch
        )
        for count in (1, 4)
    )
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=SUMS)
    for name, value in whole[2].items():
        scale = float(jnp.abs(value).max())
        np.testing.assert_allclose(parts[2][name], value, rtol=1e-4, atol=1e-5 * scale + 1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["attention", "none"])
def test_names_are_embedded_once_with_the_gradients_of_a_tower_in_every_part(finetune):
    """Against the plain derivative of the whole loss, the text tower in it; frozen names may come embedded."""
    config = dataclasses.replace(in_parts(4), train=dataclasses.replace(in_parts(4).train, finetune=finetune))
    graph, _ = build(config.model)
    split = partition(initialize(config.model, jax.random.key(0)), config.model, config.train)
    names, batch = np.random.default_rng(0).integers(1, VOCABULARY, (5, 8), np.int32), uneven_batch()
    loss = make_loss(config, graph)

    def with_its_text(trainable, frozen, names, batch):
        text = bind(graph, join(trainable, frozen)).encode_text(names)
        return loss(trainable, frozen, text, jnp.int32(3), batch)[0]

    expected = jax.jit(jax.grad(with_its_text))(*split, names, batch)
    given = [names]
    if finetune == "none":
        given.append(bind(graph, join(*split)).encode_text(names))
    for asked in given:
        *_, found = jax.jit(make_gradient(config, graph))(*split, jnp.int32(3), asked, batch)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = float(jnp.abs(value).max())
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * scale + 1e-9, err_msg=name)


@pytest.mark.slow
def test_the_text_tower_costs_the_same_however_many_parts_a_batch_has():
    costs = []
    for parts in (1, 4):
        program = describe_step(in_parts(parts), make_mesh(1, 1, jax.devices()[:1]))
        tokens, batch = jax.ShapeDtypeStruct((NAMES_HERE, 8), jnp.int32), jax.eval_shape(lambda: batch_of(0))
        embeddings = jax.ShapeDtypeStruct((NAMES_HERE, 2 * SMALL.model.vision.dim), jnp.float32)
        read, given = (
            count_flops(program.step, program.state, program.frozen, names, batch) for names in (tokens, embeddings)
        )
        costs.append(read - given)
    assert costs[0] == costs[1] > 0


def test_names_come_embedded_where_nothing_of_the_text_tower_trains():
    tokens = jax.ShapeDtypeStruct((NAMES_HERE, 8), jnp.int32)
    for finetune, kind in (("attention", jnp.integer), ("none", jnp.floating)):
        config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, finetune=finetune))
        names = describe_step(config, make_mesh(1, 1, jax.devices()[:1])).described_names(tokens)
        assert jnp.issubdtype(names.dtype, kind)


def test_a_step_is_compiled_once_and_says_so():
    batch = batch_of(0)
    step = CompiledStep(jax.jit(lambda *arguments: arguments[-1].label.sum()), 0, 0, 0, batch)
    assert step(0, 0, 0, batch) == batch.label.sum()
    with pytest.raises(
        UserError,
        match=r"^the step was compiled for batches of image uint8\[8,32,32,3\], label int32\[8,32,32\], "
        r"class_ids int32\[8,3\] and met one of image uint8\[4,32,32,3\], .*; a run compiles once: make every batch",
    ):
        step(0, 0, 0, Batch(*(array[:4] for array in batch[:3])))


@pytest.mark.slow
def test_ignored_pixels_as_negatives_and_coarser_class_blocks_while_training():
    """CAT-Seg's two options change the loss; none of the parameters."""
    late = dataclasses.replace(SMALL.model.late, enabled=True, layers=1, heads=2, window=2)
    plain = dataclasses.replace(SMALL.model, late=late)
    pooled = dataclasses.replace(plain, late=dataclasses.replace(late, training_pooling=2))
    assert build(pooled)[1].keys() == build(plain)[1].keys()
    assert while_training(pooled).late.pooling == 2
    assert while_training(plain) == plain
    parameters = initialize(plain, jax.random.key(0))
    batch = batch_of(2)
    names = np.arange(NAMES_HERE * 6, dtype=np.int32).reshape(NAMES_HERE, 6) % VOCABULARY
    losses = []
    for model, ignored in [(plain, "left_out"), (plain, "negative"), (pooled, "left_out")]:
        config = dataclasses.replace(
            SMALL, model=model, train=dataclasses.replace(SMALL.train, ignored=ignored, accumulate=1)
        )
        graph, _ = build(while_training(model))
        trainable, frozen = partition(parameters, model, config.train)
        losses.append(float(jax.jit(make_gradient(config, graph))(trainable, frozen, np.int32(0), names, batch)[0]))
    assert len({round(loss, 6) for loss in losses}) == 3


def drawn_lists(named, length, names):
    """Every class list of a length that can be drawn for a label of names, and the label as positions in it."""
    present = sorted(set(named[named >= 0].tolist()))
    absent = [name for name in range(names) if name not in present]
    for others in itertools.combinations(absent, length - len(present)):
        listed = np.array([*others, *present], np.int32)
        positions = np.full(names + 1, -1, np.int32)
        positions[listed] = np.arange(length)
        yield listed, positions[named]


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    "length", [pytest.param(3, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)]
)
def test_over_all_draws_the_mean_loss_is_that_of_all_names(length, negative):
    """Two images, of one and two classes, whose draws are independent."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((2, 5, 2, 2)).astype(np.float32)
    label = np.array([[[4, 4], [-1, 4]], [[0, 3], [3, -1]]], np.int32)
    whole = float(sigmoid_cross_entropy(logits, label, ignored_as_negative=negative))
    drawn = []
    for pair in itertools.product(*(drawn_lists(named, length, 5) for named in label)):
        listed, positions = (np.stack(part) for part in zip(*pair, strict=True))
        own = np.take_along_axis(logits, listed[:, :, None, None], axis=1)
        weights = for_all_names(positions, length, 5)
        drawn.append(float(sigmoid_cross_entropy(own, positions, weights, ignored_as_negative=negative)))
    assert np.mean(drawn) == pytest.approx(whole, rel=1e-5)
    if length < 5:
        assert np.std(drawn) > 0.01 * whole


@pytest.mark.slow
def test_gradients_of_unbiased_draws_average_to_those_of_all_names():
    """Of a model without class blocks, where no class's logits depend on the others."""
    options = {"negatives": "unbiased", "accumulate": 2, "finetune": "attention"}
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, **options))
    graph, _ = build(config.model)
    split = partition(initialize(config.model, jax.random.key(0)), config.model, config.train)
    names = np.random.default_rng(0).integers(1, VOCABULARY, (NAMES_HERE, 8), np.int32)
    image = batch_of(0).image
    named = np.broadcast_to(np.where(np.arange(32) < 20, 1, 3), image.shape[:3]).astype(np.int32)
    named[::2, :20] = -1  # parts that do not count alike
    gradient = jax.jit(make_gradient(config, graph))

    def of(listed, positions):
        shared = np.tile(listed, (len(image), 1))
        return gradient(*split, jnp.int32(0), names, Batch(image, positions, shared))

    whole_loss, _, whole = of(np.arange(NAMES_HERE, dtype=np.int32), named)
    found = [of(*drawn) for drawn in drawn_lists(named, 3, NAMES_HERE)]
    assert len(found) == 3
    assert np.mean([loss for loss, *_ in found]) == pytest.approx(float(whole_loss), rel=SUMS)
    for name, value in whole.items():
        mean = np.mean([gradients[name] for *_, gradients in found], axis=0)
        scale = float(jnp.abs(value).max())
        np.testing.assert_allclose(mean, value, rtol=1e-4, atol=1e-5 * scale + 1e-9, err_msg=name)


def test_a_crop_is_seen_at_another_size_than_its_labels():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(seen(image, 0), image / 255, rtol=1e-6)
    halved = image.reshape(1, 4, 2, 4, 2, 3).mean((2, 4)) / 255  # half-pixel centres fall between two pixels
    np.testing.assert_allclose(seen(image, 4), halved, rtol=1e-6)


@pytest.mark.slow
def test_the_model_computes_at_the_size_that_it_sees():
    tokens, costs = jax.ShapeDtypeStruct((NAMES_HERE, 8), jnp.int32), []
    for view, side in ((32, 64), (0, 32)):
        config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, view_size=view))
        program = describe_step(config, make_mesh(1, 1, jax.devices()[:1]))
        batch = jax.eval_shape(lambda side=side: batch_of(0, side))
        costs.append(count_flops(program.step, program.state, program.frozen, tokens, batch))
    assert 1 < costs[0] / costs[1] < 1.2  # resized pixels and logits are all that is more
