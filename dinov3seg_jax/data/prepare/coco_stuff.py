"""COCO-Stuff: the COCO 2017 images, and one 8-bit PNG for each in stuffthingmaps_trainval2017.zip."""

from collections.abc import Sequence

from dinov3seg_jax.data.prepare.archives import Member
from dinov3seg_jax.data.prepare.matching import Listing, pair, select


def list_examples(members: Sequence[Member], split: str) -> Listing:
    """The files of "train2017" or "val2017"."""
    return pair(
        select(members, rf"{split}/(?P<name>[^/]+)\.jpg"),
        select(members, rf"{split}/(?P<name>[^/]+)\.png"),
    )
