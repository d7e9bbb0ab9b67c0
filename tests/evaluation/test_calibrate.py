"""The temperature that is fitted is the one that pixels were drawn with."""

import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation.calibrate import fit
from dinov3seg_jax.evaluation.calibration_counts import BINS_OF_ERROR, Counts
from tests.evaluation.stub import CLASSES, Reading, dataset


def drawn(kind, temperature, classes=6, pixels=200_000):
    """Confidences, and truths of label 0 that are right as often as these say at that temperature."""
    rng = np.random.default_rng(0)
    margins = rng.normal(1.5, 2, pixels)
    others = np.log(classes - 1) if kind == "softmax" else 0
    said, true = (1 / (1 + np.exp(others - margins / t)) for t in (1, temperature))
    return said.astype(np.float32), np.where(rng.random(pixels) < true, 0, 1)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found(kind, temperature):
    counts = Counts(kind, 6)
    said, truth = drawn(kind, temperature)
    truth[:1000], said[:1000] = -1, 0.5  # without a label, they do not count
    for part in (slice(0, 50_000), slice(50_000, None)):
        counts.add(np.zeros_like(truth[part])[None], said[part][None], truth[part][None])
    assert counts.wrong_right.sum() == 199_000
    found = counts.temperature()
    assert found == pytest.approx(temperature, rel=0.03)
    assert counts.error(found) < 0.006
    before = counts.error(1)
    known = truth >= 0
    bins = np.minimum((said[known] * BINS_OF_ERROR).astype(int), BINS_OF_ERROR - 1)
    by_hand = sum(
        abs((truth[known] == 0)[bins == place].mean() - said[known][bins == place].mean()) * (bins == place).mean()
        for place in np.unique(bins)
    )
    assert before == pytest.approx(by_hand, abs=1e-3)
    assert (before > 0.05) == (temperature != 1)


def test_a_data_set_is_read_to_its_end():
    class Unsure(Reading):
        def label(self, images, classes, batch_size, scores=False):
            return [one._replace(confidence=one.confidence * 0.9) for one in super().label(images, classes, batch_size)]

    data = dataset(12)
    found = fit(Unsure(), data)
    examples = [data.source[index] for index in range(12)]
    known = np.concatenate([example["label"][example["label"] >= 0] for example in examples])
    labels = np.concatenate([(example["image"][..., 0] % 5)[example["label"] >= 0] for example in examples])
    accuracy = (labels == known).mean()
    assert (found.pixels, found.accuracy) == (len(known), pytest.approx(accuracy))
    assert found.errors == (pytest.approx(abs(0.9 - accuracy), abs=1e-3), pytest.approx(0, abs=1e-3))
    expected = np.log(9) / np.log(accuracy / (1 - accuracy))  # which makes 0.9 the share that is right
    assert found.temperature == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("truth", "message"),
    [([0, 0], "all 2 labelled pixels are right"), ([1, 1], "are wrong"), ([-1, -1], "all 0 .* are without a label")],
)
def test_nothing_to_fit(truth, message):
    counts = Counts("sigmoid", len(CLASSES))
    counts.add(np.zeros((1, 2), np.int32), np.full((1, 2), 0.7, np.float32), np.array([truth]))
    with pytest.raises(UserError, match=message):
        counts.temperature()
