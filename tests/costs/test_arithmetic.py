"""Products and vector work read off the text of a program, against hand counts."""

import pytest

from dinov3seg_jax.costs.arithmetic import Work, work_of
from dinov3seg_jax.costs.hlo import Program

TILED = "{1,0:T(8,128)}"


def work(operation, left, right="f32[1]", side=128, more=""):
    """Of one operation on %l and %r."""
    text = f"""HloModule m

{more}
ENTRY %main (l: f32[1], r: f32[1]) -> f32[1] {{
  %l = {left} parameter(0)
  %r = {right} parameter(1)
  ROOT %o = {operation}
}}
"""
    program = Program(text)
    known = program.computations["main"]
    return work_of(program, known["o"], known, side)


def product(m, k, n):
    return 2 * m * k * n


@pytest.mark.parametrize(
    ("left", "right", "operation", "flops", "filled"),
    [
        pytest.param(
            "bf16[256,512]", "bf16[512,384]", "bf16[256,384] convolution(%l, %r), dim_labels=bf_io->bf",
            product(256, 512, 384), product(256, 512, 384), id="whole",
        ),
        pytest.param(
            "bf16[300,100]", "bf16[100,40]", "bf16[300,40] convolution(%l, %r), dim_labels=bf_io->bf",
            product(300, 100, 40), product(304, 128, 128), id="sides are filled up",
        ),
        pytest.param(
            "bf16[40,100]", "bf16[100,1000]", "bf16[40,1000] convolution(%l, %r), dim_labels=bf_io->bf",
            product(40, 100, 1000), product(1000, 128, 128), id="the other input stays",
        ),
        pytest.param(
            "f32[5,16,32]", "f32[5,32,8]",
            "f32[5,16,8] dot(%l, %r), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, "
            "rhs_contracting_dims={1}",
            5 * product(16, 32, 8), 5 * product(128, 128, 128), id="five small ones",
        ),
        pytest.param(
            "bf16[10,24,24,64]", "bf16[1,1,64,256]",
            "bf16[10,24,24,256] convolution(%l, %r), window={size=1x1}, dim_labels=b01f_01io->b01f",
            product(10 * 24 * 24, 64, 256), product(10 * 24 * 24, 128, 256), id="places are rows",
        ),
        pytest.param(
            "bf16[2,10,10,64]", "bf16[3,3,64,128]",
            "bf16[2,8,8,128] convolution(%l, %r), window={size=3x3}, dim_labels=b01f_01io->b01f",
            product(128, 9 * 64, 128), product(128, 640, 128), id="taps are one long side",
        ),
        pytest.param(
            "bf16[1,4,1]", "bf16[3,1,1]",
            "bf16[1,4,1] convolution(%l, %r), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * (3 * 4 - 2), product(128, 128, 128), id="taps on padding are none",
        ),
        pytest.param(
            "bf16[171,24,32]", "bf16[171,24,64]",
            "bf16[24,32,64] convolution(%l, %r), window={size=24 stride=23 lhs_dilate=24}, dim_labels=f0b_i0o->0bf",
            24 * product(32, 171, 64), 24 * product(128, 256, 128), id="a product for each place",
        ),
        pytest.param(
            "bf16[1,8,8,512]", "bf16[3,3,1,512]",
            "bf16[1,6,6,512] convolution(%l, %r), window={size=3x3}, dim_labels=b01f_01io->b01f, "
            "feature_group_count=512",
            512 * product(36, 9, 1), 512 * product(128, 128, 128), id="channel by channel",
        ),
    ],
)  # fmt: skip
def test_products(left, right, operation, flops, filled):
    found = work(operation, left, right)
    assert (found.flops, found.filled, found.vector) == (flops, filled, 0)


@pytest.mark.parametrize(("precision", "passes"), [("highest", 6), ("high", 3), ("default", 1)])
def test_float32_passes_the_unit_several_times(precision, passes):
    text = f"convolution(%l, %r), dim_labels=bf_io->bf, operand_precision={{{precision},{precision}}}"
    whole = product(128, 128, 128)
    assert work(f"f32[128,128] {text}", "f32[128,128]", "f32[128,128]") == Work(whole, passes * whole)
    assert work(f"f32[128,128] {text}", "bf16[128,128]", "bf16[128,128]") == Work(whole, whole)


def test_a_larger_unit_is_harder_to_fill():
    text = "bf16[256,128] convolution(%l, %r), dim_labels=bf_io->bf"
    assert work(text, "bf16[256,256]", "bf16[256,128]", side=256).filled == 2 * product(256, 256, 128)


@pytest.mark.parametrize(
    ("operation", "vector"),
    [
        (f"f32[8,100]{TILED} add(%l, %l)", 8 * 128),  # a register is filled up
        (f"f32[8,128]{TILED} exponential(%l)", 4 * 8 * 128),
        ("f32[8]{0:T(128)} reduce(%l, %r), dimensions={1}, to_apply=%sum", 8 * 128),
        (f"f32[8,128]{TILED} copy(%l)", 0),
        (f"f32[8,128]{TILED} broadcast(%r)", 0),
    ],
)
def test_vector_work(operation, vector):
    assert work(operation, f"f32[8,128]{TILED}") == Work(vector=vector)


def test_a_fusion_is_what_is_inside():
    inside = """%inner (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %e = f32[8,128]{1,0} tanh(%p)
}

%outer (q: f32[8,128]) -> f32[8,128] {
  %q = f32[8,128]{1,0} parameter(0)
  %f = f32[8,128]{1,0} fusion(%q), kind=kLoop, calls=%inner
  ROOT %c = f32[8,8]{1,0} convolution(%f, %f), dim_labels=bf_oi->bf
}
"""
    found = work("f32[8,128] fusion(%l), kind=kOutput, calls=%outer", "f32[8,128]", more=inside)
    assert found.vector == 4 * 8 * 128
    assert found.flops == product(8, 128, 8)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"cost_estimate":{"bytes_accessed":"7","flops":"50","transcendentals":"3"}}', Work(50, 50, 30)),
        ("{}", Work(silent=1)),
    ],
)
def test_kernels_say_what_they_compute_or_are_counted(said, expected):
    kernel = f'f32[8] custom-call(%l), custom_call_target="tpu_custom_call", backend_config={said}'
    assert work(kernel, "f32[8]") == expected
    assert work(kernel.replace("tpu_custom_call", "ConcatBitcast"), "f32[8]") == Work()
