"""Class names are embedded once, whatever else is in the list."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3seg_jax.inference.classes import embeddings as class_embeddings
from dinov3seg_jax.inference.classes.embedding_cache import EmbeddingCache
from dinov3seg_jax.inference.classes.embeddings import (
    NAMES_AT_ONCE,
    ClassEmbeddings,
    average_templates,
    bucket,
    prompts_at_once,
)
from dinov3seg_jax.models.graph import bind, build
from dinov3seg_jax.text.class_lists import NamedClass

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
    embed = ClassEmbeddings(lambda of, tokens: bind(graph, of).encode_text(tokens), parameters, PROMPTS, model_config)
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


# Prompts of 3 to 70 tokens, more than are embedded at once, and more names than one round takes.
MANY = (
    *("cat", "dog", "ice-cream parlour", "a", "traffic light, signal", "RUG", "ball " * 9, "extraordinarily " * 15),
    *(f"thing {number}" for number in range(NAMES_AT_ONCE)),
)


@pytest.fixture(scope="module")
def text(model_config, parameters):
    """`text(templates, cache)`: embeddings of a new process, as it were, but compiled once."""
    graph, _ = build(model_config)
    encode = jax.jit(lambda of, tokens: bind(graph, of).encode_text(tokens))

    def start(templates=PROMPTS, cache=None):
        made = ClassEmbeddings(encode, parameters, templates, model_config, lambda _: cache)
        made._encode = encode
        return made

    return start


@pytest.fixture(scope="module")
def alone(text):
    """Each name's row where nothing else was ever embedded."""
    return {name: text()([name])[0] for name in MANY}


def test_several_names_are_their_mean(text, alone):
    """Of each half, normalised; to the last bit whatever their order is, and in whatever case they are named twice."""
    embed = text()
    one, two = alone["cat"].reshape(2, -1), alone["dog"].reshape(2, -1)
    expected = (one + two) / np.linalg.norm(one + two, axis=1, keepdims=True)
    mean = embed([NamedClass(("cat", "dog")), NamedClass(("dog", "CAT", "dog")), NamedClass(("dog", "Dog"))])
    np.testing.assert_allclose(mean[0].reshape(2, -1), expected, atol=1e-6)
    np.testing.assert_array_equal(mean[1], mean[0])
    np.testing.assert_array_equal(mean[2], alone["dog"])


def test_a_prompt_of_ones_own_replaces_the_templates(text):
    own, sentence = "a drawing of a {}", "nothing but water"
    found = text()([NamedClass(("cat",), own), NamedClass(("sea", "lake"), sentence), "cat"])
    for row, template, name in ((found[0], own, "cat"), (found[1], "{}", sentence)):
        np.testing.assert_array_equal(row, text((template,))([name])[0])
    assert np.abs(found[0] - found[2]).max() > 0.01


@given(st.permutations(MANY), st.lists(st.integers(1, len(MANY)), max_size=4))
@settings(max_examples=15, deadline=None)
def test_a_name_has_the_same_bits_in_whatever_company_order_and_rounds(text, alone, names, cuts):
    embed = text()
    for start, stop in itertools.pairwise(sorted({0, *cuts, len(names)})):
        part = names[start:stop]
        for name, row in zip(part, embed(part), strict=True):
            np.testing.assert_array_equal(row.view(np.uint32), alone[name].view(np.uint32), err_msg=name)
    rows, are_names = embed.filled(names[:11])
    np.testing.assert_array_equal(rows[are_names], np.stack([alone[name] for name in names[:11]]))


@given(st.lists(st.sampled_from(MANY), unique=True, min_size=1), st.lists(st.sampled_from(MANY), unique=True))
@settings(max_examples=10, deadline=None)
def test_the_history_of_a_cache_does_not_show(text, alone, model_config, tmp_path_factory, earlier, later):
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache"), model_config, {})
    for names in (earlier, [*later, *earlier[::-1]]):
        names = list(dict.fromkeys(names))
        np.testing.assert_array_equal(text(cache=cache)(names), np.stack([alone[name] for name in names]))


@pytest.mark.parametrize("count", [1, 40])
def test_the_same_holds_for_any_number_of_templates(text, count):
    templates = tuple(f"{'fine ' * (number % 3)}picture {number} of a {{}}" for number in range(count))
    names = MANY[:6]
    together = text(templates)(names)
    for name, row in zip(names, together, strict=True):
        np.testing.assert_array_equal(text(templates)([name])[0], row, err_msg=name)
    np.testing.assert_array_equal(text(templates)(names[::-1]), together[::-1])


def test_there_are_as_many_programs_as_lengths(text):
    shapes = set()
    embed = text()
    encode = embed._encode
    embed._encode = lambda of, tokens: shapes.add(tokens.shape) or encode(of, tokens)
    for count in (1, 7, 30, len(MANY)):
        embed(MANY[:count])
    assert {size for size, _ in shapes} == {prompts_at_once(len(PROMPTS))}
    assert {length % 8 for _, length in shapes} <= {0, 77 % 8}
    before = len(shapes)
    text_again = text()
    text_again._encode = embed._encode
    text_again(MANY[::-1])
    assert len(shapes) == before
