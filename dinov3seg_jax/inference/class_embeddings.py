"""Text embeddings of class names (§1): prompts, their mean over the templates, and a memory of what was embedded."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.models.parameters import Parameters, bind
from dinov3seg_jax.text.prompts import prompt_tokens
from dinov3seg_jax.text.tokenizer import Tokenizer

LENGTH_STEP = 8
PROMPTS_AT_ONCE = 256


def bucket(count: int) -> int:
    """The next multiple of 8, or of an eighth of the next power of two: few lengths, and little of them unused.

    Lists of many lengths share compiled programs: 8, 16, .. 64, 80, 96, .. 128, 160, ...
    """
    step = max(LENGTH_STEP, 2 ** (max(count, 1) - 1).bit_length() // 8)
    return max(1, -(-count // step)) * step


def average_templates(embeddings: Float[np.ndarray, "t p d2"]) -> Float[np.ndarray, "t d2"]:
    """The mean over p prompts of each class, each half of it normalised again."""
    t, p, d2 = embeddings.shape
    means = embeddings.reshape(t, p, 2, d2 // 2).mean(axis=1)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    return (means / np.maximum(lengths, 1e-12)).reshape(t, d2)


class ClassEmbeddings:
    """Embeds class names with one text tower and one set of templates; each name only once."""

    def __init__(self, graph: nnx.GraphDef, parameters: Parameters, templates: Sequence[str], context_length: int):
        self.templates = tuple(templates)
        self.context_length = context_length
        self.tokenizer = Tokenizer()
        self._parameters = parameters
        self._known: dict[str, np.ndarray] = {}

        @jax.jit
        def encode(parameters: Parameters, tokens: Int[Array, "n length"]) -> Float[Array, "n d2"]:
            return bind(graph, parameters).encode_text(tokens)

        self._encode = encode

    def __call__(self, names: Sequence[str]) -> Float[np.ndarray, "t d2"]:
        """Embed names that `text.prompts.check_names` has accepted: [global half | local half], each of length 1."""
        new = [name for name in dict.fromkeys(names) if name not in self._known]
        if new:
            self._known.update(zip(new, self._embed(new), strict=True))
        return np.stack([self._known[name] for name in names])

    def _embed(self, names: Sequence[str]) -> np.ndarray:
        tokens = prompt_tokens(names, self.templates, self.context_length)
        tokens = tokens.reshape(-1, tokens.shape[-1])
        rows = []
        for start in range(0, len(tokens), PROMPTS_AT_ONCE):
            part = tokens[start : start + PROMPTS_AT_ONCE]
            filled = np.pad(part, ((0, bucket(len(part)) - len(part)), (0, 0)), mode="edge")
            rows.append(np.asarray(self._encode(self._parameters, filled))[: len(part)])
        embeddings = np.concatenate(rows)
        return average_templates(embeddings.reshape(len(names), len(self.templates), -1))
