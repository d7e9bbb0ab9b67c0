"""Captions: a sentence that names what an image shows, as the web has them; it says nothing of where.

dinov3.txt's text tower learned from captions alone, aligned with whole images. These stand in for them where the
towers of a run start from random weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.text.prompts import PAPER, prompt_name
from dinov3seg_jax.text.tokenizers import open_tokenizer

LEAST_SHARE = 1 / 300  # of an image's pixels: who writes captions does not name what is smaller
MOST_NAMES = 8  # in a caption


@dataclass(frozen=True)
class Captions:
    """Writes captions with the names of classes, and reads them with a text tower's tokenizer."""

    names: tuple[str, ...]
    model: ModelConfig

    def __call__(self, label: Int[np.ndarray, "h w"], rng: np.random.Generator) -> NDArray[np.int32]:
        """Token ids of a caption of an image, int32 [length], filled up with zeros; all are of one length.

        Half of the captions name everything that is there, up to `MOST_NAMES`; the others leave some of it out, as
        people do. The order says nothing.

        Args:
            label: indices into the names, -1 where ignored; only which of them occur is used.
            rng: what the caption is drawn from.
        """
        pixels = np.bincount(label[label >= 0].ravel(), minlength=len(self.names))
        present = rng.permutation(np.flatnonzero(pixels >= label.size * LEAST_SHARE))[:MOST_NAMES]
        kept = len(present) if rng.random() < 0.5 else int(rng.integers(1, max(len(present), 1) + 1))
        text = caption([self.names[index] for index in present[:kept]])
        return open_tokenizer(self.model).tokenize([text], self.length)[0]

    @cached_property
    def length(self) -> int:
        """Tokens of the longest caption, or what the text tower reads if that is less."""
        tokenizer = open_tokenizer(self.model)
        longest = sorted(self.names, key=tokenizer.length)[-MOST_NAMES:]
        return min(tokenizer.length(caption(longest)), self.model.text.context_length)


def caption(names: Sequence[str]) -> str:
    """The names in the paper's prompt: "A photo of a red ball, a blue ring and a box in the scene"."""
    if not names:
        return "A photo of the scene"
    *most, last = map(prompt_name, names)
    return PAPER[0].format(f"{', a '.join(most)} and a {last}" if most else last)
