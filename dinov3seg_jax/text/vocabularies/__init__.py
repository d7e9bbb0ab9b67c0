"""The class names of the benchmarks, in train-id order and with the exact strings that published results use."""

import functools
import json
from collections.abc import Sequence
from importlib import resources

from dinov3seg_jax.errors import UserError

VOCABULARIES = ("coco_stuff_171", "ade_150", "ade_847", "pc_59", "pc_459", "voc_20", "voc_20b")


def load_vocabulary(name: str) -> tuple[str, ...]:
    """The class names of a benchmark.

    Names are kept as published: ADE20K's "bed " keeps its blank, and 217 names of ade_847 list synonyms
    ("rug, carpet, carpeting"), of which `prompts.prompt_name` takes the first. voc_20b holds the 20 VOC classes and
    then the 39 other Pascal-Context classes, which count as background.

    Args:
        name: One of `VOCABULARIES`; the number tells how many classes are scored.

    Returns:
        The names; a name's place is its train id.

    Raises:
        UserError: There is no vocabulary of that name.
    """
    if name not in VOCABULARIES:
        raise UserError(f"there is no vocabulary {name!r}; choose one of {', '.join(VOCABULARIES)}")
    return tuple(json.loads((resources.files(__package__) / f"{name}.json").read_text(encoding="utf-8")))


def is_published(names: Sequence[str]) -> bool:
    """Whether a list is one of `VOCABULARIES`, word for word but for outer blanks."""
    return tuple(name.strip() for name in names) in _published()


@functools.cache
def _published() -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(name.strip() for name in load_vocabulary(known)) for known in VOCABULARIES)
