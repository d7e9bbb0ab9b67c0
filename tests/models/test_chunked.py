"""A class list in chunks: the same logits as all at once, whatever the chunks, and no memory for its length."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.models import late_refinement
from dinov3seg_jax.models.chunked import can_chunk, collect, decode, decode_chunks, kept_bytes, no_sums, prepare_scene
from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.models.scene import Chunk, ImageFeatures, PriorMaps
from tests.models.tiny import changed, compiled, lively, random

TOLERANCE = 1e-5
CLASSES, REAL = 7, 6
LENGTH = 3  # of a chunk; most tests share it, and with it the compiled programs
EARLY = changed("early", enabled=False).early  # knows no classes
LATE = {"layers": 2, "early": EARLY}


class Head:
    """What follows the towers, with random parameters and patches."""

    def __init__(self, config, grid, images=1):
        self.config = config
        graph, _ = build(config)
        self.parameters = lively(initialize(config, jax.random.key(0)))
        self.images = jax.nn.sigmoid(random(0, images, 16 * grid[0], 16 * grid[1], 3))
        patches = random(1, images, *grid, config.vision.dim)
        prior = PriorMaps(*(random(2 + n, images, *grid, config.vision.dim) for n in range(3)))
        self.features = ImageFeatures(patches, None if config.spe == "none" else prior)
        self.at_once = compiled(
            lambda parameters, text, mask: (
                bind(graph, parameters).segment(self.images, self.features, text, mask).logits
            )
        )
        self.prepare = compiled(lambda parameters: prepare_scene(bind(graph, parameters), self.images, self.features))
        self.collect = compiled(lambda parameters, *rest: collect(bind(graph, parameters), *rest))
        self.decode = compiled(lambda parameters, *rest: decode(bind(graph, parameters), *rest))

    def whole(self, text, mask=None, **changes):
        """Logits of every class, all at once."""
        mask = np.ones(text.shape[:2], bool) if mask is None else mask
        images = len(self.images)
        text, mask = (np.broadcast_to(x, (images, *x.shape[1:])) for x in (text, mask))
        return np.asarray(self.at_once(self.parameters | changes, text, mask))

    def chunked(self, text, length, mask=None, *, keep, at_once=1):
        """The same by chunks, the last one filled up with other classes that are masked."""
        scene = self.prepare(self.parameters)
        mask = np.ones(text.shape[:2], bool) if mask is None else mask
        missing = -text.shape[1] % length
        text = np.concatenate([text, random(9, 1, missing, text.shape[2])], axis=1)
        mask = np.pad(mask, ((0, 0), (0, missing)))
        chunks = [
            Chunk(text[:, first : first + length], mask[:, first : first + length])
            for first in range(0, text.shape[1], length)
        ]
        calls = []

        def collect(*rest, keep):
            maps, total = self.collect(self.parameters, scene, *rest)
            calls.append(rest[2] is None)
            return maps if keep else None, total

        nothing = no_sums(self.config.late, scene)
        layers = self.config.late.layers if self.config.late.enabled else 0
        decode = partial(self.decode, self.parameters, scene)
        run = decode_chunks(collect, decode, chunks, nothing, layers, keep=keep, at_once=at_once)
        logits = np.concatenate(list(run), axis=1)[:, : mask.shape[1] - missing]
        assert sum(calls) == (len(chunks) if keep and layers else layers * len(chunks)), "kept, or computed anew"
        return logits


def close(ours, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def head():
    return Head(changed("late", **LATE), (4, 5), images=2)


@pytest.fixture
def text():
    return random(5, 1, CLASSES, 64)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize("length", [LENGTH, *(pytest.param(length, marks=pytest.mark.slow) for length in (1, 7))])
def test_chunks_of_any_length_give_what_all_at_once_gives(head, text, length, keep):
    mask = np.arange(CLASSES)[None] < REAL
    ours, expected = head.chunked(text, length, mask, keep=keep), head.whole(text, mask)
    close(ours[:, :REAL], expected[:, :REAL])


@pytest.mark.parametrize("keep", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["kept", "anew"])
@pytest.mark.parametrize(
    "config",
    [
        changed("late", pooling=2, doubled_residual=True, early=EARLY),
        pytest.param(changed("late", enabled=False, early=EARLY), marks=pytest.mark.slow),
        pytest.param(
            changed("decoder", correlation_skip=True, spe="none", correlation="local", early=EARLY),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["pooled", "without late refinement", "without guidance"],
)
def test_options_of_the_head(config, text, keep):
    head = Head(config, (4, 5))
    close(head.chunked(text, 4, keep=keep), head.whole(text))


def test_bfloat16_maps_and_float32_sums(text):
    head = Head(changed("late", dtype="bfloat16", early=EARLY), (4, 5))
    scene = head.prepare(head.parameters)
    nothing = no_sums(head.config.late, scene)
    maps, sums = head.collect(head.parameters, scene, Chunk(text, np.ones((1, CLASSES), bool)), (), None, nothing)
    assert maps.dtype == jnp.bfloat16
    assert {part.dtype for part in sums} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
def test_bfloat16_is_near_float32(head, text, keep):
    half = Head(changed("late", dtype="bfloat16", **LATE), (4, 5), images=2)
    ours = half.chunked(text, LENGTH, keep=keep)
    assert ours.dtype == np.float32
    close(ours, head.whole(text), 0.1)


@pytest.fixture(scope="module")
def small():
    return Head(changed("late", early=EARLY), (2, 2))


@pytest.mark.parametrize("by_chunks", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["by chunks", "at once"])
@pytest.mark.parametrize(("name", "classes", "length"), [("head", 3, LENGTH), ("small", 847, 121)])
def test_permuting_the_classes_permutes_the_logits(request, name, classes, length, by_chunks):
    head = request.getfixturevalue(name)
    text = random(6, 1, classes, 64)
    order = np.random.default_rng(0).permutation(classes)
    run = partial(head.chunked, length=length, keep=False) if by_chunks else head.whole
    straight, permuted = run(text), run(text[:, order])
    assert np.abs(permuted - straight).max() > 0.1 * np.abs(straight).max()
    close(permuted, straight[:, order])


def test_another_class_is_heard_only_through_the_class_attention(head, text):
    """Its values: with the value projections at zero the attention says 0 to every class, whoever else is listed."""
    fewer = text[:, :-1]
    silent = {
        name: jnp.zeros_like(value)
        for name, value in head.parameters.items()
        if "late/classes" in name and "attention/value" in name
    }
    assert len(silent) == 4, "kernel and bias of both layers"
    with_it, without = head.whole(text)[:, :-1], head.whole(fewer)
    assert np.abs(with_it - without).max() > 1e-3 * np.abs(without).max()
    close(head.whole(text, **silent)[:, :-1], head.whole(fewer, **silent))
    assert np.abs(head.whole(fewer, **silent) - without).max() > 1e-3 * np.abs(without).max()


def test_a_class_that_is_masked_in_the_sums_is_not_heard(head, text):
    mask = np.arange(CLASSES)[None] < REAL
    close(head.chunked(text, LENGTH, mask, keep=True)[:, :REAL], head.whole(text[:, :REAL]))


@pytest.mark.parametrize(
    ("options", "possible"),
    [({}, True), ({"class_attention": "full"}, False), ({"pad_classes": 9}, True), ({"max_classes": 9}, False)],
)
def test_what_can_run_by_chunks(options, possible):
    assert can_chunk(changed("late", **options)) == possible
    assert can_chunk(changed("late", enabled=False, **options))


def test_bytes_kept_between_two_passes():
    config = changed("late", dim=128, dtype="bfloat16")
    assert kept_bytes(config, 847, 24 * 24) == 847 * 576 * 128 * 2
    assert kept_bytes(changed("late", enabled=False), 847, 24 * 24) == 0


def test_full_attention_some_positions_after_the_others(monkeypatch):
    attention = late_refinement.ClassAttention(8, 2, "full", 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attention)
    x, guidance = random(0, 2, CLASSES, 3, 5, 8), random(1, 2, CLASSES, 4)
    mask = np.arange(CLASSES) < np.array([REAL, CLASSES])[:, None]

    def run(state):
        return nnx.merge(graph, state)(x, guidance, x, guidance, mask)

    at_once = compiled(run)(state)
    monkeypatch.setattr(late_refinement, "FULL_ATTENTION_SCORES", 4 * 2 * CLASSES**2)  # 4 of 30 positions
    assert "scan" in str(jax.make_jaxpr(lambda state: run(state))(state))
    close(compiled(lambda state: run(state))(state), at_once)


@pytest.mark.parametrize("keep", [False, True])
def test_chunks_on_threads_give_what_they_give_one_after_the_other(head, text, keep):
    mask = np.arange(CLASSES)[None] < REAL
    alone, together, too_many = (head.chunked(text, LENGTH, mask, keep=keep, at_once=count) for count in (1, 2, 50))
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(too_many, alone)


def test_an_error_on_a_thread_arrives():
    def decode(chunk, sums, kept):
        if chunk == 4:
            raise ValueError("chunk 4")
        return chunk

    results = decode_chunks(None, decode, range(7), None, 0, keep=False, at_once=2)
    with pytest.raises(ValueError, match="chunk 4"):
        list(results)


@pytest.mark.parametrize("keep", [False, True])
def test_a_long_list_holds_no_more_arrays_than_a_short_one(head, keep):
    scene = head.prepare(head.parameters)
    nothing = no_sums(head.config.late, scene)
    chunk = Chunk(random(0, 1, LENGTH, 64), np.ones((1, LENGTH), bool))
    held = []

    def collect(*rest, keep):
        maps, total = head.collect(head.parameters, scene, *rest)
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        return maps if keep else None, total

    most = []
    for chunks in (3, 12):
        held.clear()
        run = decode_chunks(
            collect, partial(head.decode, head.parameters, scene), chunks * [chunk], nothing, 2, keep=keep
        )
        for _ in run:
            held.append(sum(x.nbytes for x in jax.live_arrays()))
        most.append(max(held))
    one = kept_bytes(head.config, LENGTH, 2 * 4 * 5)
    assert most[1] - most[0] == pytest.approx((12 - 3) * one if keep else 0, abs=one)
