"""The fused class block computes what the block does step by step, forwards and backwards."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import Config, LateRefinementConfig
from dinov3seg_jax.costs.hlo import Program
from dinov3seg_jax.costs.topology import topology_mesh
from dinov3seg_jax.models import fused_classes, kernel_parts
from dinov3seg_jax.models.late_refinement import ClassRefinementBlock
from dinov3seg_jax.training.sharding import batch_sharding, on_mesh, replicated
from tests.models.interpreting import close, interpret
from tests.models.tiny import compiled, random

DIM, GUIDANCE = 128, 8
SHAPE = (1, 5, 4, 6)  # 24 positions: fewer than a step of the kernel has


def block(kernel, dtype=jnp.float32, guidance=GUIDANCE, **options):
    config = LateRefinementConfig(dim=DIM, heads=4, class_kernel=kernel, **options)
    module = ClassRefinementBlock(config, guidance, dtype=dtype, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(module)
    shifted = jax.tree.map(lambda leaf: leaf + 0.1 * random(leaf.size, *leaf.shape), parameters)  # no zeros and ones
    return graph, shifted


def loss(graph, weight, class_mask, parameters, x, guidance):
    out = nnx.merge(graph, parameters)(x, guidance, class_mask)
    return jnp.sum(out.astype(jnp.float32) * weight), out


def with_gradients(kernel, shape=SHAPE, dtype=jnp.float32, guided=True, absent=0, **options):
    x, guidance = random(1, *shape, DIM), random(2, *shape[:2], GUIDANCE)
    class_mask = np.arange(shape[1])[None].repeat(shape[0], 0) < shape[1] - absent if absent else None
    graph, parameters = block(kernel, dtype, GUIDANCE if guided else 0, **options)
    given = (jnp.asarray(x, dtype), jnp.asarray(guidance, dtype) if guided else None)
    run = functools.partial(loss, graph, random(9, *x.shape), class_mask)
    wanted = (0, 1, 2) if guided else (0, 1)
    (_, out), gradients = compiled(jax.value_and_grad(run, wanted, has_aux=True))(parameters, *given)
    return out, gradients


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels themselves, wherever the tests run, and which of them ran."""
    return interpret(monkeypatch, fused_classes)


@pytest.mark.parametrize(
    "case",
    [
        {"absent": 2},
        pytest.param({"guided": False}, marks=pytest.mark.slow),
        pytest.param({"shape": (2, 17, 6, 11)}, marks=pytest.mark.slow),  # two examples, steps and tiles of classes
        pytest.param({"shape": (1, 3, 9, 8), "pooling": 2}, marks=pytest.mark.slow),
        pytest.param({"shape": (1, 16, 4, 8), "doubled_residual": True}, marks=pytest.mark.slow),  # all tiles filled
        pytest.param({"shape": (1, 90, 2, 2), "absent": 20}, marks=pytest.mark.slow),  # a step in two parts
    ],
    ids=str,
)
def test_the_kernels_compute_the_block_and_its_gradients(interpreted, case):
    fused = with_gradients("fused", **case)
    assert interpreted == ["run", "run_backward"]
    close(fused, with_gradients("xla", **case), 2e-6)
    assert len(interpreted) == 2


@pytest.mark.slow
def test_the_kernels_lose_no_more_in_bfloat16_than_the_steps_do(interpreted):
    exact = jax.tree.leaves(with_gradients("xla"))

    def lost(kernel):
        pairs = zip(jax.tree.leaves(with_gradients(kernel, dtype=jnp.bfloat16)), exact, strict=True)
        return np.array([np.linalg.norm(np.asarray(own, np.float32) - other) for own, other in pairs])

    fused, steps = lost("fused"), lost("xla")
    assert interpreted
    assert np.linalg.norm(fused) < 1.1 * np.linalg.norm(steps)
    assert (fused < 2 * steps + 1e-3).all()


@pytest.mark.slow
def test_absent_classes_are_not_heard(interpreted):
    graph, parameters = block("fused")
    x, guidance = jnp.asarray(random(1, *SHAPE, DIM)), jnp.asarray(random(2, *SHAPE[:2], GUIDANCE))
    class_mask = np.array([[True, True, True, False, False]])
    run = compiled(lambda x: nnx.merge(graph, parameters)(x, guidance, class_mask)[:, :3])
    np.testing.assert_array_equal(run(x), run(x.at[:, 3:].add(5.0)))
    assert np.abs(run(x) - run(x.at[:, 2].add(5.0))).max() > 1e-3
    assert interpreted == ["run"]


@pytest.mark.parametrize(
    ("shape", "options", "interpret"),
    [
        ((1, 2, 3, 3, 256), {}, True),
        ((1, 425, 1, 1, 128), {}, True),
        ((1, 2, 3, 3, 128), {"class_attention": "full"}, True),
        ((1, 2, 3, 3, 128), {"pad_classes": 3}, True),
        ((1, 2, 3, 3, 128), {}, False),
    ],
    ids=["channels", "classes", "softmax", "learned entries", "no TPU"],
)
def test_what_the_kernels_cannot_do_goes_step_by_step(monkeypatch, shape, options, interpret):
    monkeypatch.setattr(kernel_parts, "INTERPRET", interpret)
    monkeypatch.setattr(fused_classes, "class_block", lambda *_: pytest.fail("the kernel was called"))
    config = LateRefinementConfig(dim=shape[-1], heads=4, class_kernel="fused", **options)
    module = nnx.eval_shape(lambda: ClassRefinementBlock(config, GUIDANCE, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(module)
    given = (jax.ShapeDtypeStruct(some, jnp.float32) for some in (shape, (*shape[:2], GUIDANCE)))
    out = jax.eval_shape(lambda parameters, x, guidance: nnx.merge(graph, parameters)(x, guidance), parameters, *given)
    assert out.shape == shape


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("topology", "classes"), [("v5e:2x2", 171), ("v5p:2x2x1", 171), ("v5p:2x2x1", 848), ("v6e:2x2", 171)]
)
def test_the_block_compiles_for_tpus_as_one_kernel_each_way(topology, classes):
    mesh = topology_mesh(Config(), topology)
    config = LateRefinementConfig(class_kernel="fused")
    module = nnx.eval_shape(lambda: ClassRefinementBlock(config, GUIDANCE, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(module)
    x = jax.ShapeDtypeStruct((mesh.size, classes, 24, 24, config.dim), jnp.bfloat16)
    guidance = jax.ShapeDtypeStruct((mesh.size, classes, GUIDANCE), jnp.bfloat16)

    def both(parameters, x, guidance, change):
        out, pull = jax.vjp(lambda *given: nnx.merge(graph, given[0])(*given[1:]), parameters, x, guidance)
        return out, pull(change)

    at = (replicated(mesh), *[batch_sharding(mesh)] * 3)
    text = jax.jit(on_mesh(both, mesh), in_shardings=at).lower(parameters, x, guidance, x).compile().as_text()
    assert len(re.findall(r"= .* custom-call\(.*tpu_custom_call", text)) == 2
    once = 5 * classes * 24 * 24 * config.dim * 2  # bytes: of x and y; then of x and both changes
    assert Program(text).traffic().memory < 1.2 * once
