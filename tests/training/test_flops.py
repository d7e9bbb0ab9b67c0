"""Counted operations against hand values and XLA's own analysis."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from dinov3seg_jax.training.chips import peak_flops
from dinov3seg_jax.training.flops import as_counted, count_flops, count_traced
from tests.tiny import MODEL

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolve(x, kernel, **options):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **({"window_strides": (1, 1), "padding": "SAME"} | options),
    )


def test_a_matrix_product():
    assert count_flops(jnp.dot, zeros(3, 5), zeros(5, 7)) == 2 * 3 * 5 * 7


def test_a_batched_product_over_two_axes():
    count = count_flops(lambda a, b: jnp.einsum("bijk,bjkl->bil", a, b), zeros(2, 3, 4, 5), zeros(2, 4, 5, 6))
    assert count == 2 * 2 * 3 * 4 * 5 * 6


def test_elementwise_work_is_left_out():
    assert count_flops(lambda x: jax.nn.softmax(jnp.exp(x)).sum(), MATRIX) == 0


def test_a_convolution():
    count = count_flops(convolve, zeros(2, 10, 12, 3), zeros(5, 5, 3, 4))
    assert count == 2 * (2 * 10 * 12 * 4) * (5 * 5 * 3)


def test_a_strided_convolution_counts_its_outputs():
    strided = {"window_strides": (4, 4), "padding": "VALID"}
    count = count_flops(lambda x, k: convolve(x, k, **strided), zeros(1, 16, 16, 3), zeros(4, 4, 3, 8))
    assert count == 2 * (4 * 4 * 8) * (4 * 4 * 3)


def test_a_grouped_convolution_counts_each_group_once():
    count = count_flops(lambda x, k: convolve(x, k, feature_group_count=6), zeros(1, 5, 5, 6), zeros(3, 3, 1, 6))
    assert count == 2 * (5 * 5 * 6) * 9


def test_zeros_between_the_inputs_of_a_dilated_convolution_are_not_counted():
    options = {"lhs_dilation": (2, 2), "padding": [(1, 2), (1, 2)]}
    plain, dilated = (
        count_flops(lambda x, k, options=o: convolve(x, k, **options), zeros(1, side, side, 4), zeros(2, 2, 4, 4))
        for o, side in (({"padding": [(1, 2), (1, 2)]}, 8), (options, 8))
    )
    assert plain == 2 * (10 * 10 * 4) * 16
    assert dilated == 2 * (17 * 17 * 4) * 16 // 4


def test_the_body_of_a_scan_counts_each_time_it_runs():
    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    assert count_flops(scanned, MATRIX) == 5 * PRODUCT
    assert count_flops(jax.jit(lambda x: scanned(scanned(x))), MATRIX) == 10 * PRODUCT


def test_of_a_condition_the_dearest_branch_counts():
    def either(x, flag):
        return jax.lax.cond(flag, lambda: x @ x, lambda: x @ x @ x)

    assert count_flops(either, MATRIX, jax.ShapeDtypeStruct((), bool)) == 2 * PRODUCT


def test_a_gradient_counts_both_passes_and_what_is_recomputed():
    def loss(x, wrap=lambda f: f):
        return wrap(lambda x: jnp.sin(jnp.sin(x @ x) @ x))(x).sum()

    assert count_flops(jax.grad(loss), MATRIX) == 6 * PRODUCT
    assert count_flops(jax.grad(lambda x: loss(x, jax.checkpoint)), MATRIX) in (7 * PRODUCT, 8 * PRODUCT)


def test_an_unrolled_network_agrees_with_xla():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 3, 16)).astype(np.float32)
    weights = [rng.standard_normal((16, 16)).astype(np.float32) for _ in range(4)]

    def loss(weights, image):
        x = convolve(image, kernel, padding="VALID")
        for weight in weights:
            x = jax.nn.relu(x @ weight)
        return x.sum()

    image = rng.standard_normal((2, 34, 34, 3)).astype(np.float32)
    analysis = jax.jit(jax.grad(loss)).lower(weights, image).compile().cost_analysis()
    assert count_flops(jax.grad(loss), weights, image) == pytest.approx(analysis["flops"], rel=0.1)


def test_what_is_traced_already_counts_the_same():
    assert count_traced(jax.jit(jnp.dot).trace(MATRIX, MATRIX).jaxpr) == PRODUCT


def test_a_model_counts_as_one_that_recomputes_nothing():
    saving = dataclasses.replace(
        MODEL,
        remat=True,
        attention="cudnn",
        early=dataclasses.replace(MODEL.early, remat=True),
        late=dataclasses.replace(MODEL.late, remat=True),
        decoder=dataclasses.replace(MODEL.decoder, remat=True),
    )
    assert as_counted(saving) == as_counted(MODEL) == MODEL


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_known_devices(kind, tera):
    assert peak_flops(kind) == (tera and tera * 1e12)


def test_the_body_of_a_shard_map_is_counted_on_every_device():
    mesh = AbstractMesh((4, 2), ("data", "model"), (AxisType.Auto, AxisType.Auto))
    split = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count_flops(split, zeros(16, 8), zeros(8, 8)) == 8 * (2 * 4 * 8 * 8)  # both columns do the same


def test_a_kernel_is_counted_as_often_as_its_grid_has_steps():
    def body(a, b, out):
        out[...] = a[...] @ b[...]

    rows, whole = pl.BlockSpec((8, 8), lambda i: (i, 0)), pl.BlockSpec((8, 8), lambda i: (0, 0))
    multiply = pl.pallas_call(body, grid=(3,), in_specs=[rows, whole], out_specs=rows, out_shape=zeros(24, 8))
    assert count_flops(multiply, zeros(24, 8), MATRIX) == 3 * PRODUCT
