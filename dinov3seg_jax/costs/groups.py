"""Which devices take part in a collective, by the text of a program, and how many of their links join them."""

import itertools
import re
from collections.abc import Sequence

import numpy as np

_FIRST = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([^)]*\))?[^)]*)\))? *\{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")

Place = Sequence[int]  # of a chip in the torus of its slice, an entry for each axis


def first_group(attributes: str) -> list[int]:
    """The devices of the first group of a collective, or its first pair; [0] if it names none.

    Args:
        attributes: with replica_groups of the forms [2,4]<=[8], {{0,1},{2,3}} and mesh['x'=4,'y'=2] {'x'}, or with
            source_target_pairs.
    """
    if found := _COUNTED.search(attributes):
        return [int(one) for one in _counted(found[2]).reshape(_numbers(found[1]))[0]]
    if found := _FIRST.search(attributes):
        return _numbers(found[1]) or [0]
    if found := _MESH.search(attributes):
        return _of_mesh(found[1], found[2] or "", found[3])
    return [0]


def share_of_links(group: Sequence[int], places: Sequence[Place]) -> float:
    """Of the links of a chip, 0 to 1, those along axes of the torus that lead from one of a group's chips to another.

    Args:
        group: of devices, by their places in the mesh.
        places: of all of them; empty where they are not known, which counts as all links.
    """
    wide = _crossed(places)
    crossed = _crossed([places[one] for one in group]) if wide else 0
    return crossed / wide if crossed else 1


def _crossed(places: Sequence[Place]) -> int:
    return sum(len(set(along)) > 1 for along in zip(*places, strict=True))


def _of_mesh(sides: str, devices: str, along: str) -> list[int]:
    """Of named axes, or of parts of them: 'x':(2)4 is the one of 4 that is left when 2 are split off before it."""
    axes = {name: [(1, int(size))] for name, size in re.findall(r"'(\w+)'=(\d+)", sides)}
    count = int(np.prod([size for ((_, size),) in axes.values()]))
    taken = [(name, int(before or 1), int(size or axes[name][0][1])) for name, before, size in _AXIS.findall(along)]
    for name, before, size in taken:
        axes[name] = _split(axes[name], before, size)
    parts = [(name, *part) for name in axes for part in axes[name]]
    ids = (_counted(devices) if devices else np.arange(count)).reshape([size for _, _, size in parts])
    return [int(one) for one in ids[tuple(slice(None) if part in taken else 0 for part in parts)].ravel()]


def _split(parts: list[tuple[int, int]], before: int, size: int) -> list[tuple[int, int]]:
    """An axis, of parts (product of those before, size), cut so that one of the parts is (before, size)."""
    borders = {border for first, length in parts for border in (first, first * length)} | {before, before * size}
    return [(first, last // first) for first, last in itertools.pairwise(sorted(borders))]


def _counted(text: str) -> np.ndarray:
    """Numbers from 0, of the form [2,4]T(1,0): as an array of these sides, its axes then put into another order."""
    sides, _, order = text.partition("T")
    if not text.startswith("["):
        return np.array(_numbers(text))
    numbers = np.arange(np.prod(_numbers(sides))).reshape(_numbers(sides))
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
