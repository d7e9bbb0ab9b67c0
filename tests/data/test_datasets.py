"""Data sets by name: their layouts, names and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.datasets import DATASETS, class_names, open_dataset, prompt_names
from dinov3seg_jax.data.painted import CLASS_NAMES, UNSEEN_CLASSES
from dinov3seg_jax.errors import UserError

CLASSES = [{"id": 5, "name": "sky-other-merged", "isthing": 0}, {"id": 9, "name": "window-blind"}]


def _pair(images: Path, masks: Path, ids: list[int], name: str = "a") -> None:
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(ids), 1)).save(images / f"{name}.jpg")
    Image.fromarray(np.array([ids], np.uint8)).save(masks / f"{name}.png")


def _folder(root: Path, ids: list[int], classes: object = CLASSES) -> DatasetConfig:
    _pair(root / "images" / "val", root / "masks" / "val", ids)
    (root / "classes.json").write_text(json.dumps(classes))
    return DatasetConfig(name="folder", split="val", root=str(root))


def _sentence(config: DatasetConfig, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        _ = open_dataset(config).source[0]
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    for part in parts:
        assert part in message, message


def test_painted_training_offers_seen_classes_only():
    dataset = open_dataset(DatasetConfig(image_size=64))
    assert dataset.classes == CLASS_NAMES[: len(dataset.classes)]
    assert not UNSEEN_CLASSES & set(dataset.classes)
    assert dataset.seen == (True,) * len(dataset.classes)
    assert dataset.source[0]["label"].max() < len(dataset.classes)


def test_painted_evaluation_tells_what_was_unseen():
    dataset = open_dataset(DatasetConfig(split="eval", size=4, image_size=64))
    assert dataset.classes == CLASS_NAMES
    assert len(dataset.source) == 4
    assert {name for name, seen in zip(dataset.classes, dataset.seen, strict=True) if not seen} == UNSEEN_CLASSES


def test_painted_errors():
    _sentence(DatasetConfig(split="val"), "'val'", "'eval'")
    _sentence(DatasetConfig(split="eval"), "size")


def test_unknown_name_suggests_another():
    _sentence(DatasetConfig(name="painted_scene"), "did you mean 'painted_scenes'?")
    _sentence(DatasetConfig(name="zzz"), *DATASETS)


def test_folder_maps_ids_through_its_list(tmp_path):
    dataset = open_dataset(_folder(tmp_path, [5, 9, 0, 255]))
    assert dataset.classes == ("sky", "window-blind")
    assert dataset.seen is None
    np.testing.assert_array_equal(dataset.source[0]["label"], [[0, 1, -1, -1]])


def test_folder_does_not_ignore_what_it_lists(tmp_path):
    dataset = open_dataset(_folder(tmp_path, [0, 5], [{"id": 0, "name": "background"}, {"id": 5, "name": "cat"}]))
    np.testing.assert_array_equal(dataset.source[0]["label"], [[0, 1]])


def test_folder_refuses_undeclared_ids(tmp_path):
    _sentence(_folder(tmp_path, [5, 6]), "value 6", "a.png")


@pytest.mark.parametrize(
    ("classes", "part"),
    [
        ({}, "not a list"),
        ([], "not a list"),
        ([{"name": "cat"}], 'no "id"'),
        ([{"id": "1", "name": "cat"}], 'no "id"'),
        ([{"id": 1}], 'no "name"'),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "lists the id 1 2 times"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "lists the name 'a' 2 times"),
    ],
)
def test_folder_with_a_wrong_class_list(tmp_path, classes, part):
    _sentence(_folder(tmp_path, [1], classes), "classes.json", part)


def test_folder_without_a_readable_class_list(tmp_path):
    config = _folder(tmp_path, [5])
    (tmp_path / "classes.json").write_text("[{]")
    _sentence(config, "classes.json", "cannot be read")
    (tmp_path / "classes.json").unlink()
    _sentence(config, "classes.json", "does not exist")


@pytest.mark.parametrize("name", ["folder", "coco_panoptic", *BENCHMARKS])
def test_root_errors_name_the_folder_and_the_option(tmp_path, name):
    gone = str(tmp_path / "gone")
    _sentence(DatasetConfig(name=name, root=gone), gone, "--config.data.train.root=")
    _sentence(DatasetConfig(name=name, split="eval"), name, "--config.data.eval.root=")


def test_a_wrong_split_names_those_that_exist(tmp_path):
    config = _folder(tmp_path, [5])
    _sentence(DatasetConfig(name="folder", split="test", root=config.root), "splits val")
    _sentence(DatasetConfig(name="ade20k_150", split="test", root=config.root), "train or eval")


def test_a_root_without_the_benchmark(tmp_path):
    _sentence(DatasetConfig(name="coco_stuff_171", split="eval", root=str(tmp_path)), "coco-stuff", "root")


@pytest.mark.parametrize("split", ["eval", "validation"])
def test_ade_subtracts_one(tmp_path, split):
    top = tmp_path / "ADEChallengeData2016"
    _pair(top / "images" / "validation", top / "annotations" / "validation", [0, 1, 150])
    dataset = open_dataset(DatasetConfig(name="ade20k_150", split=split, root=str(tmp_path)))
    assert len(dataset.classes) == 150
    assert dataset.classes[0] == "wall"
    np.testing.assert_array_equal(dataset.source[0]["label"], [[-1, 0, 149]])


def test_ade_refuses_other_values(tmp_path):
    top = tmp_path / "ADEChallengeData2016"
    _pair(top / "images" / "training", top / "annotations" / "training", [151])
    _sentence(DatasetConfig(name="ade20k_150", root=str(tmp_path)), "value 151")


def test_coco_stuff_skips_the_gaps(tmp_path):
    top = tmp_path / "coco-stuff"
    _pair(top / "images" / "train2017", top / "annotations" / "train2017", [0, 10, 11, 12, 181, 255])
    dataset = open_dataset(DatasetConfig(name="coco_stuff_171", root=str(tmp_path)))
    assert len(dataset.classes) == 171
    assert dataset.classes[0] == "person"
    np.testing.assert_array_equal(dataset.source[0]["label"], [[0, 10, -1, 11, 170, -1]])


def _tree(root: Path, name: str, split: str, dtype: type | None = None) -> DatasetConfig:
    """A benchmark of one picture as the field's tools lay it out: the first class, the last one, "no label"."""
    benchmark = BENCHMARKS[name]
    images, labels = (
        root / benchmark.folder / part for part in (benchmark.splits[split].images, benchmark.splits[split].labels)
    )
    for folder in (images, labels):
        folder.mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(images / "a.jpg")
    if benchmark.shared_images:
        Image.new("RGB", (3, 1)).save(images / "of_another_split.jpg")
    wide = benchmark.label_bits[-1] == 16
    values = np.array([[0, benchmark.class_count - 1, benchmark.ignore]])
    Image.fromarray(values.astype(dtype or (np.uint16 if wide else np.uint8))).save(
        labels / f"a.{'tif' if wide else 'png'}"
    )
    return DatasetConfig(name=name, split=split, root=str(root))


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name, benchmark in BENCHMARKS.items() for split in benchmark.splits]
)
def test_a_tree_of_the_fields_tools_is_read_as_it_is(tmp_path, capsys, name, split):
    config = _tree(tmp_path, name, split)
    dataset = open_dataset(config)
    assert len(dataset.source) == 1
    np.testing.assert_array_equal(dataset.source[0]["label"], [[0, BENCHMARKS[name].class_count - 1, -1]])
    assert dataset.classes == class_names(DatasetConfig(name=name)) == BENCHMARKS[name].names
    assert dataset.merge_from == (20 if name == "voc_20b" else None)
    assert "has 1 images where there are" in capsys.readouterr().err  # and not as many as the benchmark has
    official = DatasetConfig(name=name, split=BENCHMARKS[name].splits[split].name, root=config.root)
    assert len(open_dataset(official).source) == 1
    top = DatasetConfig(name=name, split=split, root=str(tmp_path / BENCHMARKS[name].folder))
    assert len(open_dataset(top).source) == 1


