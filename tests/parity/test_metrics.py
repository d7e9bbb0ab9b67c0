"""Confusion matrix and scores against detectron2's `SemSegEvaluator`."""

import json
from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix, scores
from tests.parity.fixtures import fixtures

OFFICIAL_NAMES = {"miou": "mIoU", "fwiou": "fwIoU", "mean_accuracy": "mACC", "pixel_accuracy": "pACC"}


@pytest.mark.parametrize("path", fixtures("semseg_metrics"), ids=lambda path: path.stem)
def test_scores_are_the_official_ones(path: Path) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    for case, config in json.loads(str(arrays["config"])).items():
        classes = config["num_classes"]
        matrix = ConfusionMatrix(classes)
        for index in range(len(config["shapes"])):
            prediction = arrays[f"{case}/in/pred.{index}"]
            truth = arrays[f"{case}/in/gt.{index}"]
            if config["voc_background_rule"]:
                prediction = np.minimum(prediction, classes - 1)
            matrix.add(prediction, np.where(truth == config["ignore_label"], IGNORED, truth))

        official = arrays[f"{case}/out/confusion_pred_by_gt"]
        np.testing.assert_array_equal(matrix.counts, official[:classes], err_msg=case)
        assert not official[classes:].any(), f"{case}: no pixel is predicted to be 'ignored'"
        ours = scores(matrix.counts)
        for name, official_name in OFFICIAL_NAMES.items():
            np.testing.assert_allclose(ours[name], arrays[f"{case}/out/{official_name}"], rtol=1e-9, err_msg=case)
        for name, official_name in {"iou": "iou_percent", "accuracy": "acc_percent"}.items():
            np.testing.assert_allclose(ours[name], arrays[f"{case}/out/{official_name}"], rtol=1e-9, err_msg=case)
