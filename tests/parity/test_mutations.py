"""The references are sharp: one wrong detail in an otherwise right model exceeds the tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import catseg, dinov3
from dinov3seg_jax.convert.tables.rules import Fill
from dinov3seg_jax.inference.views.local_global import blend_logits
from dinov3seg_jax.models import attention, blocks, decoder, functions, late_refinement, layers
from dinov3seg_jax.models.late_refinement import ClassRefinementBlock, SpatialRefinementBlock
from dinov3seg_jax.models.rope import rope_periods
from dinov3seg_jax.models.vit import VisionTransformer
from dinov3seg_jax.training.losses import sigmoid_cross_entropy as cross_entropy
from tests.parity import aggregator, test_catseg, test_sliding_window, test_zero_shot
from tests.parity.aggregator import late_config
from tests.parity.fixtures import SHIPPED
from tests.parity.official import (
    arrays,
    channels_first,
    channels_last,
    described,
    filled,
    run,
    section,
    state_dict,
    vision_config,
)

CASE = "r48x96"
TOLERANCE = 5e-5
BLOCK_TOLERANCE = 3e-6


def vit_error(name: str, *, epsilon: float | None = None, without: str = "", rows=dinov3.RULES) -> float:
    """Largest error of the final patches, with one detail changed."""
    values = arrays(SHIPPED / f"{name}.npz")
    config = vision_config(described(values, "meta/config_json")["config"])
    source = {key: value for key, value in state_dict(values).items() if not without or not key.endswith(without)}
    vit = filled(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)), source, rows)
    for _, module in nnx.iter_modules(vit):
        if epsilon is not None and isinstance(module, nnx.LayerNorm):
            module.epsilon = epsilon
    (ours,) = run(vit, lambda vit, image: vit(image), channels_last(values[f"in/{CASE}/image"]))
    official = values[f"out/{CASE}/x_norm_patchtokens"]
    return float(np.abs(np.asarray(ours.patches).reshape(official.shape) - official).max())


def test_nothing_changed():
    assert vit_error("vit_tiny_untied_zeromask") < TOLERANCE


@pytest.mark.parametrize("name", ["vit_tiny_7bstyle", "vit_head64"])
def test_epsilon(name):
    assert vit_error(name, epsilon=1e-6) > 100 * TOLERANCE


def test_approximate_gelu(monkeypatch):
    monkeypatch.setattr(blocks, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    assert vit_error("vit_tiny_untied_zeromask") > TOLERANCE


def test_bias_mask_not_applied():
    assert vit_error("vit_tiny_untied_zeromask", without="bias_mask") > 1000 * TOLERANCE


def test_periods_recomputed():
    rows = (*dinov3.RULES, Fill("periods", lambda shape: rope_periods(4 * shape[0], 100.0)))
    assert vit_error("vit_tiny_untied_zeromask", without="periods", rows=rows) > 100 * TOLERANCE


@pytest.mark.parametrize("masked", [True, False])
def test_shift_mask_missing(masked, monkeypatch):
    values = arrays(SHIPPED / "catseg_spatial_block.npz")
    config = described(values, "config")["nonsquare_shift"]
    values = section(values, "nonsquare_shift/")
    if not masked:
        monkeypatch.setattr(late_refinement, "shifted_window_mask", lambda *_: None)
    block = filled(
        lambda: SpatialRefinementBlock(
            late_config(config), config["appearance_guidance_dim"], dtype=jnp.float32, rngs=nnx.Rngs(0)
        ),
        section(values, "w/"),
        catseg.SPATIAL_BLOCK,
    )
    x, guidance = values["in/x"].transpose(0, 2, 3, 4, 1), channels_last(values["in/guidance"])
    official = values["out/y"].transpose(0, 2, 3, 4, 1)
    ours = run(block, lambda block, x, guidance: block(x, guidance), x, guidance)
    error = np.abs(np.asarray(ours) - official).max() / np.abs(official).max()
    assert (error < BLOCK_TOLERANCE) == masked


CUBIC_TOLERANCE = 2e-5
COSINE_TOLERANCE = 5e-6


def other_cubic(antialias):
    return lambda x, *size: jax.image.resize(x, (len(x), *size, x.shape[3]), "cubic", antialias=antialias)


@pytest.mark.parametrize(
    ("resize", "right"),
    [(functions.resize_cubic, True), (other_cubic(antialias=False), False), (other_cubic(antialias=True), False)],
    ids=["ours", "other kernel", "antialiased"],
)
@pytest.mark.parametrize("size", ["up", "down", "16"])
def test_bicubic_resize(resize, right, size):
    values = arrays(SHIPPED / "preprocess.npz")
    official = values[f"out/interp_bicubic_{size}"]
    error = np.abs(channels_first(resize(channels_last(values["in/feat"]), *official.shape[2:])) - official).max()
    assert (error < CUBIC_TOLERANCE) == right


def test_bicubic_stretch_before_the_towers():
    path = SHIPPED / "zeroshot_seg.npz"
    values = arrays(path)
    odd, official = values["in/whole_odd/image"].transpose(1, 2, 0)[None], values["out/whole_odd/head/pred"]
    size = [-(-side // 16) * 16 for side in odd.shape[1:3]]
    (ours,) = test_zero_shot.cosines(path, odd, "head", lambda pixels, _: other_cubic(True)(pixels, *size))
    assert np.abs(ours - official).max() > 100 * COSINE_TOLERANCE


def worst(test, *arguments) -> float:
    """Of all that a parity test compares: the largest error over its tolerance, infinite if it fails otherwise."""
    ratios = []

    def record(what, ours, official, tolerance, *, relative=False):
        scale = np.abs(official).max() if relative else 1
        ratios.append(float(np.abs(np.asarray(ours) - official).max() / scale / tolerance))

    try:
        test(*arguments, record)
    except AssertionError:
        return np.inf
    return max(ratios)


def block(name, case):
    """A case of a block's reference, as the parity test takes it."""
    values = arrays(SHIPPED / f"{name}.npz")
    return section(values, f"{case}/"), described(values, "config")[case]


