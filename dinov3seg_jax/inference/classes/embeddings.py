"""Text embeddings of class names (§1): prompts, their mean over the templates, and a memory of what was embedded."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.inference.classes.embedding_cache import EmbeddingCache, open_cache
from dinov3seg_jax.inference.device.buckets import bucket
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.towers import TOWERS
from dinov3seg_jax.text.class_lists import ClassList, NamedClass
from dinov3seg_jax.text.class_lists.named import name_asked
from dinov3seg_jax.text.prompts import LENGTH_STEP, check_asked, cut_padding, prompts_of, tokens_of
from dinov3seg_jax.text.tokenizers import TowerTokenizer, open_tokenizer

EncodeText = Callable[[Parameters, Int[Array, "n length"]], Float[Array, "n d2"]]  # token ids to embeddings

Way = tuple[str, str]  # in which a name is asked: as it is spoken, and with which prompt of its own

NAMES_AT_ONCE = 64
LISTS_KNOWN = 64  # that were found to be fine: checking a thousand names takes a while
NAMES_KNOWN = 20_000  # 160 MB of the largest model's embeddings; the oldest go, so that a server does not grow


def text_encoder(model: ModelConfig, bind: Callable[[Parameters], Any]) -> EncodeText:
    """The text tower of a model.

    Args:
        model: which one.
        bind: puts parameters into it, or into its towers alone.
    """

    @traced_once(model)
    def encode_text(parameters: Parameters, tokens: Int[Array, "n length"]) -> Float[Array, "n d2"]:
        return bind(parameters).encode_text(tokens)

    return encode_text


def prompts_at_once(templates: int) -> int:
    """The batch size for names with so many prompts each, whatever else is in their list.

    On a CPU, large batches save a quarter of the time of long lists, and cost short ones as much as they are larger.
    """
    return min(32, bucket(templates)) if jax.default_backend() == "cpu" else 64


def average_templates(embeddings: Float[np.ndarray, "t p d2"], halves: int = 2) -> Float[np.ndarray, "t d2"]:
    """The mean over p prompts of each class, each half of it normalised again."""
    t, p, d2 = embeddings.shape
    means = embeddings.reshape(t, p, halves, d2 // halves).mean(axis=1)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    return (means / np.maximum(lengths, 1e-12)).reshape(t, d2)


class ClassEmbeddings:
    """Embeds class names with one text tower and one set of templates; each name only once.

    With a cache, once for good: what another run embedded is read, and what is new is kept.
    """

    def __init__(
        self,
        encode: EncodeText,
        parameters: Parameters,
        templates: Sequence[str],
        model: ModelConfig,
        find_cache: Callable[[TowerTokenizer], EmbeddingCache | None] = lambda tokenizer: None,
    ):
        """Take a text tower.

        Args:
            encode: token ids, filled up, to embeddings; it is compiled here.
            parameters: of `encode`.
            templates: with a slot for the name.
            model: whose text tower it is.
            find_cache: called when the first name is embedded: a checksum of all parameters takes its time.

        Raises:
            UserError: the tower's tokenizer cannot be read.
        """
        self.templates = tuple(templates)
        self.context_length = model.text.context_length
        self.tokenizer = open_tokenizer(model)
        self._halves = TOWERS[model.towers].halves
        self._parameters = parameters
        self._known: dict[Way, np.ndarray] = {}
        self._cache = functools.cache(functools.partial(find_cache, self.tokenizer))
        self._encode = jit(encode)
        self._accepted = functools.lru_cache(LISTS_KNOWN)(self._check)

    @classmethod
    def cached(
        cls,
        encode: EncodeText,
        parameters: Parameters,
        templates: Sequence[str],
        model: ModelConfig,
        checksums: Mapping[str, str],
    ) -> Self:
        """One that keeps embeddings on disk.

        Args:
            encode, parameters, templates, model: as above.
            checksums: of the parameters, where they are known (see `embedding_cache`).
        """
        return cls(
            encode,
            parameters,
            templates,
            model,
            lambda tokenizer: open_cache(model, parameters, checksums, tokenizer.fingerprint),
        )

    def with_parameters(self, parameters: Parameters) -> Self:
        """The same for other weights; what was compiled is shared, and nothing is read from disk or kept there."""
        other = copy.copy(self)
        other._parameters, other._known, other._cache = parameters, {}, functools.cache(lambda: None)
        return other

    def accept(self, asked: ClassList) -> ClassList:
        """The classes, if their names can be embedded.

        Raises:
            UserError: a name is empty, doubled or too long, or there is none.
        """
        return self._accepted(asked)

    def filled(self, names: Sequence[str | NamedClass]) -> tuple[Float[np.ndarray, "t d2"], Bool[np.ndarray, " t"]]:
        """Embeddings filled up with zeros to a length that lists share, and which entries are names."""
        embeddings = self(names)
        missing = bucket(len(names)) - len(names)
        return np.pad(embeddings, ((0, missing), (0, 0))), np.arange(len(names) + missing) < len(names)

    def _check(self, asked: ClassList) -> ClassList:
        check_asked(asked, self.tokenizer, self.templates, self.context_length)
        return asked

    def __call__(self, names: Sequence[str | NamedClass]) -> Float[np.ndarray, "t d2"]:
        """Embed classes that `text.prompts.check_asked` has accepted: [global half | local half], each of length 1.

        That of several names is their mean, each half normalised again; their order does not count.
        """
        ways = [_ways(name) for name in names]
        new = [way for way in dict.fromkeys(way for of_class in ways for way in of_class) if way not in self._known]
        for own in (False, True):  # which have another number of prompts
            self._learn([way for way in new if bool(way[1]) is own])
        embeddings = np.stack([self._mean([self._known[way] for way in of_class]) for of_class in ways])
        for way in list(self._known)[: max(len(self._known) - NAMES_KNOWN, 0)]:
            del self._known[way]
        return embeddings

    def _mean(self, rows: Sequence[Float[np.ndarray, " d2"]]) -> Float[np.ndarray, " d2"]:
        return rows[0] if len(rows) == 1 else average_templates(np.stack(rows)[None], self._halves)[0]

    def _learn(self, new: Sequence[Way]) -> None:
        """Read or compute the embeddings of names that have equally many prompts each."""
        if not new:
            return
        prompts = [prompts_of(spoken, prompt, self.templates) for spoken, prompt in new]
        tokens = tokens_of(prompts, self.context_length, self.tokenizer)
        cache = self._cache()
        if cache is not None:
            rows = ((way, cache.read(of_way)) for way, of_way in zip(new, tokens, strict=True))
            self._known.update((way, row) for way, row in rows if row is not None)
        missing = [place for place, way in enumerate(new) if way not in self._known]
        for start in tqdm(range(0, len(missing), NAMES_AT_ONCE), desc="class names", delay=5, leave=False):
            places = missing[start : start + NAMES_AT_ONCE]
            for place, row in zip(places, self._embed(tokens[places]), strict=True):
                self._known[new[place]] = row
                if cache is not None:  # at once: what an interruption leaves is not lost
                    cache.write(tokens[place], row)

    def _embed(self, tokens: Int[np.ndarray, "t p length"]) -> Float[np.ndarray, "t d2"]:
        """Each prompt in a program whose shape follows from its own length, in steps of 8, and the number of templates.

        So a row is the same to the last bit whatever else is embedded with it, and in whatever order: a program's rows
        don't see each other, but programs of two shapes round differently.
        """
        t, p, _ = tokens.shape
        prompts = tokens.reshape(t * p, -1)
        steps = (self.tokenizer.ends(prompts) - 1) // LENGTH_STEP
        size = prompts_at_once(p)
        places: list[np.ndarray] = []
        rows: list[Array] = []
        for step in np.unique(steps):
            alike = np.flatnonzero(steps == step)
            for start in range(0, len(alike), size):
                part = alike[start : start + size]
                short = cut_padding(prompts[part], self.context_length, self.tokenizer)
                filled = np.pad(short, ((0, size - len(part)), (0, 0)), mode="edge")
                places.append(part)
                rows.append(self._encode(self._parameters, filled))
        found = np.concatenate([np.asarray(x)[: len(part)] for part, x in zip(places, rows, strict=True)])
        embeddings = found[np.argsort(np.concatenate(places))].reshape(t, p, -1)
        return np.concatenate([average_templates(of_name[None], self._halves) for of_name in embeddings])


def _ways(name: str | NamedClass) -> list[Way]:
    """Of all names of a class, each once."""
    one = NamedClass((name,)) if isinstance(name, str) else name
    return sorted({(name_asked(own, one.prompt), one.prompt) for own in one.names})
