"""CAFe-DINO as a whole and step by step against its public code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import CafeDinoConfig, EarlyRefinementConfig, ModelConfig, TextConfig, VisionConfig
from dinov3seg_jax.convert.tables import anyup, cafedino, dinotxt
from dinov3seg_jax.convert.tables.rules import prefixed
from dinov3seg_jax.inference.classes.embeddings import average_templates
from dinov3seg_jax.models.cafedino import CafeDino
from dinov3seg_jax.models.correlation import correlate
from dinov3seg_jax.models.pixels import normalize_pixels
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_last, described, filled, run, section

TOLERANCE, TEXT_TOLERANCE, STEP_TOLERANCE = 1e-4, 5e-6, 3e-5
MOMENTUM = 0.1  # of torch's running averages
RULES = (
    *prefixed(dinotxt.RULES, cafedino.TOWERS),
    *prefixed(anyup.RULES, cafedino.UPSAMPLER, "early/"),
    *cafedino.RULES,
)


@functools.cache
def load(path):
    return arrays(path)


def files(run_wanted=""):
    return [path for path in fixtures("cafedino_model") if run_wanted in ("", *described(load(path), "config")["runs"])]


def per_file(run_wanted=""):
    return pytest.mark.parametrize("path", files(run_wanted), ids=lambda path: path.stem)


def model_config(config, name="") -> ModelConfig:
    settings = config["runs"].get(name, {})
    vision, text, sizes = config["vision"], config["text"], config["anyup"]
    return ModelConfig(
        vision=VisionConfig(
            dim=vision["embed_dim"],
            depth=vision["depth"],
            heads=vision["num_heads"],
            head_blocks=config["head_blocks"],
        ),
        text=TextConfig(
            dim=text["dim"],
            depth=text["num_layers"],
            heads=text["num_heads"],
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
        ),
        early=EarlyRefinementConfig(
            dim=sizes["qk_dim"], heads=sizes["num_heads"], unification="official", locality=0.0
        ),
        cafedino=CafeDinoConfig(
            layers=config["aggregator_blocks"],
            dim=config["aggregator_dim"],
            window=tuple(min(7, side) for side in config["input_resolution"]),
            linear=settings.get("linear", config["use_linear_transformer"]),
            batch_statistics=settings.get("bn_batch", False),
        ),
    )


def model(path, name="") -> CafeDino:
    values = load(path)
    config = model_config(described(values, "config"), name)
    return filled(lambda: CafeDino(config, rngs=nnx.Rngs(0)), section(values, "w/"), RULES)


def text_of(path, name=""):
    """The classes' patch halves, as stored."""
    values = load(path)
    trained = described(values, "config")["runs"].get(name, {}).get("train_text", False)
    return values[f"text/out/embedding_{'training' if trained else '10_templates'}"]


def pixels(values, name, key):
    found = values.get(f"{name}/in/{key}", values.get(f"in/{key}"))
    return channels_last(found).astype(np.float32) / 255


@per_file()
def test_text(path, compare):
    values = load(path)
    config = described(values, "config")
    raw = run(model(path), lambda model, tokens: model.encode_text(tokens), values["text/in/tokens"])
    compare("raw", raw, values["text/out/raw_features"], TEXT_TOLERANCE, relative=True)
    by_class = np.asarray(raw).reshape(config["C"], len(config["templates"]), -1)
    half = by_class.shape[-1] // 2
    averaged = average_templates(by_class)[:, half:]
    compare("ten templates", averaged, values["text/out/embedding_10_templates"], TEXT_TOLERANCE, relative=True)
    index = config["training_template_index"]
    single = average_templates(by_class[:, index : index + 1])[:, half:]
    compare("one template", single, values["text/out/embedding_training"], TEXT_TOLERANCE, relative=True)


