"""The colour of each class: of a published table, by the name alone, or by the place in the list."""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

import numpy as np

from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.visualize.distinct import MAX_COLORS, colorblind, lab, palette

BY_PLACE = {"distinct": palette, "colorblind": colorblind}
BY_NAME = ("by_name", "ade20k", "coco", "coco_stuff", "voc")  # of which all but the first have a table in `colors/`
PALETTES = (*BY_PLACE, *BY_NAME)

_FIRST = 128  # colours, of which a name that no table has takes one; more would be harder to tell apart
_SLOTS = 512  # where that is taken, it may be one of these; where there are more names, of `MAX_COLORS`
_ALIKE = 15.0  # in CIELAB: nearer ones are easily taken for each other; no two of `_FIRST` are
_ENDINGS = re.compile("(-(merged|other|stuff))+$")  # of COCO's names: "sky-other-merged" is the sky

Color = tuple[int, int, int]


def class_colors(
    names: Sequence[str], palette: str = "distinct", given: Mapping[str, Sequence[int]] | None = None
) -> np.ndarray:
    """The colour of each class.

    "distinct" and "colorblind" go by the place in the list, the others by the name: a class of the table has its
    published colour in every list. A name that the table does not know gets a colour that depends on the name. Only
    where another class of the list has one too like it, the later one in the alphabet gets another.

    Args:
        names: T names. "sky-other" and "rug, carpet" are found in a table as "sky" and "rug", too.
        palette: one of `PALETTES`; docs/overlays.md says where each comes from.
        given: colours, RGB, of some of the names; they go before all others.

    Returns:
        uint8 [T, 3], RGB. No two are equal, unless they were given so, or there are more than `MAX_COLORS`.

    Raises:
        UserError: there is no such palette.
    """
    check_palette(palette)
    chosen = {place: _color(given[name]) for place, name in enumerate(names) if given and name in given}
    if palette in BY_PLACE:
        _fill_by_place(chosen, len(names), palette)
    else:
        _fill_by_name(chosen, names, _table(palette))
    return np.array([chosen[place] for place in range(len(names))], np.uint8).reshape(-1, 3)


def check_palette(palette: str) -> None:
    """Raise a `UserError` if there is no such palette."""
    if palette not in PALETTES:
        word = one_line(palette, 40)
        raise UserError(
            f"there is no palette '{word}'{did_you_mean(word, PALETTES)}; choose one of {', '.join(PALETTES)}"
        )


def _fill_by_place(chosen: dict[int, Color], count: int, palette: str) -> None:
    make, total = BY_PLACE[palette], min(count, MAX_COLORS)
    if not chosen:
        chosen.update(enumerate(map(_color, np.resize(make(total), (count, 3)))))
        return
    slots = make(min(2 * total, MAX_COLORS))
    given = _Free(slots, chosen)
    others = [place for place in range(count) if place not in chosen]
    chosen.update((place, _color(slots[place % total])) for place in others if given.has(place % total))
    free = _Free(slots, chosen)
    for place in others:
        if place not in chosen:
            chosen[place] = free.take(total)


def _fill_by_name(chosen: dict[int, Color], names: Sequence[str], table: Mapping[str, Color]) -> None:
    used = set(chosen.values())
    for place, color in _published(names, table):
        if place not in chosen and color not in used:
            chosen[place] = color
            used.add(color)
    left = sorted((name, place) for place, name in enumerate(names) if place not in chosen)
    slots = palette(_SLOTS if len(left) <= _SLOTS else MAX_COLORS)
    free = _Free(slots, chosen)
    for name, place in left:
        chosen[place] = free.take(_number(name) % _FIRST)


def _published(names: Sequence[str], table: Mapping[str, Color]) -> Iterator[tuple[int, Color]]:
    """Places of known names, with their colours; those whose name is the table's own come first."""
    own = {_key(name): color for name, color in table.items()}
    meant = {_key(_ENDINGS.sub("", name)): color for name, color in table.items()} | own
    for known, ways in ((own, _as_it_is), (meant, _what_is_meant)):
        for place, name in enumerate(names):
            found = [known[key] for key in map(_key, ways(name)) if key in known]
            if found:
                yield place, found[0]


def _as_it_is(name: str) -> list[str]:
    return [name]


def _what_is_meant(name: str) -> list[str]:
    return [name, _ENDINGS.sub("", name), *re.split("[,;|]", name)]


@functools.cache
def _table(palette: str) -> dict[str, Color]:
    """Colours of names. Where a table gives several classes one colour, the first has it."""
    if palette == BY_NAME[0]:
        return {}
    text = (resources.files(__package__) / "colors" / f"{palette}.json").read_text(encoding="utf-8")
    table: dict[str, Color] = {}
    for name, color in json.loads(text).items():
        value = _color(bytes.fromhex(color[1:]))
        if value not in table.values():
            table[name] = value
    return table


def _key(name: str) -> str:
    """The same for "TV/monitor" and "tv monitor"."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _number(name: str) -> int:
    """A number that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big")


def _color(values: Sequence[int] | np.ndarray) -> Color:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


class _Free:
    """Colours that are still to have, none of them like one that is taken."""

    def __init__(self, slots: np.ndarray, taken: Mapping[int, Color]):
        """Slots are uint8 [N, 3], N at least 1."""
        self._slots, self._seen = slots, lab(slots)
        self._distance = np.full(len(slots), np.inf)
        for color in set(taken.values()):
            self._keep_off(lab(np.array([color], np.uint8)))

    def has(self, slot: int) -> bool:
        """Whether that slot is free."""
        return bool(self._distance[slot] >= _ALIKE)

    def take(self, slot: int) -> Color:
        """That slot, or the next free one; where none is, the one that is least like all taken."""
        unlike = np.roll(self._distance >= _ALIKE, -slot)
        found = (slot + int(unlike.argmax())) % len(self._slots) if unlike.any() else int(self._distance.argmax())
        self._keep_off(self._seen[found : found + 1])
        return _color(self._slots[found])

    def _keep_off(self, seen: np.ndarray) -> None:
        self._distance = np.minimum(self._distance, np.sqrt(((self._seen - seen) ** 2).sum(axis=-1)))
