"""Several data sets in one stream."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import Config, DataConfig, DatasetConfig, MixedConfig
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.data.balance import for_rare_classes
from dinov3seg_jax.data.held_out import open_training
from dinov3seg_jax.data.mixed import trained_names
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.training.data_check import DataCheck

NAMES = ("Sky", "cat", "tree", "dog")


def folder(root, names, pictures, grey):
    """Pictures of one grey, whose mask has the first class on the left and the last on the right."""
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for number in range(pictures):
        Image.new("RGB", (4, 4), (grey + number,) * 3).save(root / "images/train" / f"{number}.png")
        mask = np.repeat([[1, 1, len(names), 0]], 4, axis=0).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks/train" / f"{number}.png")
    listed = ", ".join(f'{{"id": {number}, "name": "{name}"}}' for number, name in enumerate(names, 1))
    (root / "classes.json").write_text(f"[{listed}]")
    return {"name": "folder", "root": str(root)}


@pytest.fixture
def data(tmp_path):
    """Two pictures of three classes, and eight of two, of which a third has a name of another case; four to one."""
    first = DatasetConfig(**folder(tmp_path / "first", ["Sky", "cat", "tree"], 2, 0))
    second = MixedConfig(**folder(tmp_path / "second", ["dog", "sky"], 8, 100), weight=0.25)
    return DataConfig(
        train=first, mix=(second,), crop_size=4, short_side=(4, 4), flip=False, color_jitter=False, classes_per_image=0
    )


def test_each_picture_has_the_names_of_its_own_data_set(data):
    dataset = open_training(data)
    assert dataset.classes == trained_names(data) == NAMES
    for index in range(len(dataset.source)):
        example = dataset.source[index]
        first = example["image"][0, 0, 0] < 100
        assert example["own"].tolist() == ([0, 1, 2] if first else [3, 0])
        assert example["label"][0].tolist() == ([0, 0, 2, -1] if first else [3, 3, 0, -1])
        assert example["label"].dtype == np.int32
    with pytest.raises(IndexError):
        dataset.source[len(dataset.source)]


@pytest.mark.parametrize(("weight", "counts"), [(0.25, (32, 8)), (4.0, (2, 8)), (1.0, (8, 8)), (100.0, (2, 200))])
def test_pictures_come_by_the_weights_and_none_is_left_out(data, weight, counts):
    mixed = dataclasses.replace(data, mix=(dataclasses.replace(data.mix[0], weight=weight),))
    source = open_training(mixed).source
    greys = np.array([source[index]["image"][0, 0, 0] for index in range(len(source))])
    assert ((greys < 100).sum(), (greys >= 100).sum()) == counts
    assert len(set(greys.tolist())) == 10
    uses = np.bincount(greys)
    assert all(np.ptp(uses[part][uses[part] > 0]) <= 1 for part in (slice(0, 100), slice(100, None)))


def test_lists_have_one_length_and_names_of_others_count_nothing(data):
    batches = list(itertools.islice(train_iterator(open_training(data), data, 4, seed=0), 10))
    kinds = set()
    for batch in batches:
        assert batch["class_ids"].shape == (4, 3)
        for grey, ids, weights, label in zip(
            batch["image"][:, 0, 0, 0], batch["class_ids"], batch["weights"], batch["label"], strict=True
        ):
            own = {0, 1, 2} if grey < 100 else {0, 3}
            assert own <= set(ids.tolist())
            assert weights.tolist() == [float(name in own) for name in ids.tolist()]
            assert [ids[place] for place in label[0, [0, 2]]] == ([0, 2] if grey < 100 else [3, 0])
            assert label[0, 3] == -1
            kinds.add(grey < 100)
    assert len(kinds) == 2


def test_a_shorter_list_is_of_ones_own_names_first(data):
    short = dataclasses.replace(data, classes_per_image=2)
    for batch in itertools.islice(train_iterator(open_training(short), short, 4, seed=0), 5):
        assert (batch["weights"] == 1).all()
        assert batch["class_ids"].shape == (4, 2)


def test_a_stream_goes_on_where_it_stopped(data):
    stream = train_iterator(open_training(data), data, 3, seed=1)
    next(stream)
    other = train_iterator(open_training(data), data, 3, seed=1, start=1)
    one, same = next(stream), next(other)
    for name in one:
        np.testing.assert_array_equal(one[name], same[name], err_msg=name)


def test_all_masks_are_checked_before_training(data, tmp_path):
    config = Config(data=data, workdir=str(tmp_path / "run"))
    DataCheck(config, open_training(data)).write(tmp_path)
    assert '"masks": 2,' in (tmp_path / "census.json").read_text()  # of data.train
    Image.new("L", (4, 4), 77).save(tmp_path / "second/masks/train/3.png")
    with pytest.raises(UserError, match=r"second.*3.png holds the value 77"):
        DataCheck(config, open_training(data))


def test_what_does_not_go_together(data, tmp_path):
    other = data.mix[0]
    same = dataclasses.replace(data, mix=(dataclasses.replace(other, root=data.train.root),), validation=0.5)
    with pytest.raises(UserError, match=r"data.mix trains on .*first, of which data.validation holds pictures out"):
        open_training(same)
    with pytest.raises(UserError, match="are of one data set; leave them or data.mix out"):
        for_rare_classes(open_training(data), 0.5, "none")


def test_a_command_line_can_name_them(tmp_path):
    config = load_config("samples", ["data.mix=[{'name': 'folder', 'root': 'b', 'weight': 0.5}]"])
    assert config.data.mix == (MixedConfig(name="folder", root="b", weight=0.5),)
