"""ADE20K's 150 classes: trains on the training split and scores on the validation split.

    python train.py --config configs/ade.py --config.data.train.root=DATASETS
    python eval.py --config configs/ade.py --config.data.eval.root=DATASETS --checkpoint runs/ade

DATASETS holds `ADEChallengeData2016/images/{training,validation}` and `.../annotations/{training,validation}`. Add
`--dry_run` to the first command to see what a step costs without any data. No score is published for this training: the
paper's 42.19 mIoU on this validation split is of a model trained on COCO-Stuff.
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
    return config