def test_the_tools_labels_come_before_the_raw_ones(tmp_path):
    config = _tree(tmp_path, "ade20k_150", "eval")
    top = tmp_path / "ADEChallengeData2016"
    _pair(top / "images" / "validation", top / "annotations" / "validation", [1, 1, 1])
    np.testing.assert_array_equal(open_dataset(config).source[0]["label"], [[0, 149, -1]])


def test_labels_of_847_classes_that_were_cut_to_8_bits_are_refused(tmp_path):
    _sentence(_tree(tmp_path, "ade20k_847", "eval", np.uint8), "8 bits a pixel where 16 are due", "a.tif")


def test_pascal_context_459_is_as_wide_as_its_own_files(tmp_path):
    config = _tree(tmp_path, "pascal_context_459", "eval")
    label = tmp_path / "VOCdevkit/VOC2010/annotations_detectron2/pc459_val/a.tif"
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(label)
    np.testing.assert_array_equal(open_dataset(config).source[0]["label"], [[0, 1, 255]])


def test_a_benchmark_without_a_training_split(tmp_path):
    _sentence(DatasetConfig(name="voc_20", root=str(tmp_path)), "no split 'train'", "use eval")


def test_a_tree_without_labels_names_the_command_that_makes_them(tmp_path):
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    _sentence(DatasetConfig(name="voc_20", split="eval", root=str(tmp_path)), "dinov3seg prepare voc_20")


