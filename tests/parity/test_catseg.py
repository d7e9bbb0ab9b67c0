"""Late refinement and decoder with CAT-Seg's options against CAT-Seg, per block and as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import DecoderConfig
from dinov3seg_jax.convert.tables import catseg
from dinov3seg_jax.models.decoder import Decoder
from dinov3seg_jax.models.dinov3seg import REJECTED_LOGIT
from dinov3seg_jax.models.late_refinement import ClassRefinementBlock, SpatialRefinementBlock
from dinov3seg_jax.training.losses import sigmoid_cross_entropy
from tests.parity.aggregator import Aggregator, class_block, late_config
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_last, described, filled, run, section

AGGREGATOR_TOLERANCE = DECODER_TOLERANCE = LOSS_TOLERANCE = 1e-5
BLOCK_TOLERANCE = 3e-6
CLASS_DEPENDENT = ("conv1", "text_guidance_projection", "layers", "decoder1", "decoder2")


@functools.cache
def load(path):
    return arrays(path)


def block_cases(prefix: str):
    return [
        pytest.param(section(load(path), f"{case}/"), config, id=f"{path.stem}-{case}")
        for path in fixtures(prefix)
        for case, config in described(load(path), "config").items()
    ]


def per_file(prefix: str):
    return pytest.mark.parametrize("path", fixtures(prefix), ids=lambda path: path.stem)


@per_file("catseg_aggregator")
def test_aggregator(path, compare):
    values = load(path)
    config = described(values, "config")
    aggregator = filled(lambda: Aggregator(config, rngs=nnx.Rngs(0)), section(values, "w/"), catseg.RULES)
    appearance = [channels_last(values[f"in/appearance_guidance.{n}"]) for n in range(3)]
    features = channels_last(values["in/img_feats"])
    text = values["in/text_feats"]
    logits, steps = run(aggregator, lambda model, *inputs: model(*inputs), features, text, appearance)

    logits, official = np.asarray(logits), values["out/logits"]
    kept = values.get("mid/selected_classes_sorted")
    for name, expected in section(values, "mid/").items():
        # Which class comes first among those kept is nobody's business; their logits are compared below.
        if name in steps and (kept is None or not name.startswith(CLASS_DEPENDENT)):
            ours = steps[name][: len(expected)]
            compare(name, ours, expected, AGGREGATOR_TOLERANCE, relative=True)
    if kept is not None:
        compare("class_score", steps["correlation"].max(axis=(1, 3, 4)), values["mid/class_score"], 1e-5)
        dropped = (logits == REJECTED_LOGIT).all(axis=(2, 3))
        np.testing.assert_array_equal([np.flatnonzero(~row) for row in dropped], kept)
        np.testing.assert_array_equal(official[dropped], REJECTED_LOGIT)
        logits, official = logits[~dropped], official[~dropped]
    compare("logits", logits, official, AGGREGATOR_TOLERANCE, relative=True)


@pytest.mark.parametrize(("values", "config"), block_cases("catseg_spatial_block"))
def test_spatial_block(values, config, compare):
    block = filled(
        lambda: SpatialRefinementBlock(
            late_config(config), config["appearance_guidance_dim"], dtype=jnp.float32, rngs=nnx.Rngs(0)
        ),
        section(values, "w/"),
        catseg.SPATIAL_BLOCK,
    )

    def both(block, x, guidance):
        shared = None if guidance is None else block.guidance_norm(guidance)[:, None]
        return block.windowed(x, shared), block(x, guidance)

    x = values["in/x"].transpose(0, 2, 3, 4, 1)
    guidance = channels_last(values["in/guidance"]) if "in/guidance" in values else None
    first, second = run(block, both, x, guidance)
    b, t, h, w, d = x.shape
    official = values["mid/block_1"]
    compare("block_1", first.reshape(b * t, h * w, d)[: len(official)], official, BLOCK_TOLERANCE, relative=True)
    compare("y", second, values["out/y"].transpose(0, 2, 3, 4, 1), BLOCK_TOLERANCE, relative=True)


@pytest.mark.parametrize(("values", "config"), block_cases("catseg_class_block"))
def test_class_block(values, config, compare):
    guidance_dim = config["guidance_dim"]
    block = filled(
        lambda: ClassRefinementBlock(late_config(config), guidance_dim, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        section(values, "w/"),
        catseg.CLASS_BLOCK,
    )
    x = values["in/x"].transpose(0, 2, 3, 4, 1)
    guidance = values.get("in/guidance")
    ours = run(block, lambda block, x, guidance: class_block(block, x, guidance, config["pooling_size"]), x, guidance)
    compare("y", ours, values["out/y"].transpose(0, 2, 3, 4, 1), BLOCK_TOLERANCE, relative=True)


@per_file("catseg_decoder")
def test_decoder(path, compare):
    values = load(path)
    config = described(values, "config")
    widths = DecoderConfig(
        dims=tuple(config["decoder_dims"]), guidance_dims=tuple(config["decoder_guidance_proj_dims"])
    )
    decoder = filled(
        lambda: Decoder(config["hidden_dim"], widths, guided=True, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        section(values, "w/"),
        catseg.DECODER,
    )

    def steps(decoder, x, middle, fine):
        b, t, h, w, c = x.shape
        found = {"decoder1.up": decoder.stage1.upsample(x.reshape(b * t, h, w, c))}
        y = decoder.stage1(x, middle)
        found["decoder1"] = y.reshape(b * t, *y.shape[2:])
        found["decoder2.up"] = decoder.stage2.upsample(found["decoder1"])
        z = decoder.stage2(y, fine)
        found["decoder2"] = z.reshape(b * t, *z.shape[2:])
        return decoder(x, (middle, fine)), found

    x = values["in/x"].transpose(0, 2, 3, 4, 1)
    guidance = [channels_last(values[f"in/guidance.{n}"]) for n in (0, 1)]
    logits, found = run(decoder, steps, x, *guidance)
    for name, official in section(values, "mid/").items():
        ours = np.moveaxis(np.asarray(found[name]), -1, 1)[: len(official)]
        compare(name, ours, official, DECODER_TOLERANCE, relative=True)
    compare("logits", logits, values["out/logits"], DECODER_TOLERANCE, relative=True)


@per_file("catseg_loss")
def test_loss_and_its_gradient(path, compare):
    values = load(path)
    ignored = described(values, "config")["ignore"]
    targets = values["in/targets"].astype(np.int32)
    label = np.where(targets == ignored, -1, targets)

    def loss(logits: jax.Array) -> jax.Array:
        return sigmoid_cross_entropy(logits, label, ignored_as_negative=True)

    with jax.default_matmul_precision("highest"):
        value, gradient = jax.jit(jax.value_and_grad(loss))(values["in/logits"])
    compare("loss", value, values["out/loss"], LOSS_TOLERANCE, relative=True)
    compare("gradient", gradient, values["out/grad_logits"], LOSS_TOLERANCE, relative=True)
