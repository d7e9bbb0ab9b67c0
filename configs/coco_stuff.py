"""The paper's training: COCO-Stuff's 171 classes, ViT-L/16 with dinov3.txt, SAM ViT-L.

    dinov3seg train --config coco_stuff --config.data.train.root=DATASETS --config.data.eval.root=DATASETS

DATASETS holds `coco-stuff/images/{train,val}2017` and `coco-stuff/annotations/{train,val}2017` (the 8-bit
stuffthingmaps). `dinov3seg plan --config coco_stuff` prints what a step costs, without data. The paper trains so, tests
on data sets the model never saw, and reports: A-847 20.09, PC-459 27.80, A-150 42.19, PC-59 64.27, PAS-20 97.86 mIoU.
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

    config.train.eval_every = 5_000  # as CAT-Seg, which scores all pictures each time
    config.train.eval_images = 500
    return config
