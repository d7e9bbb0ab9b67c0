"""Every kernel of attention computes what the plain one does, and the towers use the one that is chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models import attention, kernels, splash
from dinov3seg_jax.models.attention import LONG, attend
from dinov3seg_jax.models.graph import bind, build
from tests.closeness import assert_close
from tests.models.tiny import TINY

# Scores reach a hundred, whose last place is a hundred of those of 1, and so much the weights may be off, relatively.
# bfloat16 only rounds what float32 computed; scores in bfloat16 would be five units off and more.
ULPS = 64
TYPES = pytest.mark.parametrize(("dtype", "ulps"), [(jnp.float32, ULPS), (jnp.bfloat16, 4)])


def drawn(dtype=jnp.float32, tokens=LONG + 3):
    """Query, key and value [b, n, heads, d]; some scores are large."""
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(key, (2, tokens, 3, 8), dtype) for key in keys)
    return query * 20, key, value


@pytest.fixture(params=[0, attention.SCORES_OF_AN_IMAGE], ids=["by head", "by image"])
def parts(request, monkeypatch):
    """What a CPU attends in, one after the other."""
    monkeypatch.setattr(attention, "SCORES_OF_AN_IMAGE", request.param)


@pytest.mark.usefixtures("parts")
@TYPES
def test_long_sequences(dtype, ulps):
    arrays = drawn(dtype)
    found = jax.jit(attend)(*arrays)
    assert found.dtype == dtype
    expected = jax.nn.dot_product_attention(*arrays)
    assert_close(found, expected, ulps)


@pytest.mark.usefixtures("parts")
def test_gradients_of_long_sequences():
    def total(attention, arrays):
        return (attention(*arrays) ** 2).sum()

    arrays = drawn()
    found, expected = (
        jax.jit(jax.grad(lambda arrays, attention=attention: total(attention, arrays)))(arrays)
        for attention in (attend, jax.nn.dot_product_attention)
    )
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-4 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize(("tokens", "in_parts"), [(LONG - 1, False), (LONG, jax.default_backend() == "cpu")])
def test_only_long_sequences_on_a_cpu_go_in_parts(monkeypatch, tokens, in_parts):
    monkeypatch.setattr(attention, "_attend_in_parts", lambda query, key, value: jnp.zeros_like(value))
    assert (not attend(*drawn(tokens=tokens)).any()) == in_parts


@pytest.mark.parametrize("tokens", [LONG - 1, LONG + 3])
def test_xla_is_the_plain_form_everywhere(monkeypatch, tokens):
    monkeypatch.setattr(attention, "_attend_in_parts", None)  # it would be called on a CPU
    arrays = drawn(tokens=tokens)
    plain = attend(*arrays, kernel="xla")
    np.testing.assert_array_equal(plain, attention.dot_product_attention(*arrays))
    assert_close(plain, jax.nn.dot_product_attention(*arrays), ULPS)


@TYPES
def test_pairs_that_are_not_allowed(dtype, ulps):
    arrays = drawn(dtype, tokens=9)
    allowed = np.random.default_rng(0).random((2, 1, 9, 9)) < 0.5
    expected = jax.nn.dot_product_attention(*arrays, mask=jnp.asarray(allowed))
    for mask in (allowed, jnp.asarray(allowed)):
        found = attention.dot_product_attention(*arrays, attention.penalty(mask))
        assert found.dtype == dtype
        assert_close(found, expected, ulps)


def test_axes_before_those_of_attention():
    query, key, value = (part.reshape(2, 3, 4, 3, 8) for part in drawn(tokens=12))
    bias = np.random.default_rng(0).standard_normal((3, 1, 4, 4), np.float32)
    found = attention.dot_product_attention(query, key, value, bias)
    for place in range(3):
        one = jax.nn.dot_product_attention(query[:, place], key[:, place], value[:, place], bias=bias[place][None])
        assert_close(found[:, place], one, ULPS)


@pytest.mark.parametrize("kernel", ["auto", "xla", "portable"])
def test_a_causal_token_does_not_see_those_that_follow(kernel):
    query, key, value = drawn(tokens=7)
    changed = attend(query, key.at[:, 4:].add(1), value.at[:, 4:].add(1), causal=True, kernel=kernel)
    expected = attend(query, key, value, causal=True, kernel=kernel)
    np.testing.assert_array_equal(changed[:, :4], expected[:, :4])
    assert (changed[:, 4:] != expected[:, 4:]).any()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN is a GPU's")
@pytest.mark.parametrize("kernel", ["cudnn", "auto"])
@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_agrees_with_plain_attention(causal, kernel):
    assert kernels.takes_cudnn(jnp.bfloat16, 64, 581)
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (2, 581, 4, 64), jnp.bfloat16) for key in keys]

    def total(kernel, arrays):
        attended = attend(*arrays, causal=causal, kernel=kernel).astype(jnp.float32)
        return (attended**2).sum(), attended

    (found, ours), (expected, plain) = (
        jax.jit(jax.grad(lambda arrays, kernel=kernel: total(kernel, arrays), has_aux=True))(arrays)
        for kernel in (kernel, "xla")
    )
    for one, other in zip((ours, *found), (plain, *expected), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), atol=2e-2 * scale)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "keys"), [(7, 7), (6, 7), (7, 6), (6, 6)])
def test_cudnn_sees_even_numbers_of_tokens_alone(monkeypatch, tokens, keys, causal):
    """JAX refuses others when they train; its own kernel stands in for cuDNN's, which only GPUs have."""
    inside = jax.nn.dot_product_attention

    def stand_in(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        assert not query.shape[1] % 2
        assert not key.shape[1] % 2
        return inside(query, key, value, implementation="xla", **options)

    query, (_, key, value) = drawn(tokens=tokens)[0], drawn(tokens=keys)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)

    def total(arrays, kernel):
        return (kernel(*arrays, causal=causal) ** 2).sum()

    with jax.default_matmul_precision("highest"):
        found, expected = (
            jax.jit(jax.value_and_grad(lambda arrays, kernel=kernel: total(arrays, kernel)))((query, key, value))
            for kernel in (kernels.cudnn_attention, functools.partial(attend, kernel="xla"))
        )
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-4 * float(jnp.abs(plain).max()))


