"""Where the parts of a line stand that has Arabic or Hebrew in it: Unicode's bidirectional algorithm (UAX 9).

Its rules for plain text are here, by their numbers there; its controls have no effect. Libraries return the letters as
they stand; a font that joins Arabic letters needs them as they are read.
"""

import unicodedata
from itertools import groupby

_BRACKETS = dict(zip("([{（「【", ")]}）」】", strict=True))
_TURNED = str.maketrans(_BRACKETS | {end: start for start, end in _BRACKETS.items()})
_NEUTRAL = ("B", "S", "WS", "ON", "ES", "ET", "CS", "BN", "LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def parts_from_left(line: str) -> list[tuple[str, bool]]:
    """A line's parts in the order in which they stand from left to right.

    Args:
        line: in the order in which it is read.

    Returns:
        Each part as it is read, and whether it is read from right to left.
    """
    kinds = [unicodedata.bidirectional(letter) or "L" for letter in line]
    base = next((int(kind != "L") for kind in kinds if kind in ("L", "R", "AL")), 0)
    levels = _levels(kinds, line, base)
    parts: list[tuple[int, str]] = []
    for level, group in groupby(zip(levels, line, strict=True), key=lambda pair: pair[0]):
        parts.append((level, "".join(letter for _, letter in group)))
    for least in range(max(levels, default=0), 0, -1):  # L2
        ordered: list[tuple[int, str]] = []
        for turned, chunk in groupby(parts, key=lambda part: part[0] >= least):
            together = list(chunk)
            ordered.extend(reversed(together) if turned else together)
        parts = ordered
    return [(text, level % 2 == 1) for level, text in parts]


def from_left(part: str) -> str:
    """A part that is read from right to left, as its letters stand from left to right; brackets are turned round."""
    marked: list[str] = []
    for letter in part:  # marks stay behind their letters
        if marked and unicodedata.category(letter).startswith("M"):
            marked[-1] += letter
        else:
            marked.append(letter.translate(_TURNED))
    return "".join(reversed(marked))


def _levels(kinds: list[str], line: str, base: int) -> list[int]:
    """The level of each letter: odd ones are read from right to left."""
    side = "R" if base else "L"
    kinds = _brackets(_strong_numbers(_marks(kinds, side), side), line, side)
    levels = []
    for kind in _neutrals(kinds, side):  # I1, I2
        if base:
            levels.append(1 if kind == "R" else 2)
        else:
            levels.append({"L": 0, "R": 1}.get(kind, 2))
    return levels


def _marks(kinds: list[str], side: str) -> list[str]:
    """W1: a mark is of the kind of its letter."""
    kinds = list(kinds)
    for place, kind in enumerate(kinds):
        if kind == "NSM":
            kinds[place] = kinds[place - 1] if place else side
    return kinds


def _strong_numbers(kinds: list[str], side: str) -> list[str]:
    """W2 to W7: numbers by the letters before them, and the signs that belong to numbers."""
    kinds = list(kinds)
    strong = side
    for place, kind in enumerate(kinds):  # W2
        if kind in ("L", "R", "AL"):
            strong = kind
        elif kind == "EN" and strong == "AL":
            kinds[place] = "AN"
    kinds = ["R" if kind == "AL" else kind for kind in kinds]  # W3
    for place in range(1, len(kinds) - 1):  # W4
        before, kind, after = kinds[place - 1 : place + 2]
        if before == after and (kind, before) in (("ES", "EN"), ("CS", "EN"), ("CS", "AN")):
            kinds[place] = before
    start = 0
    for kind, group in groupby(list(kinds)):  # W5
        end = start + len(list(group))
        if kind == "ET" and "EN" in (kinds[start - 1 : start] + kinds[end : end + 1]):
            kinds[start:end] = ["EN"] * (end - start)
        start = end
    strong = side
    for place, kind in enumerate(kinds):  # W7
        if kind in ("L", "R"):
            strong = kind
        elif kind == "EN" and strong == "L":
            kinds[place] = "L"
    return kinds


def _brackets(kinds: list[str], line: str, side: str) -> list[str]:
    """N0: both brackets of a pair have one direction: that of the line, or another that is within and before them."""
    kinds = list(kinds)
    for start, end in _pairs(line):
        within = {_direction(kind) for kind in kinds[start + 1 : end]} - {None}
        before = next((found for kind in reversed(kinds[:start]) if (found := _direction(kind))), side)
        if within:
            kinds[start] = kinds[end] = side if side in within else before if before in within else side
    return kinds


def _pairs(line: str) -> list[tuple[int, int]]:
    """Places of brackets that belong together, in the order in which they open."""
    opened: list[int] = []
    pairs = []
    for place, letter in enumerate(line):
        if letter in _BRACKETS:
            opened.append(place)
        elif letter in _BRACKETS.values():
            for depth in reversed(range(len(opened))):
                if _BRACKETS[line[opened[depth]]] == letter:
                    pairs.append((opened[depth], place))
                    del opened[depth:]
                    break
    return sorted(pairs)


def _direction(kind: str) -> str | None:
    """The direction that neutral signs around it see: a number goes with what is read from right to left."""
    return {"L": "L", "R": "R", "EN": "R", "AN": "R"}.get(kind)


def _neutrals(kinds: list[str], side: str) -> list[str]:
    """N1, N2: what has no direction takes that of both sides if they agree (a number is R here), else the line's."""
    kinds, start = list(kinds), 0
    for neutral, group in groupby([kind in _NEUTRAL for kind in kinds]):
        end = start + len(list(group))
        if neutral:
            sides = [_direction(kinds[place]) if 0 <= place < len(kinds) else side for place in (start - 1, end)]
            kinds[start:end] = [sides[0] or side if sides[0] == sides[1] else side] * (end - start)
        start = end
    return kinds
