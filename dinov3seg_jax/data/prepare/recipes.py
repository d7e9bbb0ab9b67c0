"""One row for each data set that can be prepared: how its files are found and how its labels are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dinov3seg_jax.data.prepare import ade20k, coco_stuff, pascal_context, voc
from dinov3seg_jax.data.prepare.archives import Member
from dinov3seg_jax.data.prepare.decoding import read_indices
from dinov3seg_jax.data.prepare.matching import Listing


@dataclass(frozen=True)
class Recipe:
    """What differs from one data set to the next; the rest is in `data.benchmark_sets` and label_maps.json."""

    archives: str  # to download
    list_examples: Callable[[Sequence[Member], str], Listing]  # of a split, by its official name
    read_label: Callable[..., np.ndarray]  # from `Example.label` to original values, int32 [H, W]
    leave_out_unlabelled: bool = False  # images without a single labelled pixel


_CONTEXT_IMAGES = "VOCtrainval_03-May-2010.tar"
_VOC = Recipe(
    "VOCtrainval_11-May-2012.tar and SegmentationClassAug.zip",
    voc.list_examples,
    read_indices,
    leave_out_unlabelled=True,
)

RECIPES: dict[str, Recipe] = {
    "coco_stuff_171": Recipe(
        "train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip", coco_stuff.list_examples, read_indices
    ),
    "ade20k_150": Recipe("ADEChallengeData2016.zip", ade20k.list_challenge, read_indices),
    "ade20k_847": Recipe("the full release, ADE20K_2021_17_01.zip", ade20k.list_full, ade20k.read_full_label),
    "pascal_context_59": Recipe(
        f"{_CONTEXT_IMAGES} and trainval_merged.json", pascal_context.list_59, pascal_context.paint
    ),
    "pascal_context_459": Recipe(
        f"{_CONTEXT_IMAGES}, trainval.tar.gz and pascalcontext_val.txt (or trainval_merged.json)",
        pascal_context.list_459,
        pascal_context.read_label_map,
    ),
    "voc_20": _VOC,
    "voc_20b": _VOC,
}