def test_coco_panoptic_may_be_a_folder_with_its_own_list(tmp_path):
    config = _folder(tmp_path, [5, 9, 0])
    dataset = open_dataset(DatasetConfig(name="coco_panoptic", split="val", root=config.root))
    np.testing.assert_array_equal(dataset.source[0]["label"], [[0, 1, -1]])
    assert dataset.classes == ("sky", "window-blind")


def test_suffixes_go_unless_names_would_meet():
    names = ["sky-other-merged", "door-stuff", "wall-brick", "wall-other", "fence-merged", "fence", "water-other"]
    assert prompt_names(names) == ("sky", "door", "wall-brick", "wall", "fence-merged", "fence", "water")


def test_a_suffix_stays_where_prompts_would_not_differ():
    names = ["Grass-other", "grass", "rug-merged, carpet", "sky-other-merged"]
    assert prompt_names(names) == ("Grass-other", "grass", "rug-merged, carpet", "sky")


def test_real_samples(samples):
    for split, count in (("train", 20), ("val", 8)):
        dataset = open_dataset(DatasetConfig(name="folder", split=split, root=str(samples / "coco_panoptic")))
        assert len(dataset.source) == count
        assert len(dataset.classes) == 133
        assert not any(name.endswith(("-merged", "-stuff", "-other")) for name in dataset.classes)
        for index in (0, count - 1):
            example = dataset.source[index]
            assert example["image"].shape[:2] == example["label"].shape
            assert example["label"].min() >= -1
            assert 0 <= example["label"].max() < 133


@pytest.mark.parametrize("below", ["", "ade20k_150"])
def test_real_samples_of_ade20k(samples, below):
    dataset = open_dataset(DatasetConfig(name="ade20k_150", split="eval", root=str(samples / below)))
    assert len(dataset.source) == 2
    labels = [dataset.source[index]["label"] for index in range(2)]
    assert {int(label.min()) for label in labels} <= {-1, 0}
    assert len({*np.unique(np.concatenate([label.ravel() for label in labels]))} - {-1}) == 8
