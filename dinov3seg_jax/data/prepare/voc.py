"""Pascal VOC 2012: the images of the official tar, and the labels of SegmentationClassAug.zip."""

from collections.abc import Sequence

from dinov3seg_jax.data.prepare.archives import Member
from dinov3seg_jax.data.prepare.matching import Listing, pair, read_list, select

OTHER_YEAR = r"VOC(?!2012)\d{4}"


def list_examples(members: Sequence[Member], split: str) -> Listing:
    """The files that `ImageSets/Segmentation/<split>.txt` names."""
    names = read_list(members, rf"ImageSets/Segmentation/(?P<name>{split})\.txt", OTHER_YEAR)
    return pair(
        select(members, r"JPEGImages/(?P<name>[^/]+)\.jpg", OTHER_YEAR),
        select(members, r"SegmentationClassAug/(?P<name>[^/]+)\.png", OTHER_YEAR),
        names or (),
    )
