"""A validation part made from the training folder."""

import dataclasses

import pytest
from PIL import Image

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data.held_out import is_held_out, open_evaluation, open_training, scored_on
from dinov3seg_jax.errors import UserError


def folder(root, count):
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (2, 2)).save(root / "images/train" / f"{number}.png")
        Image.new("L", (2, 2), 1).save(root / "masks/train" / f"{number}.png")
    (root / "classes.json").write_text('[{"id": 1, "name": "cat"}]')
    return DataConfig(train=DatasetConfig(name="folder", root=str(root)), validation=0.25)


def names(dataset):
    return {dataset.source[index]["name"] for index in range(len(dataset.source))}


def test_no_picture_is_in_both_parts_and_none_is_lost(tmp_path):
    data = folder(tmp_path, 60)
    trained, scored = names(open_training(data)), names(open_evaluation(data))
    assert not trained & scored
    assert trained | scored == {str(number) for number in range(60)}
    assert 8 <= len(scored) <= 22  # 15, within two and a half standard deviations
    assert open_training(data).classes == open_evaluation(data).classes == ("cat",)
    other = dataclasses.replace(data, validation_seed=1)
    assert names(open_evaluation(other)) != scored


def test_pictures_that_are_added_move_no_others(tmp_path):
    before = names(open_evaluation(folder(tmp_path, 30)))
    after = names(open_evaluation(folder(tmp_path, 60)))
    assert before == after & {str(number) for number in range(30)}
    assert len(after) > len(before)


def test_the_share_is_of_all_names_alike():
    held = sum(is_held_out(f"IMG_{number:04}", 0.2, 0) for number in range(10_000))
    assert abs(held - 2000) < 4 * (10_000 * 0.2 * 0.8) ** 0.5
    assert not any(is_held_out(str(number), 0.0, 0) for number in range(1000))


def test_without_it_the_two_data_sets_are_as_they_were(tmp_path):
    data = dataclasses.replace(folder(tmp_path, 3), validation=0.0, eval=DatasetConfig(split="eval", size=2))
    assert len(open_training(data).source) == 3
    assert len(open_evaluation(data).source) == 2
    assert scored_on(data) == data.eval


def test_what_cannot_be_divided(tmp_path):
    data = folder(tmp_path, 2)
    with pytest.raises(UserError, match="none of the 2 pictures of .* falls into the 1% that are held out"):
        open_training(dataclasses.replace(data, validation=0.01))
    with pytest.raises(UserError, match="each of the 2 pictures of .* falls into the 99% that are held out"):
        open_evaluation(dataclasses.replace(data, validation=0.99))
    with pytest.raises(UserError, match=r"both data.validation=0.25 and data.eval.root say what to score on"):
        open_evaluation(dataclasses.replace(data, eval=data.train))
    with pytest.raises(UserError, match="needs pictures in files, and data set 'painted_scenes' has none"):
        open_training(DataConfig(validation=0.25))
