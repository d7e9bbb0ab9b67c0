"""The benchmarks, one row each: where a data set is, what its labels mean, how it is scored, what others reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dinov3seg_jax.text.vocabularies import load_vocabulary

# The splits as users name them, and by which other names each data set's own tools know them.
TRAIN, EVAL = "train", "eval"


@dataclass(frozen=True)
class Split:
    """One split of a benchmark in the folder tree that the field's tools write, below `Benchmark.folder`."""

    name: str  # the official one
    images: str
    labels: str  # class indices, with `Benchmark.ignore`
    files: tuple[int, ...]  # the counts in use, the usual one first
    raw_labels: str = ""  # the annotations as downloaded, if they have one value for each class; see label_maps.json


@dataclass(frozen=True)
class Benchmark:
    """What a data set's name stands for."""

    title: str  # "ADE20K-150"
    column: str  # its title in tables: "A-150"
    dataset: str  # its key in `data.datasets.DATASETS`
    vocabulary: str  # its key in `text.vocabularies`: the names given to the model
    label_map: str  # its key in label_maps.json
    class_count: int  # classes in the truth; the vocabulary is longer where `merge_from` is set
    ignore: int  # the value in the tools' label files that stands for "no label"
    folder: str  # below the root that DETECTRON2_DATASETS names
    splits: Mapping[str, Split] = field(default_factory=dict)  # by "train" and "eval"
    label_bits: tuple[int, ...] = (8,)  # of the tools' label files
    shared_images: bool = False  # the image folder holds more than the split: the label files say which belong to it
    other_raw_values: tuple[int, ...] = ()  # values of raw labels that are no class
    merge_from: int | None = None  # a predicted index of this or more counts as this one
    shrink_short_side: int | None = None  # images are stored, and scored, at this short side if theirs is longer
    paper_miou: float | None = None  # of dinov3.seg, in percent
    protocol: str = ""  # what one has to know to compare scores

    @property
    def names(self) -> tuple[str, ...]:
        """The names given to the model, in the order of class indices."""
        return load_vocabulary(self.vocabulary)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that are scored; with `merge_from`, the last one is "background"."""
        return self.names if self.merge_from is None else (*self.names[: self.merge_from], "background")


BENCHMARKS: dict[str, Benchmark] = {
    "coco_stuff_171": Benchmark(
        title="COCO-Stuff-171",
        column="COCO-Stuff",
        dataset="coco_stuff_171",
        vocabulary="coco_stuff_171",
        label_map="coco_stuff_171",
        class_count=171,
        ignore=255,
        folder="coco-stuff",
        splits={
            TRAIN: Split(
                "train2017",
                "images/train2017",
                "annotations_detectron2/train2017",
                (118_287,),
                "annotations/train2017",
            ),
            EVAL: Split("val2017", "images/val2017", "annotations_detectron2/val2017", (5_000,), "annotations/val2017"),
        },
        other_raw_values=tuple(range(256)),
        protocol="what the paper trains on: not an unseen benchmark",
    ),
    "ade20k_150": Benchmark(
        title="ADE20K-150",
        column="A-150",
        dataset="ade20k_150",
        vocabulary="ade_150",
        label_map="ade_150",
        class_count=150,
        ignore=255,
        folder="ADEChallengeData2016",
        splits={
            TRAIN: Split(
                "training", "images/training", "annotations_detectron2/training", (20_210,), "annotations/training"
            ),
            EVAL: Split(
                "validation",
                "images/validation",
                "annotations_detectron2/validation",
                (2_000,),
                "annotations/validation",
            ),
        },
        other_raw_values=(0,),
        paper_miou=42.19,
        protocol="the value 0, other objects, is ignored",
    ),
    "ade20k_847": Benchmark(
        title="ADE20K-847",
        column="A-847",
        dataset="ade20k_847",
        vocabulary="ade_847",
        label_map="ade_847",
        class_count=847,
        ignore=65535,
        folder="ADE20K_2021_17_01",
        splits={
            TRAIN: Split("training", "images_detectron2/training", "annotations_detectron2/training", (25_574,)),
            EVAL: Split("validation", "images_detectron2/validation", "annotations_detectron2/validation", (2_000,)),
        },
        label_bits=(16,),
        shrink_short_side=512,
        paper_miou=20.09,
        protocol="scored at a short side of 512 pixels where the original is larger",
    ),
    "pascal_context_59": Benchmark(
        title="Pascal-Context-59",
        column="PC-59",
        dataset="pascal_context_59",
        vocabulary="pc_59",
        label_map="pc_59",
        class_count=59,
        ignore=255,
        folder="VOCdevkit/VOC2010",
        splits={
            TRAIN: Split("train", "JPEGImages", "annotations_detectron2/pc59_train", (4_996, 4_998)),
            EVAL: Split("val", "JPEGImages", "annotations_detectron2/pc59_val", (5_104, 5_105)),
        },
        shared_images=True,
        paper_miou=64.27,
        protocol="what is none of the 59 classes is ignored",
    ),
    "pascal_context_459": Benchmark(
        title="Pascal-Context-459",
        column="PC-459",
        dataset="pascal_context_459",
        vocabulary="pc_459",
        label_map="pc_459",
        class_count=459,
        ignore=459,
        folder="VOCdevkit/VOC2010",
        splits={
            TRAIN: Split("train", "JPEGImages", "annotations_detectron2/pc459_train", (4_996, 4_998)),
            EVAL: Split("val", "JPEGImages", "annotations_detectron2/pc459_val", (5_104,)),
        },
        label_bits=(8, 16),  # the width of each .mat file's own LabelMap
        shared_images=True,
        paper_miou=27.80,
        protocol="nothing is ignored; 'unknown' is an ordinary class",
    ),
    "voc_20": Benchmark(
        title="Pascal VOC-20",
        column="PAS-20",
        dataset="voc_20",
        vocabulary="voc_20",
        label_map="voc_20",
        class_count=20,
        ignore=255,
        folder="VOCdevkit/VOC2012",
        splits={EVAL: Split("val", "JPEGImages", "annotations_detectron2/val", (1_449,))},
        shared_images=True,
        paper_miou=97.86,
        protocol="background is ignored, and images that show nothing else are left out",
    ),
    "voc_20b": Benchmark(
        title="Pascal VOC-20b",
        column="PAS-20b",
        dataset="voc_20b",
        vocabulary="voc_20b",
        label_map="voc_20b",
        class_count=21,
        ignore=255,
        folder="VOCdevkit/VOC2012",
        splits={EVAL: Split("val", "JPEGImages", "annotations_detectron2_bg/val", (1_449,))},
        shared_images=True,
        merge_from=20,
        protocol="59 names are offered, of which the last 39 count as background, the 21st class",
    ),
}

# The paper's table, in its order.
FIVE = ("ade20k_847", "pascal_context_459", "ade20k_150", "pascal_context_59", "voc_20")


@dataclass(frozen=True)
class Published:
    """What a method is reported to reach, trained on COCO and tested on data sets it never saw."""

    method: str
    backbone: str
    miou: Mapping[str, float]  # in percent, by the names of BENCHMARKS
    mean: float | None = None  # of FIVE, as published
    source: str = "its authors"


def _five(a847: float, pc459: float, a150: float, pc59: float, voc20: float) -> dict[str, float]:
    return dict(zip(FIVE, (a847, pc459, a150, pc59, voc20), strict=True))


# docs/method.md, §9. The first row is the paper's.
PUBLISHED: tuple[Published, ...] = (
    Published("dinov3.seg", "dinov3.txt ViT-L", _five(20.09, 27.80, 42.19, 64.27, 97.86), 50.44),
    Published("ESC-Net L", "CLIP L/14", _five(18.1, 27.0, 41.8, 65.6, 98.3), 50.16, "two summaries of its paper"),
    Published("CAT-Seg L", "CLIP L/14", _five(16.0, 23.8, 37.9, 63.3, 97.0) | {"voc_20b": 82.5}, 47.60),
)