def half_pixel(x, height, width):
    b, t, h, w, d = x.shape
    return functions.resize_linear(x.reshape(b * t, h, w, d), height, width).reshape(b, t, height, width, d)


def single_residual(block, x, text, pooling):
    pooled = late_refinement.average_pool(x, *pooling)
    return x + late_refinement.resize_aligned(block.mix(pooled, text) - pooled, *x.shape[2:4])


def sharper(query, key, value, bias):
    return attention.dot_product_attention(query * 2, key, value, bias)


def one_group(dim, groups, **options):
    return layers.GroupNorm(dim, 1, **options)


BLOCKS = {"class": test_catseg.test_class_block, "spatial": test_catseg.test_spatial_block}
BLOCK_MUTATIONS = {  # the block, its case, what is changed
    "approximate gelu": ("spatial", "window_ge_resolution", blocks, "gelu", jax.nn.gelu),
    "not shifted": ("spatial", "odd_window_no_guidance", jnp, "roll", lambda x, *_: x),
    "no padding entries": ("class", "pool2_pad", ClassRefinementBlock, "add_padding", lambda _, sums, __: sums),
    "corners not aligned": ("class", "pool2_pad", aggregator, "resize_aligned", half_pixel),
    "single residual": ("class", "pool1_nopad", test_catseg, "class_block", single_residual),
    "another kernel": ("class", "pool1_nopad", jax.nn, "elu", jax.nn.relu),
    "another temperature": ("class", "full_attention", late_refinement, "dot_product_attention", sharper),
}


@pytest.mark.parametrize("mutation", BLOCK_MUTATIONS)
def test_catseg_blocks(monkeypatch, mutation):
    kind, case, *change = BLOCK_MUTATIONS[mutation]
    monkeypatch.setattr(*change)
    assert worst(BLOCKS[kind], *block(f"catseg_{kind}_block", case)) > 1


def with_first_channels(block, guidance):
    kernel = block.conv.kernel[...][:, :, : guidance.shape[-1]]
    return decoder.convolve(guidance, kernel, "SAME", block.dtype)


@pytest.mark.parametrize(
    "change",
    [
        (decoder, "GroupNorm", one_group),
        (decoder.ConvNormRelu, "project_guidance", with_first_channels),
    ],
    ids=["groups", "guidance before the map"],
)
def test_catseg_decoder(monkeypatch, change):
    monkeypatch.setattr(*change)
    assert worst(test_catseg.test_decoder, SHIPPED / "catseg_decoder.npz") > 1


def test_catseg_loss_with_ignored_pixels_left_out(monkeypatch):
    monkeypatch.setattr(test_catseg, "sigmoid_cross_entropy", lambda logits, label, **_: cross_entropy(logits, label))
    assert worst(test_catseg.test_loss_and_its_gradient, SHIPPED / "catseg_loss.npz") > 1


def test_catseg_truncation_by_another_score(monkeypatch):
    def lowest(operand, k):
        return jax.lax.sort_key_val(operand, jnp.broadcast_to(jnp.arange(operand.shape[1]), operand.shape))[1][:, :k]

    monkeypatch.setattr(jax.lax, "top_k", lambda operand, k: (None, lowest(operand, k)))
    assert worst(test_catseg.test_aggregator, SHIPPED / "catseg_aggregator_topk.npz") > 1


@pytest.mark.slow
def test_catseg_text_not_normalised(monkeypatch):
    monkeypatch.setattr(aggregator, "l2_normalize", lambda x: x)
    assert worst(test_catseg.test_aggregator, SHIPPED / "catseg_aggregator.npz") > 1


def test_catseg_windows_blended_before_the_sigmoid(monkeypatch):
    sigmoid = jax.nn.sigmoid

    def blend(*arguments):
        with monkeypatch.context() as inner:
            inner.setattr(jax.nn, "sigmoid", lambda logits: logits)
            return sigmoid(blend_logits(*arguments))

    monkeypatch.setattr(test_sliding_window, "blend_logits", blend)
    with pytest.raises(AssertionError):
        test_sliding_window.test_blended_probabilities(arrays(SHIPPED / "catseg_sliding_window.npz"))
