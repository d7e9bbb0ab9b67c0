"""The stream of training batches: shuffled, augmented, shared out among processes, and begun at any place.

Every example depends on (seed, its place in the stream) alone, so that threads, worker processes and hosts do not
change what is trained on. Its place is epoch * (length of the data set) + index in the epoch's order. The place of a
run is its step: batch number n of all processes is step n + 1's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from dinov3seg_jax.config import DataConfig
from dinov3seg_jax.data import transforms
from dinov3seg_jax.data.captions import Captions
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.errors import UserError

THREADS = 2
STREAM_LENGTH = 2**52  # as good as endless; grain's own endless repeat overflows its float arithmetic at batch size 1


@dataclass(frozen=True)
class Augment:
    """From an example of a data set to one of a batch; §6."""

    data: DataConfig
    class_count: int
    weights: tuple[float, ...] | None = None  # of the classes
    longest: int = 0  # of several data sets, the length of the longest list
    captions: Captions | None = None

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Augment one example.

        Returns:
            "image": uint8 [S, S, 3]; "label": int32 [S, S], positions in "class_ids", -1 where ignored; "class_ids":
            int32 [K]; where the data set weighs its classes, or is several, "weights", float32 [K]; and "caption",
            int32 [length], if captions are asked for.
        """
        data, (image, label) = self.data, (example["image"], example["label"])
        low, high = data.short_side
        image, label = transforms.resize_short_side(image, label, int(rng.integers(low, high + 1)))
        image, label = transforms.random_crop(image, label, data.crop_size, rng, data.crop_tries)
        if data.color_jitter:
            image = transforms.color_jitter(image, rng)
        if data.flip:
            image, label = transforms.random_flip(image, label, rng)
        image, label = transforms.pad(image, label, data.crop_size)
        own = example.get("own")
        count = data.classes_per_image or self.longest
        shown = label
        class_ids, label = transforms.sample_classes(label, count, self.class_count, rng, own)
        chosen: dict[str, np.ndarray] = {"image": image, "label": label, "class_ids": class_ids}
        if self.weights is not None:
            chosen["weights"] = np.array(self.weights, np.float32)[class_ids]
        elif own is not None:
            chosen["weights"] = np.isin(class_ids, own).astype(np.float32)
        if self.captions is not None:
            chosen["caption"] = self.captions(shown, rng)
        return chosen


@dataclass(frozen=True)
class StreamKind:
    """What a number of batches is a place in; hosts, devices and workers may be others, and see the same stream."""

    batch_size: int  # of all processes together
    examples: int  # in the data set


TITLES = {"batch_size": "examples a step", "examples": "images"}


class Batches(Iterator[dict[str, np.ndarray]]):
    """The batches of one process."""

    def __init__(self, batches: grain.DatasetIterator) -> None:
        self._batches = batches

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def close(self) -> None:
        """Stop what works ahead."""
        self._batches.close()


def refuse_other_stream(before: Mapping[str, Any], now: StreamKind) -> None:
    """Stop before a run goes on at a place that would mean other data.

    Args:
        before: what a checkpoint says of its stream; those from before streams were described say nothing, and some
            name hosts and workers too, which never changed the batches of a step.
        now: the stream that the run would go on with.

    Raises:
        UserError: it is another one.
    """
    for part, value in asdict(now).items():
        if before.get(part, value) != value:
            raise UserError(
                f"the run was saved with {before[part]} {TITLES[part]} and cannot go on with {value}, which "
                "would be other data; keep them as they were, or start a new run with --config.init_from."
            )


def examples(dataset: Dataset, data: DataConfig, seed: int, captions: Captions | None = None) -> grain.MapDataset:
    """The stream before it is shared out: example number `index`, for any index, shuffled and augmented.

    Raises:
        UserError: The data set is empty, or the range of sizes is. Files that cannot be read raise it when they are.
    """
    if not len(dataset.source):
        raise UserError("the training data set holds no examples; check data.train.")
    if data.short_side[0] > data.short_side[1]:
        raise UserError(f"data.short_side is {data.short_side}, but its first number must not exceed its second.")
    longest = max((len(part.classes) for part in dataset.parts), default=0)
    return (
        grain.MapDataset.source(dataset.source)
        .seed(seed)
        .shuffle()
        .repeat(STREAM_LENGTH // len(dataset.source))
        .random_map(Augment(data, len(dataset.classes), dataset.weights, longest, captions))
    )


def train_iterator(
    dataset: Dataset,
    data: DataConfig,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    captions: Captions | None = None,
) -> Batches:
    """Start the practically endless stream of batches of one process, at any place.

    Batch number n of all processes together holds the examples [n B P, (n + 1) B P) of the stream, in their order, for
    any number of processes P; this process has B of them. Worker processes import the main module: call this below
    `if __name__ == "__main__"` where there are any, and `close()` the iterator in the end.

    Args:
        dataset: What to train on; all of its classes may be drawn as negatives.
        data: Sizes, augmentation, and how many workers.
        batch_size: B, of this process.
        seed: 0 to 2**32 - 1, of the order and the augmentation.
        process_index: This process's place among `process_count` that share the stream.
        process_count: Number of processes.
        start: Batches that were taken before; passing over them costs nothing.
        captions: Writes a caption of each example; None: there are none.

    Returns:
        An iterator of dicts: "image", uint8 [B, S, S, 3], RGB; "label", int32 [B, S, S], positions in the example's row
        of "class_ids", -1 where ignored; "class_ids", int32 [B, K], indices into `dataset.classes`; "weights",
        float32 [B, K], where the data set has some; and "caption", int32 [B, length], where asked for.

    Raises:
        UserError: as for `examples`. Files that cannot be read raise it from `next`.
    """
    first = start * process_count + process_index
    batches = examples(dataset, data, seed, captions).batch(batch_size).slice(slice(first, None, process_count))
    if not data.workers:
        threads = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
        return Batches(iter(batches.to_iter_dataset(threads)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its absl flags before it starts workers
    in_workers = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    return Batches(iter(in_workers.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))))
