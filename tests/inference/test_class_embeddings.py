"""Class names are embedded once, whatever else is in the list."""

import numpy as np
import pytest

from dinov3seg_jax.inference.classes import embeddings as class_embeddings
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, average_templates, bucket
from dinov3seg_jax.models.graph import bind, build

PROMPTS = ("A photo of a {} in the scene", "a very long and rather blurry picture of the {}.")


@pytest.mark.parametrize(
    ("count", "length"), [(1, 8), (8, 8), (9, 16), (64, 64), (65, 80), (80, 80), (128, 128), (129, 160), (847, 896)]
)
def test_bucket(count, length):
    assert bucket(count) == length


def test_mean_of_templates():
    prompts = np.random.default_rng(0).normal(size=(4, 3, 10))
    mean = average_templates(prompts)
    for half in (np.s_[:, :5], np.s_[:, 5:]):
        expected = prompts.mean(axis=1)[half]
        np.testing.assert_allclose(mean[half], expected / np.linalg.norm(expected, axis=1, keepdims=True))


def test_names_are_embedded_once_and_independently(model_config, parameters, monkeypatch):
    graph, _ = build(model_config)
    embed = ClassEmbeddings(lambda of, tokens: bind(graph, of).encode_text(tokens), parameters, PROMPTS, 77)
    counts = []
    embed_new = embed._embed
    embed._embed = lambda names: counts.append(len(names)) or embed_new(names)
    first = embed(["cat", "dog"])
    again = embed(["bird", "dog", "cat"])
    assert counts == [2, 1]
    np.testing.assert_array_equal(first, again[[2, 1]])
    assert embed(["cat"]).shape == (1, 64)
    assert counts == [2, 1]

    monkeypatch.setattr(class_embeddings, "NAMES_KNOWN", 2)
    assert embed(["cat", "dog", "bird"]).shape == (3, 64)
    embed(["cat"])
    assert counts == [2, 1, 1], "the oldest was forgotten"

    tokens = embed.tokenizer.tokenize([prompt.replace("{}", "bird") for prompt in PROMPTS])
    rows = np.asarray(embed._encode(parameters, tokens))
    np.testing.assert_allclose(again[0], average_templates(rows[None])[0], atol=1e-5)