def test_cudnn_says_what_it_needs():
    with pytest.raises(UserError, match="^model.attention 'cudnn' needs a GPU and bfloat16, and this is float32 on "):
        attend(*drawn(), kernel="cudnn")


FITS = {"platform": "gpu", "capability": "8.6", "dtype": jnp.bfloat16, "head_dim": 64, "tokens": 581}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": jnp.float16},
        {"head_dim": 128},
        {"capability": "12.0"},
        {"tokens": LONG},
        {"dtype": np.dtype("float16")},
    ],
)
def test_auto_is_cudnn_where_it_fits(change):
    assert kernels.suits_cudnn(**(FITS | change))


@pytest.mark.parametrize(
    "change",
    [
        {"platform": "cpu"},
        {"platform": "tpu", "capability": ""},
        {"capability": "7.5"},
        {"capability": "gfx90a"},  # of AMD
        {"dtype": jnp.float32},
        {"head_dim": 136},
        {"head_dim": 60},
        {"tokens": LONG - 1},
    ],
)
def test_auto_is_plain_where_cudnn_does_not_fit(change):
    assert not kernels.suits_cudnn(**(FITS | change))


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="it works there")
def test_without_cudnn_a_note_says_why_and_plain_attention_goes_on(monkeypatch, capsys):
    arrays = drawn(jnp.bfloat16)
    plain = attend(*arrays, kernel="xla")
    kernels.cudnn_works.cache_clear()
    monkeypatch.setattr(kernels, "suits_cudnn", lambda *_: True)
    jax.jit(attend)(*arrays)
    found = attend(*arrays)
    kernels.cudnn_works.cache_clear()
    printed = capsys.readouterr().err
    assert printed.count("note: cuDNN's attention does not work here (") == 1
    assert_close(found, plain, 4)


@pytest.mark.parametrize(("mesh", "taken"), [((2, 1), True), ((1, 2), False)], ids=["examples", "heads"])
def test_cudnn_is_taken_where_only_examples_are_shared_out(monkeypatch, mesh, taken):
    monkeypatch.setattr(kernels, "suits_cudnn", lambda *_: True)
    monkeypatch.setattr(kernels, "cudnn_works", lambda: True)
    with jax.sharding.use_abstract_mesh(AbstractMesh(mesh, ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
        assert kernels.takes_cudnn(jnp.bfloat16, 64, 581) == taken


def test_auto_uses_cudnn_if_it_is_taken(monkeypatch):
    monkeypatch.setattr(attention, "takes_cudnn", lambda dtype, head_dim, tokens: (head_dim, tokens) == (8, 300))
    monkeypatch.setattr(attention, "cudnn_attention", lambda query, key, value, causal: jnp.full_like(value, 7))
    assert (attend(*drawn(tokens=300)) == 7).all()
    assert not (attend(*drawn(tokens=301)) == 7).all()
    for kernel in ("xla", "portable"):
        assert not (attend(*drawn(tokens=300), kernel=kernel) == 7).all()


@pytest.mark.parametrize(("tokens", "causal"), [(200, False), (77, True)])
def test_splash_agrees_with_plain_attention(monkeypatch, tokens, causal):
    monkeypatch.setattr(kernels, "on_tpu", lambda: True)
    monkeypatch.setattr(splash, "splash_attention", functools.partial(splash.splash_attention, interpret=True))
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (2, tokens, 3, 64)) for key in keys]

    def total(kernel, arrays):
        attended = attend(*arrays, causal=causal, kernel=kernel)
        return (attended**2).sum(), attended

    (found, ours), (expected, plain) = (
        jax.jit(jax.grad(functools.partial(total, kernel), has_aux=True))(arrays) for kernel in ("splash", "xla")
    )
    for one, other in zip((ours, *found), (plain, *expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


def test_splash_says_what_it_needs():
    with pytest.raises(UserError, match="^model.attention 'splash' needs a TPU, and this is "):
        attend(*drawn(), kernel="splash")


def test_splash_leaves_a_batch_that_does_not_divide_to_plain_attention(monkeypatch):
    monkeypatch.setattr(kernels, "on_tpu", lambda: True)
    monkeypatch.setattr(splash, "splash_attention", lambda *_, **__: pytest.fail("it cannot be cut"))
    arrays = drawn()
    plain = attend(*arrays)
    monkeypatch.setattr(attention, "divides", lambda batch: batch != 2)
    np.testing.assert_allclose(attend(*arrays, kernel="splash"), plain, atol=1e-5)


def test_the_towers_use_the_kernel_that_is_chosen(monkeypatch):
    used = []

    def recorded(query, key, value, *, causal=False, kernel="auto"):
        used.append((causal, kernel))
        return value

    monkeypatch.setattr(attention, "attend", recorded)
    graph, described = build(dataclasses.replace(TINY, attention="xla"))

    def encode(parameters, images, names):
        model = bind(graph, parameters)
        return model.encode_text(names), model.encode_patches(images).patches

    names = jax.ShapeDtypeStruct((2, TINY.text.context_length), jnp.int32)
    jax.eval_shape(encode, described, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), names)
    assert used == [(True, "xla"), *[(False, "xla")] * 2]  # text; the backbone; its head
