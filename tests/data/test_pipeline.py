"""The stream of batches: its contents, its order, resuming and sharing."""

import dataclasses
import itertools
import json
import resource

import numpy as np
import pytest

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data.datasets import Dataset, open_dataset
from dinov3seg_jax.data.pipeline import examples, train_iterator
from dinov3seg_jax.errors import UserError

DATA = DataConfig(
    train=DatasetConfig(image_size=48), crop_size=32, short_side=(24, 48), classes_per_image=12, color_jitter=True
)


class Numbered:
    """Images of one grey each, equal to their index; the class is the index too."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": np.full((8, 8, 3), index, np.uint8), "label": np.full((8, 8), index, np.int32)}


class Broken(Numbered):
    """A source whose files are damaged."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        raise UserError(f"{index}.png is damaged; copy it again.")


PLAIN = DataConfig(crop_size=8, short_side=(8, 8), flip=False, color_jitter=False)


def _numbers(count: int, batches: int, batch_size: int = 2, seed: int = 0, **sharing: int) -> list[list[int]]:
    dataset = Dataset(Numbered(count), tuple(map(str, range(count))), None)
    stream = train_iterator(dataset, PLAIN, batch_size, seed, **sharing)
    return [next(stream)["image"][:, 0, 0, 0].tolist() for _ in range(batches)]


def _take(stream, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(stream, count))


def _assert_same(first, second) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_batches_hold_what_they_promise():
    dataset = open_dataset(DATA.train)
    for batch in _take(train_iterator(dataset, DATA, 4, seed=0), 3):
        assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
            "image": ((4, 32, 32, 3), "uint8"),
            "label": ((4, 32, 32), "int32"),
            "class_ids": ((4, 12), "int32"),
        }
        assert batch["label"].min() >= -1
        assert batch["label"].max() < 12
        assert batch["class_ids"].min() >= 0
        assert batch["class_ids"].max() < len(dataset.classes)
        assert all(len(set(row)) == 12 for row in batch["class_ids"].tolist())


def test_all_classes_in_order_when_none_are_sampled():
    batch = next(train_iterator(open_dataset(DATA.train), dataclasses.replace(DATA, classes_per_image=0), 2, seed=0))
    assert batch["class_ids"].tolist() == [list(range(36))] * 2


def test_every_epoch_is_another_permutation():
    numbers = np.ravel(_numbers(10, batches=10)).tolist()
    first, second = numbers[:10], numbers[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))
    assert np.ravel(_numbers(10, 10, seed=1)).tolist() != numbers


def test_augmentation_differs_between_epochs():
    dataset = open_dataset(dataclasses.replace(DATA.train, size=1))
    first, second = _take(train_iterator(dataset, DATA, 1, seed=0), 2)
    assert (first["image"] != second["image"]).any()


def test_the_same_seed_gives_the_same_stream_and_another_seed_another():
    streams = [_take(train_iterator(open_dataset(DATA.train), DATA, 2, seed), 3) for seed in (7, 7, 8)]
    _assert_same(streams[0], streams[1])
    assert (streams[0][0]["image"] != streams[2][0]["image"]).any()


def test_resuming_is_exact_and_its_state_is_plain():
    stream = train_iterator(open_dataset(DATA.train), DATA, 2, seed=0)
    _take(stream, 3)
    state = json.loads(json.dumps(stream.get_state()))
    expected = _take(stream, 3)
    resumed = train_iterator(open_dataset(DATA.train), DATA, 2, seed=0)
    resumed.set_state(state)
    _assert_same(_take(resumed, 3), expected)


def test_any_example_can_be_had_by_itself():
    dataset = open_dataset(dataclasses.replace(DATA.train, size=3))
    streamed = [batch["image"][0] for batch in _take(train_iterator(dataset, DATA, 1, seed=4), 8)]
    for place in (7, 0, 4):  # of the third, first and second epoch
        np.testing.assert_array_equal(examples(dataset, DATA, seed=4)[place]["image"], streamed[place])


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"process_count": 2, "batch_size": 2}, "1 hosts and cannot go on with 2"),
        ({"batch_size": 2}, "4 examples a step and cannot go on with 2"),
        ({"count": 11}, "12 images and cannot go on with 11"),
        ({"workers": 1}, "0 worker processes and cannot go on with 1"),
    ],
)
def test_a_position_in_another_stream_is_refused(changed, part):
    def stream(count=12, batch_size=4, workers=0, **sharing):
        dataset = Dataset(Numbered(count), tuple(map(str, range(count))), None)
        return train_iterator(dataset, dataclasses.replace(PLAIN, workers=workers), batch_size, 0, **sharing)

    state = stream().get_state()
    stream().set_state(state)
    other = stream(**changed)
    with pytest.raises(UserError, match=part):
        other.set_state(state)
    other.close()


def test_a_position_that_was_saved_without_its_stream_is_still_read():
    stream = train_iterator(open_dataset(DATA.train), DATA, 2, seed=0)
    _take(stream, 2)
    state = stream.get_state()["position"]
    resumed = train_iterator(open_dataset(DATA.train), DATA, 2, seed=0)
    resumed.set_state(state)
    _assert_same(_take(resumed, 1), _take(stream, 1))


def test_processes_share_the_stream():
    whole = _numbers(12, batches=5, batch_size=4)
    shares = [_numbers(12, 5, batch_size=2, process_index=index, process_count=2) for index in range(2)]
    for step, numbers in enumerate(whole):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(numbers)


def test_an_endless_source_needs_no_memory_for_its_order():
    # Not by tracemalloc: CPython 3.11 can crash where it stops while the pipeline's threads allocate (gh-128679).
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = train_iterator(open_dataset(DATA.train), DATA, 1, seed=0)
    next(stream)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 500e6  # a permutation of 2**31 - 1 indices would take gigabytes


def test_an_empty_data_set_is_an_error():
    with pytest.raises(UserError, match="no examples"):
        train_iterator(Dataset(Numbered(0), (), None), PLAIN, 1, seed=0)


def test_a_range_of_sizes_upside_down_is_an_error():
    with pytest.raises(UserError, match="short_side"):
        train_iterator(open_dataset(DATA.train), dataclasses.replace(DATA, short_side=(9, 8)), 1, seed=0)


def test_a_damaged_file_is_reported_as_such():
    with pytest.raises(UserError, match="is damaged; copy it again"):
        next(train_iterator(Dataset(Broken(3), ("a",), None), PLAIN, 1, seed=0))


@pytest.mark.slow
def test_workers_change_nothing():
    dataset = open_dataset(DATA.train)
    expected = _take(train_iterator(dataset, DATA, 2, seed=0), 6)
    for workers in (1, 2):
        data = dataclasses.replace(DATA, workers=workers)
        stream = train_iterator(dataset, data, 2, seed=0)
        _assert_same(_take(stream, 4), expected[:4])
        state = stream.get_state()
        stream.close()
        resumed = train_iterator(dataset, data, 2, seed=0)
        resumed.set_state(state)
        _assert_same(_take(resumed, 2), expected[4:])
        resumed.close()


@pytest.mark.slow
def test_a_damaged_file_is_reported_from_a_worker():
    stream = train_iterator(Dataset(Broken(3), ("a",), None), dataclasses.replace(PLAIN, workers=1), 1, seed=0)
    with pytest.raises(UserError, match="is damaged; copy it again"):
        next(stream)
    stream.close()
