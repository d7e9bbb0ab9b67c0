"""Segment every image of a data set and count its pixels: the part of an evaluation that takes the time."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dinov3seg_jax.data.datasets import Dataset, Source
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import hosts
from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, image_miou
from dinov3seg_jax.evaluation.measures import Measures
from dinov3seg_jax.evaluation.progress import Identity, Progress, load_progress, progress_file, save_progress
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.processes import is_first

BATCH_SIZE = 8  # or as many as there are devices
READERS = 8  # threads that read the next batch while this one is segmented
SAVE_SECONDS = 30.0  # between two savings of the progress


def count_pixels(
    segmenter: BaseSegmenter, dataset: Dataset, names: Sequence[str], classes: int, folder: Path, identity: Identity
) -> Progress:
    """Score all images, by all processes together, going on where an earlier call was interrupted.

    Args:
        segmenter: the model.
        dataset: what is scored.
        names: given to the model.
        classes: that are counted; fewer than names where `dataset.merge_from` is set.
        folder: keeps the progress, until `remove_progress`.
        identity: of this evaluation; see `progress.identify`.

    Returns:
        Counts and scores of the images of all processes, the same in each.

    Raises:
        UserError: an image cannot be read. No image is skipped: that would change the score.
    """
    path, count = progress_file(folder), len(dataset.source)
    start = load_progress(path, identity, classes)
    error, progress = None, start
    try:
        progress = _count_share(segmenter, dataset, names, start, path, identity)
    except UserError as caught:
        error = caught
    hosts.stop_together(error)
    image_scores = hosts.join_shares(progress.image_miou, count)
    measures = hosts.sum_counts(progress.measures)
    return Progress(hosts.sum_counts(progress.counts), image_scores, progress.seconds, measures)


def segment_examples(
    segmenter: BaseSegmenter, dataset: Dataset, names: Sequence[str], indices: Sequence[int]
) -> Iterator[list[tuple[int, dict[str, Any], Segmentation]]]:
    """Read and segment examples, a batch at a time; the last one is filled up and what fills it is dropped.

    Each comes with its index.

    Labels are as they are scored: those of `dataset.merge_from` and more are one.

    Raises:
        UserError: an image cannot be read.
    """
    for part, examples in _read(dataset.source, indices, BATCH_SIZE):
        results = segmenter.segment_arrays([example["image"] for example in examples], names, BATCH_SIZE)
        if dataset.merge_from is not None:
            for result in results:
                result.labels[result.labels >= dataset.merge_from] = dataset.merge_from
        yield list(zip(part, examples, results, strict=True))


def _count_share(
    segmenter: BaseSegmenter, dataset: Dataset, names: Sequence[str], start: Progress, path: Path, identity: Identity
) -> Progress:
    share = hosts.own_share(len(dataset.source))
    confusion = ConfusionMatrix(len(start.counts))
    confusion.counts += start.counts
    image_scores = start.image_miou.tolist()
    measures = Measures(confusion.classes, segmenter.confidence_kind)
    if start.done:
        measures.restore(start.measures)
    started = saved = time.perf_counter()

    def so_far() -> Progress:
        finish()
        seconds = start.seconds + time.perf_counter() - started
        return Progress(confusion.counts, np.array(image_scores, np.float64), seconds, measures.arrays())

    def count(batch: list[tuple[int, dict[str, Any], Segmentation]]) -> None:
        for _, example, result in batch:
            confusion.add(result.labels, example["label"])
            image_scores.append(image_miou(result.labels, example["label"], confusion.classes))
            measures.add(result.labels, result.confidence, example["label"])

    def finish() -> None:
        while behind:
            behind.pop().result()

    behind: list[Future[None]] = []  # counting of a batch, while the device is busy with the next one
    look = {"unit": "image", "dynamic_ncols": True, "disable": not is_first()}
    with ThreadPoolExecutor(1) as beside, tqdm(total=len(share), initial=start.done, **look) as bar:
        try:
            for batch in segment_examples(segmenter, dataset, names, share[start.done :]):
                finish()
                behind.append(beside.submit(count, batch))
                bar.update(len(batch))
                if time.perf_counter() - saved >= SAVE_SECONDS:
                    save_progress(path, so_far(), identity)
                    saved = time.perf_counter()
        except UserError:  # an image that cannot be read: the batches before it need not be repeated
            save_progress(path, so_far(), identity)
            raise
    save_progress(path, so_far(), identity)
    return so_far()


def _read(
    source: Source, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[Sequence[int], list[dict[str, Any]]]]:
    """Indices and examples in batches; the next one is read while the caller works on this one."""
    parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    with ThreadPoolExecutor(READERS) as pool:

        def begin(part: Sequence[int]) -> list[Future[dict[str, Any]]]:
            return [pool.submit(source.__getitem__, index) for index in part]

        following = begin(parts[0]) if parts else []
        for number, part in enumerate(parts, start=1):
            examples = [example.result() for example in following]
            following = begin(parts[number]) if number < len(parts) else []
            yield part, examples
