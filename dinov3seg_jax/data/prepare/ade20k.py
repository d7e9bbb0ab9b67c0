"""ADE20K: the challenge of 2016 with 150 classes, and the full release of 2021 with its values in two colours."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.data.label_maps import ade_values
from dinov3seg_jax.data.prepare.archives import Member
from dinov3seg_jax.data.prepare.decoding import read_colours
from dinov3seg_jax.data.prepare.matching import Listing, pair, select


def list_challenge(members: Sequence[Member], split: str) -> Listing:
    """The files of "training" or "validation" in ADEChallengeData2016.zip."""
    return pair(
        select(members, rf"images/{split}/(?P<name>[^/]+)\.jpg"),
        select(members, rf"annotations/{split}/(?P<name>[^/]+)\.png"),
    )


def list_full(members: Sequence[Member], split: str) -> Listing:
    """The files of "training" or "validation" in the full release, which sorts them by scene.

    The release's index repeats what its folders say, and is a program as much as a file: it is not read.
    """
    scenes = rf"images/ADE/{split}/(?:[^/]+/)*"
    return pair(
        select(members, rf"{scenes}(?P<name>[^/]+)\.jpg"),
        select(members, rf"{scenes}(?P<name>[^/]+)_seg\.png"),
    )


def read_full_label(label: Member) -> Int[np.ndarray, "h w"]:
    """The object values of a `*_seg.png`."""
    return ade_values(read_colours(label))
