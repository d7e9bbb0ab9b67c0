"""The paper's training: COCO-Stuff's 171 classes, ViT-L/16 with dinov3.txt, SAM ViT-L.

    python train.py --config configs/coco_stuff.py --config.data.train.root=DATASETS --config.data.eval.root=DATASETS

DATASETS holds `coco-stuff/images/{train,val}2017` and `coco-stuff/annotations/{train,val}2017` (the 8-bit
stuffthingmaps). Add `--dry_run` to see what a step costs without any data. The paper reports, for the model trained so
and tested on data sets it never saw: A-847 20.09, PC-459 27.80, A-150 42.19, PC-59 64.27, PAS-20 97.86 mIoU.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config


def get_config() -> ConfigDict:
    """The defaults are the paper's; only the data and the run's folder are named here."""
    config = default_config()
    config.workdir = "runs/coco_stuff"
    config.model.remat = True
    config.data.train.name = "coco_stuff_171"
    config.data.eval.name = "coco_stuff_171"
    return config
