"""What was embedded is read from disk as long as nothing that it was computed from has changed."""

import dataclasses
import hashlib
import multiprocessing
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.inference.classes.embedding_cache import EmbeddingCache, cache_folder, checksums, open_cache
from dinov3seg_jax.inference.classes.embeddings import NAMES_AT_ONCE, ClassEmbeddings
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.text.prompts import prompt_tokens

PROMPTS = ("A photo of a {} in the scene", "a very long and rather blurry picture of the {}.")
NAMES = ["cat", "dog", "bird"]
TOKENS = prompt_tokens(NAMES, PROMPTS)
ROW = np.arange(64, dtype=np.float32)
ARRAYS = {"text/norm/scale": "ab", "vision/backbone/norm/scale": "cd"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DINOV3SEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encode_quickly(parameters, tokens):
    """In place of the text tower, which takes seconds to compile: all that counts, and no padding."""
    positions = np.arange(1, tokens.shape[1] + 1)
    sums = (tokens * positions).sum(axis=1) % 101 + jnp.abs(parameters["text/projection/kernel"]).sum()
    return jnp.sin(sums[:, None] * np.arange(1, 65))


@pytest.fixture
def embed(folder, model_config, parameters):
    """`embed(names, templates=..., parameters=..., context_length=...)` in a new process, as it were.

    It returns the embeddings and the number of names that the text tower was asked for.
    """

    def run(names=NAMES, templates=PROMPTS, parameters=parameters, context_length=77):
        model = dataclasses.replace(
            model_config, text=dataclasses.replace(model_config.text, context_length=context_length)
        )
        embeddings = ClassEmbeddings(
            encode_quickly, parameters, templates, model, lambda _: open_cache(model_config, parameters)
        )
        computed = []
        encode = embeddings._embed
        embeddings._embed = lambda tokens: computed.append(len(tokens)) or encode(tokens)
        return embeddings(names), sum(computed)

    return run


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_second_run_computes_nothing(embed):
    first, computed = embed()
    assert computed == 3
    again, computed = embed()
    assert computed == 0
    np.testing.assert_array_equal(first, again)
    assert again.dtype == np.float32


def test_a_list_that_grows_costs_only_what_is_new_whatever_its_order_and_length(embed):
    first, _ = embed()
    grown, computed = embed([*reversed(NAMES), "an extraordinarily long name of a thing"])
    assert computed == 1
    np.testing.assert_array_equal(first, grown[2::-1])


def test_names_that_are_prompted_alike_share_a_row_in_every_run(embed, folder):
    names = ["rug, carpet", "RUG", "rug ,mat"]
    first, computed = embed(names)
    assert computed == 2
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, embed(names)[0])
    assert len(files(folder)) == 2


CHANGES = {
    "templates": {"templates": PROMPTS[:1]},
    "context": {"context_length": 8},
    "names": {"names": ["cats", "dogs"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_prompts_find_nothing(embed, change):
    first, _ = embed()
    other, computed = embed(**CHANGES[change])
    assert computed == len(other)
    assert not np.allclose(first[: len(other)], other)


def test_other_text_weights_find_nothing_and_other_image_weights_do_not_matter(embed, parameters):
    first, _ = embed()
    changed = {name: value for name, value in parameters.items()}
    changed["text/projection/kernel"] = jnp.asarray(changed["text/projection/kernel"]).at[0, 0].add(1e-3)
    second, computed = embed(parameters=changed)
    assert computed == 3
    assert not np.array_equal(first, second)
    changed = parameters | {"vision/backbone/norm/scale": parameters["vision/backbone/norm/scale"] + 1}
    assert embed(parameters=changed)[1] == 0


@pytest.mark.parametrize("section", [{"dtype": "bfloat16"}, {"float32_residual": "encoders"}, {"text": {"heads": 4}}])
def test_another_arithmetic_or_structure_finds_nothing(tmp_path, model_config, section):
    EmbeddingCache(tmp_path, model_config, ARRAYS).write(TOKENS[0], ROW)
    text = dataclasses.replace(model_config.text, **section.get("text", {}))
    other = dataclasses.replace(model_config, **(section | {"text": text}))
    assert EmbeddingCache(tmp_path, other, ARRAYS).read(TOKENS[0]) is None
    np.testing.assert_array_equal(EmbeddingCache(tmp_path, model_config, ARRAYS).read(TOKENS[0]), ROW)


@pytest.mark.parametrize(
    "damage", [lambda x: b"", lambda x: x[:-4], lambda x: x[:-1] + b"\xff", lambda x: b"\xff" + x[1:], lambda x: x[:32]]
)
def test_damaged_files_are_embedded_again_and_rewritten(embed, folder, damage):
    first, _ = embed()
    for path in files(folder):
        path.write_bytes(damage(path.read_bytes()))
    again, computed = embed()
    assert computed == 3
    np.testing.assert_array_equal(first, again)
    assert embed()[1] == 0


def test_what_an_interruption_leaves_is_kept(embed, folder, monkeypatch):
    names = [f"thing {number}" for number in range(NAMES_AT_ONCE + 1)]
    encode = ClassEmbeddings._embed

    def interrupted(self, tokens):
        if len(tokens) == 1:
            raise KeyboardInterrupt
        return encode(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(ClassEmbeddings, "_embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(names, PROMPTS[:1])
    assert len(files(folder)) == NAMES_AT_ONCE
    assert embed(names, PROMPTS[:1])[1] == 1


def test_a_folder_that_cannot_be_written_is_done_without(embed, folder):
    folder.write_text("a file where the folder should be")
    assert embed()[1] == 3
    assert embed()[1] == 3


def test_off_and_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DINOV3SEG_CACHE", "off")
    assert cache_folder() is None
    monkeypatch.delenv("DINOV3SEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dinov3seg_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dinov3seg_jax"


def test_off_writes_nothing(embed, folder, monkeypatch):
    monkeypatch.setenv("DINOV3SEG_CACHE", "off")
    assert embed()[1] == embed()[1] == 3
    assert not folder.exists()


def test_the_segmenter_keeps_its_names(folder, config, parameters):
    Segmenter(config, parameters).embed(NAMES)
    kept = EmbeddingCache(folder, config.model, checksums(parameters))
    assert all(kept.read(row) is not None for row in prompt_tokens(NAMES, config.inference.templates))


def _write_many(folder: Path, model, value: int) -> None:
    cache = EmbeddingCache(folder, model, ARRAYS)
    for _ in range(200):
        cache.write(TOKENS[0], np.full(4096, value, np.float32))


@pytest.mark.slow
def test_processes_share_a_folder(tmp_path, model_config):
    processes = [
        multiprocessing.get_context("spawn").Process(target=_write_many, args=(tmp_path, model_config, value))
        for value in (1, 2)
    ]
    cache, seen = EmbeddingCache(tmp_path, model_config, ARRAYS), 0
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        row = cache.read(TOKENS[0])
        seen += row is not None
        assert row is None or set(row) in ({1.0}, {2.0})
    assert seen
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(files(tmp_path)) == 1


def test_checksums_are_those_of_the_bytes(parameters):
    found = checksums(parameters)
    assert found.keys() == {name for name in parameters if name.startswith("text/")}
    kernel = np.asarray(parameters["text/projection/kernel"]).astype("<f4")
    assert found["text/projection/kernel"] == hashlib.sha256(kernel.tobytes()).hexdigest()
