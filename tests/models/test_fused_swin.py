"""The fused Swin block computes what the block does step by step, forwards and backwards."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import Config, LateRefinementConfig
from dinov3seg_jax.costs.topology import topology_mesh
from dinov3seg_jax.models import fused_swin, kernel_parts
from dinov3seg_jax.models.late_refinement import SpatialRefinementBlock
from dinov3seg_jax.training.sharding import batch_sharding, on_mesh, replicated
from tests.models.interpreting import close, interpret
from tests.models.tiny import random

DIM, GUIDANCE, WINDOW = 128, 8, 4


def block(kernel, dtype=jnp.float32, guidance=GUIDANCE):
    config = LateRefinementConfig(dim=DIM, heads=4, window=WINDOW, kernel=kernel)
    module = SpatialRefinementBlock(config, guidance, dtype=dtype, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(module)
    shifted = jax.tree.map(lambda leaf: leaf + 0.1 * random(leaf.size, *leaf.shape), parameters)  # no zeros and ones
    return graph, shifted


def loss(graph, weight, parameters, x, guidance):
    out = nnx.merge(graph, parameters)(x, guidance)
    return jnp.sum(out.astype(jnp.float32) * weight), out


def with_gradients(kernel, x, guidance):
    graph, parameters = block(kernel, x.dtype, GUIDANCE if guidance is not None else 0)
    weight = random(9, *x.shape)
    wanted = (0, 1) if guidance is None else (0, 1, 2)
    run = jax.value_and_grad(functools.partial(loss, graph, weight), wanted, has_aux=True)
    (_, out), gradients = jax.jit(run)(parameters, x, guidance)
    return out, gradients


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels themselves, wherever the tests run, and which of them ran."""
    return interpret(monkeypatch, fused_swin)


@pytest.mark.parametrize(
    ("shape", "guided"), [pytest.param((2, 5, 6, 9), True, marks=pytest.mark.slow), ((1, 4, 8, 8), False)], ids=str
)
def test_the_kernels_compute_the_block_and_its_gradients(interpreted, shape, guided):
    x = random(1, *shape, DIM)
    guidance = random(2, shape[0], *shape[2:], GUIDANCE) if guided else None
    fused = with_gradients("fused", x, guidance)
    assert sorted(interpreted) == ["run"] * 2 + ["run_backward"] * 2  # two blocks
    close(fused, with_gradients("xla", x, guidance), 5e-5)
    assert len(interpreted) == 4


@pytest.mark.slow
def test_the_kernels_lose_no_more_in_bfloat16_than_the_steps_do(interpreted):
    x, guidance = (random(1, 1, 5, 8, 8, DIM), random(2, 1, 8, 8, GUIDANCE))
    exact = jax.tree.leaves(with_gradients("xla", x, guidance))

    def lost(kernel):
        narrow = jax.tree.leaves(with_gradients(kernel, *(part.astype(jnp.bfloat16) for part in (x, guidance))))
        pairs = zip(narrow, exact, strict=True)
        return np.array([np.linalg.norm(np.asarray(own, np.float32) - other) for own, other in pairs])

    fused, steps = lost("fused"), lost("xla")
    assert interpreted
    assert np.linalg.norm(fused) < 1.1 * np.linalg.norm(steps)
    assert (fused < 2 * steps + 1e-3).all()


@pytest.mark.parametrize(
    ("shape", "interpret"),
    [((1, 2, 3, 3, 128), True), ((1, 2, 8, 8, 64), True), ((1, 2, 8, 8, 128), False)],
    ids=["cells", "channels", "no TPU"],
)
def test_what_the_kernels_cannot_do_goes_step_by_step(monkeypatch, shape, interpret):
    monkeypatch.setattr(kernel_parts, "INTERPRET", interpret)
    monkeypatch.setattr(fused_swin, "swin_block", lambda *_: pytest.fail("the kernel was called"))
    config = LateRefinementConfig(dim=shape[-1], heads=4, window=WINDOW, kernel="fused")
    block = SpatialRefinementBlock(config, 0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert block(random(1, *shape), None).shape == shape


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_block_compiles_for_tpus_as_one_kernel_each_way(topology):
    mesh = topology_mesh(Config(), topology)
    config = LateRefinementConfig(kernel="fused")
    module = nnx.eval_shape(
        lambda: SpatialRefinementBlock(config, GUIDANCE, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)).windowed
    )
    graph, parameters = nnx.split(module)
    x = jax.ShapeDtypeStruct((mesh.size, 171, 24, 24, config.dim), jnp.bfloat16)

    def total(parameters, x):
        return nnx.merge(graph, parameters).refine(x, None).astype(jnp.float32).sum()

    gradient = jax.jit(on_mesh(jax.grad(total, (0, 1)), mesh), in_shardings=(replicated(mesh), batch_sharding(mesh)))
    text = gradient.lower(parameters, x).compile().as_text()
    assert len(re.findall(r"= .* custom-call\(.*tpu_custom_call", text)) == 1  # the sum does not ask for the output
