"""Early refinement with AnyUp's options against AnyUp."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import EarlyRefinementConfig
from dinov3seg_jax.convert.tables import anyup
from dinov3seg_jax.models.early_refinement import (
    EarlyRefinement,
    Encoder,
    FeatureUnification,
    adaptive_average_pool,
    window_bounds,
    window_mask,
)
from dinov3seg_jax.models.functions import l2_normalize
from tests.parity.fixtures import fixtures, topic
from tests.parity.official import arrays, channels_first, channels_last, described, filled, run, section

TOLERANCE = 1e-5
UNIFICATION_TOLERANCE = 3e-6


@functools.cache
def load(path):
    return arrays(path)


def files(prefix: str):
    """Those of one test; 'anyup' begins the names of the others too."""
    return [path for path in fixtures(prefix) if prefix != "anyup" or not topic(path).startswith(OTHERS)]


OTHERS = ("anyup_lfu", "anyup_masks")
RUNS = [
    pytest.param(path, name, id=f"{path.stem}-{name}")
    for path in files("anyup")
    for name in described(load(path), "config")["runs"]
]


def refinement(path, window_ratio: float) -> EarlyRefinement:
    values = load(path)
    sizes = described(values, "config")["kw"]
    config = EarlyRefinementConfig(
        dim=sizes["qk_dim"],
        heads=sizes["num_heads"],
        window_ratio=window_ratio,
        unification="official",
        locality=0.0,
    )

    def create() -> EarlyRefinement:
        rngs = nnx.Rngs(0)
        model = EarlyRefinement(config, rngs=rngs)
        d, kernel = config.dim, sizes["kernel_size"]
        if kernel != 1:  # ours are pointwise, as in the release
            model.image_encoder = Encoder(3, d, kernel, dtype=jnp.float32, rngs=rngs)
            model.query_encoder = Encoder(d, d, kernel, dtype=jnp.float32, rngs=rngs)
            model.key_encoder = Encoder(d, d, kernel, dtype=jnp.float32, rngs=rngs)
        model.unify.basis = nnx.Param(np.zeros((sizes["kernel_size_lfu"],) * 2 + (1, d), np.float32))
        return model

    return filled(create, section(values, "w/"), anyup.RULES)


@pytest.mark.parametrize(("path", "name"), RUNS)
def test_output_and_attention(path, name, compare):
    values = load(path)
    settings = described(values, "config")["runs"][name]
    image, features = channels_last(values["in/image"]), channels_last(values["in/features"])
    grid = tuple(settings["output_size"] or image.shape[1:3])

    def both(model: EarlyRefinement, image, features):
        return model(image, features, grid), model.attention_weights(image, features, grid)

    refined, weights = run(refinement(path, settings["window_ratio"]), both, image, features)
    official = values[f"{name}/mid/attn_mean_heads"]
    compare("attention", weights[: len(official)], official, TOLERANCE, relative=True)
    compare("features", channels_first(refined), values[f"{name}/out/features"], TOLERANCE, relative=True)
    disallowed = values[f"{name}/mid/attn_disallowed"]
    if disallowed.size:
        np.testing.assert_array_equal(window_mask(grid, features.shape[1:3], settings["window_ratio"]), ~disallowed)


@pytest.mark.parametrize("path", files("anyup"), ids=lambda path: path.stem)
def test_steps(path, compare):
    values = load(path)
    image, features = channels_last(values["in/image"])[:1], channels_last(values["in/features"])[:1]

    def steps(model: EarlyRefinement, image, features):
        encoded = model.image_encoder(image)
        turned = model._add_positions(encoded)
        h, w = features.shape[1:3]
        keys = model.key_encoder(turned)
        unified = model.unify(l2_normalize(features))
        from_features = model.unify_block2(model.unify_block1(unified))
        pooled = adaptive_average_pool(keys, h, w)
        return {
            "image_encoder": encoded,
            "rope": turned,
            "query_encoder": model.query_encoder(turned),
            "key_encoder": keys,
            "key_features_encoder.0": unified,
            "key_features_encoder": from_features,
            "aggregation": model.aggregation(jnp.concatenate([pooled, from_features], axis=-1)),
        }

    for name, ours in run(refinement(path, 0.1), steps, image, features).items():
        if f"mid/{name}" in values:
            official = values[f"mid/{name}"]
            laid_out = channels_first(ours) if official.ndim == 4 else ours.reshape(official.shape)
            compare(name, laid_out, official, TOLERANCE, relative=True)


UNIFICATIONS = [
    pytest.param(path, case, kind, id=f"{path.stem}-{case}-{kind}")
    for path in files("anyup_lfu")
    for case in described(load(path), "config")
    for kind in ("official", "per_channel")
]


@pytest.mark.parametrize(("path", "case", "kind"), UNIFICATIONS)
def test_unification(path, case, kind, compare):
    values = load(path)
    basis = values[f"{case}/w/basis"].transpose(2, 3, 1, 0)
    unify = FeatureUnification(basis.shape[-1], kind, dtype=jnp.float32, rngs=nnx.Rngs(0))
    unify.basis = nnx.Param(jnp.asarray(basis))
    features = channels_last(values[f"{case}/in/features"])
    ours, responses = run(unify, lambda unify, x: (unify(x), unify._filter(x)), features)
    name = "official" if kind == "official" else "per_channel_softmax"
    compare("output", channels_first(ours), values[f"{case}/out/{name}"], UNIFICATION_TOLERANCE, relative=True)
    official = values[f"{case}/mid/filter_response"]
    laid_out = np.asarray(responses).transpose(0, 3, 4, 1, 2)
    compare("filter response", laid_out, official, UNIFICATION_TOLERANCE, relative=True)


MASKS = [
    pytest.param(path, case, sizes, id=f"{path.stem}-{case}")
    for path in files("anyup_masks")
    for case, sizes in described(load(path), "config").items()
]


@pytest.mark.parametrize(("path", "case", "sizes"), MASKS)
def test_windows_are_exact(path, case, sizes):
    values = load(path)
    outputs, inputs = (sizes["H"], sizes["W"]), (sizes["h"], sizes["w"])
    bounds = values[f"{case}/bounds"]
    for axis in (0, 1):
        low, high = window_bounds(outputs[axis], inputs[axis], sizes["ratio"])
        official = bounds[:, 0] if axis == 0 else bounds[0]
        np.testing.assert_array_equal(low, official[:, 2 * axis])
        np.testing.assert_array_equal(high, official[:, 2 * axis + 1])
    mask = window_mask(outputs, inputs, sizes["ratio"])
    np.testing.assert_array_equal(np.packbits(~mask), values[f"{case}/disallowed_packed"])
