"""Which files of the sources belong together, by patterns on the ends of their paths."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dinov3seg_jax.data.prepare.archives import INDEX_BYTES, Member, read_member
from dinov3seg_jax.errors import UserError


@dataclass(frozen=True)
class Example:
    """A picture and what its labels are read from."""

    name: str  # without folders and ending; no two of a split are the same
    image: Member
    label: Any  # a `Member`, or what else the recipe's `read_label` takes


@dataclass(frozen=True)
class Listing:
    """What the sources hold of a split."""

    examples: tuple[Example, ...]  # by name
    incomplete: tuple[str, ...]  # a sentence for every name that lacks its image or its labels


def select(members: Iterable[Member], pattern: str, other_year: str = "") -> dict[str, Member]:
    """The files whose path ends in a pattern, by its group "name".

    Args:
        members: of all sources.
        pattern: a regular expression for whole path components, such as r"images/(?P<name>[^/]+)\\.jpg".
        other_year: a regular expression; paths with a component that it matches are passed over, as are those which
            the field's own preparation has written ("annotations_detectron2").

    Raises:
        UserError: Two files have the same name.
    """
    wanted = re.compile(rf"(?:^|/){pattern}$")
    unwanted = re.compile(rf"[^/]+_detectron2(_bg)?|{other_year or '(?!)'}")
    found: dict[str, Member] = {}
    for member in members:
        match = wanted.search(member.name)
        if match is None or any(unwanted.fullmatch(part) for part in PurePosixPath(member.name).parts):
            continue
        if match["name"] in found:
            raise UserError(f"{member} and {found[match['name']]} are of one name; name only one of them in --source.")
        found[match["name"]] = member
    return found


def pair(images: Mapping[str, Member], labels: Mapping[str, Any], names: Iterable[str] | None = None) -> Listing:
    """Match images and labels by name.

    Args:
        images, labels: by name.
        names: of the split, where its files do not tell; None: all that there are, on both sides.
    """
    examples, incomplete = [], []
    for name in sorted(set(names) if names is not None else images.keys() | labels.keys()):
        image, label = images.get(name), labels.get(name)
        if image is None:
            incomplete.append(f"{name} has labels or is listed, but its image is missing")
        elif label is None:
            incomplete.append(f"the image {image} has no labels")
        else:
            examples.append(Example(name, image, label))
    return Listing(tuple(examples), tuple(incomplete))


def read_list(members: Sequence[Member], pattern: str, other_year: str = "") -> tuple[str, ...] | None:
    """The names in a text file, one a line, or None if there is no such file; `pattern` as for `select`."""
    files = list(select(members, pattern, other_year).values())
    if not files:
        return None
    names = read_member(files[0], INDEX_BYTES).decode("utf-8", "replace").split()
    if not names or len(set(names)) != len(names):
        raise UserError(f"{files[0]} is no list of different names; get the official one.")
    return tuple(names)
