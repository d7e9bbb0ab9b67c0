"""A data set of random pictures, and a segmenter that reads its answers off them: an evaluation without a model."""

import numpy as np

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.views.labels import Found

CLASSES = ("sky", "tree", "sea", "boat", "sand")


class Pictures:
    """Random pictures of several sizes, and truths that are partly ignored; `broken` ones cannot be read."""

    def __init__(self, count, classes, broken=()):
        self.count, self.classes, self.broken = count, classes, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UserError(f"image {index}.png is damaged; copy it again.")
        random = np.random.default_rng(index)
        height, width = random.integers(3, 9, 2)
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        label = random.integers(-1, self.classes, (height, width), np.int32)
        guessed = np.where(random.random((height, width)) < 0.5, image[..., 0] % self.classes, label)
        return {"image": image, "label": np.where(label < 0, -1, guessed).astype(np.int32), "name": f"picture {index}"}


class Reading(BaseSegmenter):
    """A segmenter whose answer is in the picture's red; it counts the pictures it has seen."""

    def __init__(self):
        self.seen, self.batches = 0, []

    section = "zero_shot"
    config = Config()

    def describe(self):
        return "The picture's red."

    def accept(self, asked):
        return asked

    def view_patches(self):
        return 0

    def label(self, images, classes, batch_size, scores=False):
        self.batches.append(len(images))
        self.seen += len(images)
        labels = [image[..., 0].astype(np.int32) % len(classes) for image in images]
        return [Found(label, np.ones(label.shape, np.float32)) for label in labels]


def dataset(count, broken=(), classes=CLASSES, **options):
    return Dataset(Pictures(count, len(classes), broken), classes, seen=None, **options)
