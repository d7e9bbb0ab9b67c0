"""A class as it is asked for: its names, and what may be said of it besides."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.text.class_lists.colors import Color, read_color
from dinov3seg_jax.text.class_lists.marks import BARS, unquoted
from dinov3seg_jax.text.tips_tokenizer import ASCII_LOWER

SLOT = "{}"
SAID = ("synonyms", "prompt", "display", "color")  # of a class, beside its name
SPELLINGS = {"synonym": "synonyms", "displayname": "display", "colour": "color"}


@dataclass(frozen=True)
class NamedClass:
    """One class.

    Attributes:
        names: one, or several that mean the same; the first is shown.
        prompt: asked instead of the templates: with `{}` where the name belongs, or a sentence as it is.
        display: shown instead of the first name.
        color: RGB, 0 to 255; None: that of the palette.
    """

    names: tuple[str, ...]
    prompt: str = ""
    display: str = ""
    color: Color | None = None

    @property
    def shown(self) -> str:
        """What a result calls it."""
        return self.display or self.names[0]

    @property
    def is_plain(self) -> bool:
        """Whether it is a name and nothing more."""
        return self == NamedClass(self.names[:1])

    def apart(self) -> tuple["NamedClass", ...]:
        """Each of its names as a class of its own; names that are asked alike count once."""
        ways: dict[str, str] = {}
        for name in self.names:
            ways.setdefault(name_asked(name, self.prompt), name)
        return tuple(NamedClass((name,), self.prompt) for name in ways.values())

    @classmethod
    def of(cls, given: "Given", source: str = "the list of class names") -> Self:
        """What was given for one class: a text, with `|` between several names; several names; a row of a file.

        Raises:
            UserError: it is none of these.
        """
        if isinstance(given, NamedClass):
            return cls(given.names, given.prompt, given.display, given.color)
        if isinstance(given, Mapping):
            return cls.of_row(given, source)
        if isinstance(given, str):
            return cls(_names_in(given, source))
        if not given or not all(isinstance(name, str) for name in given):
            raise UserError(f"{source} holds {one_line(repr(given), 60)}; give the names of a class as texts")
        return cls(tuple(name for text in given for name in _names_in(text, source)))

    @classmethod
    def of_row(cls, row: Mapping[str, Any], source: str) -> Self:
        """A row with the keys `name`, `synonyms`, `prompt`, `display` and `color`, of which only the first is needed.

        Args:
            row: plain values. Synonyms are a list, or a text with `|`, `;` or `,` between them.
            source: what an error calls the list.

        Raises:
            UserError: a value is of another kind.
        """
        own, said = cls.of(_text(row, "name", source), source), said_in(row)
        others = said.get("synonyms") or ()
        if isinstance(others, str):
            others = [part for part in re.split(rf"[{BARS};,]", others) if part.strip()]
        if not isinstance(others, Sequence) or not all(isinstance(other, str) for other in others):
            raise UserError(
                f"{source} gives {own.names[0]!r} the synonyms {one_line(repr(others), 60)}; give a list of texts"
            )
        names = own.names + tuple(stripped for other in others if (stripped := other.strip()))
        color = said.get("color")
        return cls(
            tuple(dict.fromkeys(names)),
            _text(said, "prompt", source),
            _text(said, "display", source),
            None if color is None else read_color(color, f"the color of {own.names[0]!r} in {source}"),
        )

    def row(self) -> str | dict[str, Any]:
        """As it would stand in a JSON list."""
        if self.is_plain:
            return self.names[0]
        said = {
            "synonyms": list(self.names[1:]),
            "prompt": self.prompt,
            "display": self.display,
            "color": self.color and list(self.color),
        }
        return {"name": self.names[0]} | {key: value for key, value in said.items() if value}


Given = str | Sequence[str] | Mapping[str, Any] | NamedClass


def said_in(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What a row says of `SAID`, whatever the case of its keys and however these are spelled."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        word = re.sub(r"[\s_\-]", "", str(key)).lower()
        word = SPELLINGS.get(word, word)
        if word in SAID and value is not None:
            found[word] = value
    return found


def prompt_name(name: str) -> str:
    """The part of a class name that is prompted: of "rug, carpet" only the first, as CAT-Seg does."""
    return name.strip().split(", ")[0].strip()


def spoken_name(name: str) -> str:
    """The same without what no tokenizer makes a difference of: case of ASCII's letters, and spacing."""
    return " ".join(prompt_name(name).translate(ASCII_LOWER).split())


def name_asked(name: str, prompt: str) -> str:
    """`spoken_name`, or nothing where the prompt is a sentence that has no place for it."""
    return "" if prompt and SLOT not in prompt else spoken_name(name)


def _names_in(text: str, source: str) -> tuple[str, ...]:
    if not any(bar in text for bar in BARS):
        return (text.strip(),)
    names = tuple(unquoted(part) for part in re.split(f"[{BARS}]", unquoted(text)))
    if not all(names):
        raise UserError(
            f"{source} holds {one_line(text, 60)!r} with no name on one side of a '|'; write one or remove it"
        )
    return names


def _text(row: Mapping[str, Any], key: str, source: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{source} gives a class the {key} {one_line(repr(value), 60)}; write a text")
    return (value or "").strip()
