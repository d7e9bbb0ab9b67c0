"""ADE20K's 150 classes: trains on the training split and scores on the validation split.

    dinov3seg train --config ade --config.data.train.root=DATASETS --config.data.eval.root=DATASETS
    dinov3seg eval --config ade --config.data.eval.root=DATASETS --checkpoint runs/ade

DATASETS holds `ADEChallengeData2016/images/{training,validation}` and `.../annotations/{training,validation}`. To see
what a step costs, without any data: `dinov3seg plan --config ade`. No score is published for this training; the paper's
42.19 mIoU on this validation split is of a model trained on COCO-Stuff.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config


def get_config() -> ConfigDict:
    """As the paper trains, on other data."""
    config = default_config()
    config.workdir = "runs/ade"
    config.model.remat = True
    config.data.train.name = "ade20k_150"
    config.data.eval.name = "ade20k_150"

    config.train.eval_every = 5_000  # as CAT-Seg, which scores all pictures each time
    config.train.eval_images = 500
    return config
