"""Regions as the `Detections` of Roboflow's supervision."""

from typing import Any

import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.regions import find_regions

MOST_BYTES = 4 * 2**30  # of the masks: supervision keeps one of the picture's size for each region


def detections(answer: Answer, outputs: Outputs) -> Any:
    """One detection for each region: mask, box, class, confidence, and the class's name in `data["class_name"]`.

    Raises:
        UserError: supervision is not installed, or there are so many regions that their masks fill the memory.
    """
    regions = find_regions(np.asarray(answer.labels), np.asarray(answer.confidence))
    kept = regions.kept(outputs.least_areas(answer.names))
    if len(kept) * answer.labels.size > MOST_BYTES:
        raise UserError(
            f"{len(kept):,} regions of {answer.width} x {answer.height} pixels would take "
            f"{len(kept) * answer.labels.size / 1e9:,.0f} GB as masks; give a larger min_area"
        )
    supervision = needed("supervision", "supervision", "a Detections object")
    if not len(kept):
        return supervision.Detections.empty()
    classes = regions.classes[kept]
    return supervision.Detections(
        xyxy=regions.boxes()[kept].astype(np.float32),
        mask=np.stack([regions.ids == region for region in kept]),
        class_id=classes.astype(int),
        confidence=regions.confidences()[kept].astype(np.float32),
        data={"class_name": np.array([answer.names[index] for index in classes])},
    )
