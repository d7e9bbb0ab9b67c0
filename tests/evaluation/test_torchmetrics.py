"""Scores against torchmetrics, where it is installed."""

import numpy as np
import pytest

from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix, scores
from dinov3seg_jax.evaluation.dinov3_scores import area_scores

torch = pytest.importorskip("torch")
classification = pytest.importorskip("torchmetrics.classification")


def compare(metric, classes, pictures, **options):
    official = getattr(classification, metric)(num_classes=classes, ignore_index=IGNORED, **options)
    for prediction, truth in pictures:
        official.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return 100 * official.compute().numpy().astype(np.float64)


def pictures(classes, absent, seed):
    """Random maps of several sizes. The classes in `absent` are not in the truth; the first of them is predicted."""
    random = np.random.default_rng(seed)
    for _ in range(5):
        shape = tuple(random.integers(5, 40, 2))
        truth = random.integers(IGNORED, classes, shape)
        truth[np.isin(truth, absent)] = IGNORED
        prediction = random.integers(0, classes, shape)
        prediction[np.isin(prediction, absent[1:])] = 0
        yield prediction, truth


@pytest.mark.parametrize("absent", [(), (3,), (1, 4, 5)], ids=str)
@pytest.mark.parametrize("classes", [6, 19])
def test_scores_are_those_of_torchmetrics(classes, absent):
    shown = list(pictures(classes, absent, seed=classes))
    matrix = ConfusionMatrix(classes)
    for prediction, truth in shown:
        matrix.add(prediction, truth)
    ours, present = area_scores(matrix.counts), scores(matrix.counts)
    assert ours["miou"] == pytest.approx(compare("MulticlassJaccardIndex", classes, shown, average="macro"), rel=1e-6)
    each = compare("MulticlassJaccardIndex", classes, shown, average="none")
    found = ~np.isnan(ours["iou"])
    np.testing.assert_allclose(ours["iou"][found], each[found], rtol=1e-6)
    in_truth = np.isin(np.arange(classes), absent, invert=True)
    np.testing.assert_allclose(present["iou"][in_truth], each[in_truth], rtol=1e-6)
    assert present["miou"] == pytest.approx(each[in_truth].mean(), rel=1e-6)
    accuracy = compare("MulticlassAccuracy", classes, shown, average="micro")
    assert ours["pixel_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    if absent:
        assert present["miou"] > ours["miou"], "a class that is predicted but absent counts 0 there, and not here"
    else:
        assert present["miou"] == pytest.approx(ours["miou"])
