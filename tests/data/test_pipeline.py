"""The stream of batches: its contents, its order, resuming and sharing."""

import contextlib
import dataclasses
import itertools
import resource

import numpy as np
import pytest

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data.datasets import Dataset, open_dataset
from dinov3seg_jax.data.pipeline import StreamKind, examples, refuse_other_stream, train_iterator
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


def test_a_stream_goes_on_from_any_place_exactly():
    expected = _take(train_iterator(open_dataset(DATA.train), DATA, 2, seed=0), 6)
    _assert_same(_take(train_iterator(open_dataset(DATA.train), DATA, 2, seed=0, start=3), 3), expected[3:])


def test_a_place_far_on_is_reached_without_a_way_there():
    dataset = Dataset(Numbered(10), tuple(map(str, range(10))), None)
    start = 10**12 // 2
    numbers = next(train_iterator(dataset, PLAIN, 2, 0, start=start))["image"][:, 0, 0, 0].tolist()
    assert numbers == [examples(dataset, PLAIN, 0)[2 * start + index]["image"][0, 0, 0] for index in range(2)]


def test_any_example_can_be_had_by_itself():
    dataset = open_dataset(dataclasses.replace(DATA.train, size=3))
    streamed = [batch["image"][0] for batch in _take(train_iterator(dataset, DATA, 1, seed=4), 8)]
    for place in (7, 0, 4):  # of the third, first and second epoch
        np.testing.assert_array_equal(examples(dataset, DATA, seed=4)[place]["image"], streamed[place])


@pytest.mark.parametrize(
    ("before", "part"),
    [
        ({"batch_size": 4, "examples": 12}, "4 examples a step and cannot go on with 2"),
        ({"batch_size": 2, "examples": 11}, "11 images and cannot go on with 12"),
        ({"processes": 2, "batch_size": 2, "workers": 1, "examples": 12}, ""),  # hosts and workers may be others
        ({"batch_size": 2, "examples": 12}, ""),
        ({}, ""),
    ],
)
def test_a_place_in_another_stream_is_refused(before, part):
    now = StreamKind(batch_size=2, examples=12)
    with pytest.raises(UserError, match=part) if part else contextlib.nullcontext():
        refuse_other_stream(before, now)


@pytest.mark.parametrize("start", [0, 3])
def test_processes_share_each_batch_out_and_it_stays_the_same(start):
    """An epoch has 10 images, which neither batches nor shares of them divide."""
    whole = _numbers(10, batches=9, batch_size=4)[start:]
    for processes in (2, 4):
        shares = [
            _numbers(10, 9 - start, 4 // processes, process_index=index, process_count=processes, start=start)
            for index in range(processes)
        ]
        assert [[*itertools.chain(*numbers)] for numbers in zip(*shares, strict=True)] == whole


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
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    """Neither from the stream's beginning, nor from a place in it and for one of several processes."""
    dataset = open_dataset(DATA.train)
    expected = _take(train_iterator(dataset, DATA, 4, seed=0), 6)
    data = dataclasses.replace(DATA, workers=workers)
    for start, process, processes in ((0, 0, 1), (3, 1, 4)):
        stream = train_iterator(dataset, data, 4 // processes, 0, process, processes, start)
        rows = slice(process, process + 4 // processes)
        _assert_same(_take(stream, 3), [{key: batch[key][rows] for key in batch} for batch in expected[start:][:3]])
        stream.close()


@pytest.mark.slow
def test_a_damaged_file_is_reported_from_a_worker():
    stream = train_iterator(Dataset(Broken(3), ("a",), None), dataclasses.replace(PLAIN, workers=1), 1, seed=0)
    with pytest.raises(UserError, match="is damaged; copy it again"):
        next(stream)
    stream.close()
