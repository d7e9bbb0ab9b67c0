"""What is asked of a picture: classes, what competes with them, and how sure an answer has to be."""

import dataclasses
import functools
import math
from collections import Counter
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

import numpy as np
from jaxtyping import Int, UInt8

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.text.class_lists.colors import Color
from dinov3seg_jax.text.class_lists.given import Names, names_of
from dinov3seg_jax.text.class_lists.named import NamedClass
from dinov3seg_jax.text.vocabularies import is_published
from dinov3seg_jax.visualize import check_palette, class_colors

Synonyms = Literal["mean", "best"]

BACKGROUND, UNKNOWN = "background", "unknown"
BACKGROUND_COLOR: Color = (64, 64, 64)
UNKNOWN_COLOR: Color = (128, 128, 128)


class Options(TypedDict, total=False):
    """What can be said with class names; see `ClassList.of`."""

    background: "Names | ClassList"
    synonyms: Synonyms
    min_confidence: float
    unknown: str
    palette: str


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes, ready to be asked for; made by `of`.

    A model scores `rows`. What it answers is one of `names`: of the classes, then "background" if other names compete,
    then what is unknown if there is a threshold.

    Attributes:
        classes: in the order of their indices.
        background: whose labels are merged into one class.
        synonyms: how several names of a class count: "mean", by the mean of their embeddings, or "best", by the best
            score.
        min_confidence: below it a pixel is unknown; 0: none is.
        unknown: what such pixels are called.
        palette: of the classes that have no colour of their own; one of `visualize.PALETTES`.
    """

    classes: tuple[NamedClass, ...]
    background: tuple[NamedClass, ...] = ()
    synonyms: Synonyms = "mean"
    min_confidence: float = 0.0
    unknown: str = UNKNOWN
    palette: str = "distinct"

    @classmethod
    def of(cls, names: "Names | ClassList", **options: Unpack[Options]) -> Self:
        """Class names in any form (docs/class_lists.md).

        Args:
            names: as for `names_of`; or a `ClassList`, of which `options` are changed.
            **options: `background`: names that compete, in any form, and become one class. `synonyms`: "mean" or
                "best". `min_confidence`: from 0 to 1. `unknown`: a text. `palette`: one of `visualize.PALETTES`.

        Raises:
            UserError: the names cannot be read, a value is no such value, or two classes would be shown alike.
        """
        if not isinstance(names, ClassList):
            names = ClassList(_classes(names))
        changed: dict[str, Any] = dict(options)
        if "background" in changed:
            other = changed["background"]
            changed["background"] = other.classes if isinstance(other, ClassList) else _background(other)
        if "min_confidence" in changed:
            changed["min_confidence"] = _threshold(changed["min_confidence"])
        said = {field.name: changed.get(field.name, getattr(names, field.name)) for field in dataclasses.fields(names)}
        asked = cls(**said)
        asked._check()
        return asked

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """What results call their classes."""
        shown = [one.shown for one in self.classes]
        return (*shown, *[BACKGROUND] * bool(self.background), *[self.unknown] * self.has_unknown)

    @functools.cached_property
    def colors(self) -> UInt8[np.ndarray, "t 3"]:
        """Of `names`, RGB: the classes' own, where they have one, greys of what is none of them, and the palette's."""
        own = [one.color for one in self.classes]
        given = (*own, *[BACKGROUND_COLOR] * bool(self.background), *[UNKNOWN_COLOR] * self.has_unknown)
        known = {name: color for name, color in zip(self.names, given, strict=True) if color is not None}
        return class_colors(self.names, self.palette, known)

    @property
    def has_unknown(self) -> bool:
        """Whether the last of `names` is unknown."""
        return self.min_confidence > 0

    @functools.cached_property
    def rows(self) -> tuple[NamedClass, ...]:
        """What a model scores: with "best" each name by itself."""
        return tuple(row for one in (*self.classes, *self.background) for row in self._rows_of(one))

    @functools.cached_property
    def answers(self) -> Int[np.ndarray, " rows"]:
        """For each of `rows` the index of its class in `names`."""
        counts = [len(self._rows_of(one)) for one in (*self.classes, *self.background)]
        indices = np.minimum(np.arange(len(counts)), len(self.classes))
        return np.repeat(indices, counts).astype(np.int32)

    @property
    def is_plain(self) -> bool:
        """Whether a model's answers are the answers: each row is a class, and there are no others."""
        return not self.background and not self.has_unknown and len(self.rows) == len(self.classes)

    def question(self) -> dict[str, Any]:
        """All that it asks, as plain values; what is as usual is None."""
        usual = ClassList(self.classes)
        return {
            "names": [one.row() for one in self.classes],
            "background": [one.row() for one in self.background] or None,
            "use of synonyms": None if self.synonyms == usual.synonyms else self.synonyms,
            "threshold": {"min_confidence": self.min_confidence, "unknown": self.unknown} if self.has_unknown else None,
            "palette": None if self.palette == usual.palette else self.palette,
        }

    def remark(self) -> dict[str, Any]:
        """What is kept with a summary, where more is asked than names."""
        if all(one.is_plain for one in self.classes) and self.is_plain:
            return {}
        return {"asked": {word: value for word, value in self.question().items() if value is not None}}

    def _rows_of(self, one: NamedClass) -> tuple[NamedClass, ...]:
        return one.apart() if self.synonyms == "best" else (one,)

    def _check(self) -> None:
        if self.synonyms not in get_args(Synonyms):
            raise UserError(f"synonyms is {one_line(repr(self.synonyms), 60)}; choose 'mean' or 'best'")
        if not isinstance(self.unknown, str) or not self.unknown.strip():
            raise UserError(f"the name of what is unknown is {one_line(repr(self.unknown), 60)}; give it a text")
        check_palette(self.palette)
        if is_published(self.names):
            return
        places = Counter(map(spoken_whole, self.names))
        for name in self.names[::-1]:
            if places[spoken_whole(name)] == 1:
                continue
            if self.has_unknown and spoken_whole(name) == spoken_whole(self.unknown):
                raise UserError(
                    f"pixels below min_confidence would be called {name!r}, as a class is; give unknown another name"
                )
            if self.background and spoken_whole(name) == BACKGROUND:
                raise UserError(
                    "a class is called 'background', as the names of the option background are together; leave one out"
                )
            if any(one.display or one.prompt for one in self.classes if one.shown == name):
                raise UserError(f"several classes are shown as {name!r}; give each a display name of its own")


def spoken_whole(name: str) -> str:
    """A name with all that stands in it, without case and spacing."""
    return " ".join(name.lower().split())


def _classes(names: Names) -> tuple[NamedClass, ...]:
    return tuple(map(NamedClass.of, names_of(names)))


def _background(names: Names) -> tuple[NamedClass, ...]:
    try:
        return _classes(names)
    except UserError as error:
        raise UserError(f"in the background, {error}") from error


def _threshold(value: Any) -> float:
    number = value if isinstance(value, int | float | np.number) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= 1:
        raise UserError(f"min_confidence is {one_line(repr(value), 60)}; give a number from 0 to 1")
    return float(number)