def steps_of(model: CafeDino, images, text):
    """What goes on on the patch grid."""
    patches = model.encode(images)
    cosines = correlate(patches.features, text[None], halves=1)
    x, own = model.embed_correlation(cosines), jax.nn.relu(model.project_text(text))
    own = jnp.broadcast_to(own, (len(images), *own.shape))
    found = {"backbone_patch_tokens": patches.features.reshape(len(images), -1, patches.features.shape[-1])}
    found["cost"] = jnp.moveaxis(cosines, 4, 2).reshape(-1, 1, *cosines.shape[2:4])
    graph, layers = nnx.split(model.layers)
    for number in range(model.config.cafedino.layers):
        layer = nnx.merge(graph, jax.tree.map(lambda leaf, number=number: leaf[number], layers))
        spatial, at = layer.spatial, f"aggregator.{number}"
        guidance = spatial.guidance_norm(patches.appearance)[:, None]
        first = spatial.windowed(x, guidance)
        found[f"{at}.swin1"] = first.reshape(-1, *first.shape[2:])
        refined = spatial.shifted(first, guidance)
        x = layer.classes(refined, own)
        found[f"{at}.spatial_agg"] = jnp.moveaxis(refined, -1, 1)
        found[f"{at}.class_agg"] = found["aggregator.last"] = jnp.moveaxis(x, -1, 1)
    return found


QUICK_RUN = "small_output"  # the others compile the same for as long
RUNS = [
    pytest.param(path, name, id=f"{path.stem}-{name}", marks=[] if name == QUICK_RUN else pytest.mark.slow)
    for path in files()
    for name, settings in described(load(path), "config")["runs"].items()
    if not settings.get("strided")
]


@pytest.mark.parametrize(("path", "name"), RUNS)
def test_run(path, name, compare):
    values = load(path)
    settings = described(values, "config")["runs"][name]
    ours, text = model(path, name), text_of(path, name)
    images = pixels(values, name, "image")
    guide = pixels(values, name, "upsample_image") if settings["uses_upsample_image"] else images
    official = section(values, f"{name}/mid/")

    def whole(model: CafeDino, images, guide):
        maps = model.refine(model.encode(images), text)
        weights, reduced = model.weigh(guide, maps)
        volume = jnp.moveaxis(maps, 0, -1).reshape(*maps.shape[1:4], -1)
        upsampled = model.early(normalize_pixels(guide), volume, guide.shape[1:3]) if "upsampled" in official else None
        return model.decode(guide, maps), upsampled, model.moments(weights, reduced)

    logits, upsampled, moments = run(ours, whole, images, guide)
    strides = settings.get("stored_stride", 1)
    compare("logits", logits[:, :, ::strides, ::strides], values[f"{name}/out/logits"], TOLERANCE, relative=True)
    if upsampled is not None:
        every = np.moveaxis(np.asarray(upsampled), -1, 1)
        stored = official.pop("upsampled")
        every = every[:, :, :: -(-every.shape[2] // stored.shape[2]), :: -(-every.shape[3] // stored.shape[3])]
        compare("upsampled", every, stored, TOLERANCE, relative=True)
    if official:
        found = run(ours, steps_of, images, text)
        for step, expected in official.items():
            tolerance = TOLERANCE if step == "aggregator.last" else STEP_TOLERANCE
            compare(step, found[step][: len(expected)], expected, tolerance, relative=True)
    if settings.get("bn_batch"):
        samples = len(images) * text.shape[0] * guide.shape[1] * guide.shape[2]
        for number, seen in zip((1, 4), moments, strict=True):
            unbiased = seen._replace(var=seen.var * samples / (samples - 1))
            for key, value in unbiased._asdict().items():
                expected = values.get(f"{name}/out/running_{key}_after.{number}")
                if expected is not None:
                    before = values[f"w/reduce_d.{number}.running_{key}"]
                    after = (1 - MOMENTUM) * before + MOMENTUM * np.asarray(value)
                    compare(key, after, expected, TOLERANCE, relative=True)


@pytest.mark.slow
@per_file("linear_attention")
def test_which_classes_see_each_other(path):
    """As coded, the blocks refine each class by itself; with `linear` they do not."""
    values, text = load(path), text_of(path)

    def refined(name, text):
        images = pixels(values, name, "image")
        return np.asarray(run(model(path, name), lambda model, x: model.refine(model.encode(x), text), images))

    np.testing.assert_allclose(refined("small_output", text)[:1], refined("small_output", text[:1]), rtol=0, atol=1e-5)
    assert np.abs(refined("linear_attention", text)[:1] - refined("linear_attention", text[:1])).max() > 1e-2
