"""The engine: nothing lost, nothing missing, nothing twice."""

import dataclasses

import numpy as np
import pytest

from dinov3seg_jax.convert.tables.dinov3 import BLOCKS
from dinov3seg_jax.convert.tables.rules import Fill, apply_rules, drop, plan_rules, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import linear, linear_guided, transposed_convolution
from dinov3seg_jax.errors import UserError

ROWS = (rule("norm", "scale"), rule(r"layer\.(?P<layer>\d+)\.weight", "blocks/kernel", linear), drop("unused"))
EXPECTED = {"scale": (3,), "blocks/kernel": (2, 4, 3)}


def source(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    good = {"norm": np.ones(3), "unused": np.ones(1)} | {f"layer.{n}.weight": np.full((3, 4), n) for n in (1, 0)}
    merged = good | {name.replace("_", "."): value for name, value in changes.items()}
    return {name: value for name, value in merged.items() if value is not None}


def test_blocks_are_stacked_in_order_and_everything_is_float32():
    converted = apply_rules(source(), ROWS, EXPECTED)
    assert {name: value.shape for name, value in converted.items()} == EXPECTED
    np.testing.assert_array_equal(converted["blocks/kernel"][:, 0, 0], [0, 1])
    assert {value.dtype for value in converted.values()} == {np.dtype(np.float32)}


def test_misfits_name_both_sides():
    with pytest.raises(UserError, match=r"nothing reads: extra; parameters without a tensor: scale"):
        apply_rules(source(norm=None, extra=np.ones(2)), ROWS, EXPECTED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": np.ones(4)}, r"wrong shapes: scale \(4,\) instead of \(3,\)"),
        ({"norm": np.array([1, np.nan, 1])}, "'norm' of the source holds a NaN"),
        ({"norm": np.array([1, np.inf, 1])}, "'norm' of the source holds a NaN or an infinite value"),
        ({"layer_0_weight": None}, "parameters without a tensor: blocks/kernel of block 0"),
        ({"layer_1_weight": None}, "parameters without a tensor: blocks/kernel of block 1"),
        ({"layer_2_weight": np.ones((3, 4))}, "parameters that the model lacks: blocks/kernel of block 2"),
        ({"layer_0_weight": np.ones((3, 5))}, r"wrong shapes: blocks/kernel of block 0 \(5, 3\) instead of \(4, 3\)"),
    ],
)
def test_bad_sources(changes, message):
    with pytest.raises(UserError, match=message):
        apply_rules(source(**changes), ROWS, EXPECTED)


def test_a_parameter_filled_twice():
    with pytest.raises(UserError, match="fills 'scale' a second time"):
        apply_rules(source(old=np.ones(3)), (*ROWS, rule("old", "scale")), EXPECTED)


def test_a_parameter_that_the_model_lacks():
    with pytest.raises(UserError, match="parameters that the model lacks: scale"):
        apply_rules(source(), ROWS, {"blocks/kernel": (2, 4, 3)})


def test_fills_are_for_what_is_left():
    rows = (*ROWS, Fill("scale|shift", lambda shape: np.full(shape, 7, np.float32)))
    converted = apply_rules(source(), rows, EXPECTED | {"shift": (2,), "none of these": (0, 5)})
    np.testing.assert_array_equal(converted["scale"], 1)
    np.testing.assert_array_equal(converted["shift"], 7)
    assert converted["none of these"].shape == (0, 5)


def test_prefixes():
    names = {f"model/{name}": shape for name, shape in EXPECTED.items()}
    given = {f"module.{key}": value for key, value in source().items()}
    assert apply_rules(given, prefixed(ROWS, source=r"module\.", target="model/"), names).keys() == names.keys()


@pytest.mark.parametrize("mask", [None, np.array([1, 1, 0, 0, 1, 1])])
def test_fused_biases_are_masked_and_split(mask):
    bias = np.arange(1, 7)
    given = {"blocks.0.attn.qkv.bias": bias} | ({} if mask is None else {"blocks.0.attn.qkv.bias_mask": mask})
    names = {f"blocks/attention/{part}/bias": (1, 2) for part in ("query", "key", "value")}
    converted = apply_rules(given, BLOCKS, names)
    expected = bias if mask is None else bias * mask
    np.testing.assert_array_equal(np.concatenate([converted[name][0] for name in names]), expected)


def test_guided_layers_are_split_after_the_own_channels():
    own, guidance = linear_guided(np.arange(10).reshape(2, 5))
    np.testing.assert_array_equal(own, [[0, 5], [1, 6]])
    np.testing.assert_array_equal(guidance, [[2, 7], [3, 8], [4, 9]])
    assert len(linear_guided(np.eye(2))) == 1


def test_transposed_convolutions_put_the_outputs_last():
    (kernel,) = transposed_convolution(np.arange(24).reshape(1, 6, 2, 2))
    np.testing.assert_array_equal(kernel.reshape(2, 2, 6)[1, 0], 4 * np.arange(6) + 2)


def test_a_block_beyond_those_of_a_stack():
    row = dataclasses.replace(rule(r"blocks\.(?P<layer>\d+)\.scale", "scale"), layers=(0, 2))
    with pytest.raises(
        UserError, match=r"'blocks\.1\.scale' of the source belongs to block 1, which the model does not"
    ):
        plan_rules({"blocks.1.scale": (4,)}, [row], {"scale": (2, 4)})
