"""The paper's training: COCO-Stuff's 171 classes, ViT-L/16 with dinov3.txt, SAM ViT-L.

    dinov3seg train --config coco_stuff --config.data.train.root=DATASETS --config.data.eval.root=DATASETS

DATASETS holds `coco-stuff/images/{train,val}2017` and `coco-stuff/annotations/{train,val}2017` (the 8-bit
stuffthingmaps). `dinov3seg plan --config coco_stuff` prints what a step costs, without data. The paper trains so, tests
on data sets the model never saw, and reports: A-847 20.09, PC-459 27.80, A-150 42.19, PC-59 64.27, PAS-20 97.86 mIoU.

That is float32, and more than one GPU holds. For GPUs, in bfloat16, named by the memory of one:

    dinov3seg train --config coco_stuff:24gb ...
    dinov3seg train --config coco_stuff:40gb ...
    dinov3seg train --config coco_stuff:80gb ...
    dinov3seg train --config coco_stuff:h100x8 ...

They train on the paper's batch of 4, in as many parts as the memory asks for (`train.accumulate`); eight GPUs take a
crop each, and so half as many steps for the paper's 320,000 crops. docs/memory.md has what each needs.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config
from dinov3seg_jax.errors import UserError

PARTS = {"24gb": 4, "40gb": 2, "80gb": 1, "h100x8": 1}  # of a batch, one after the other


def get_config(gpu: str = "") -> ConfigDict:
    """The defaults are the paper's; only the data and the run's folder are named here, and what GPUs need."""
    if gpu and gpu not in PARTS:
        raise UserError(f"configs/coco_stuff.py knows {', '.join(PARTS)} and not '{gpu}'; name one of them, or none")
    config = default_config()
    config.workdir = "runs/coco_stuff"
    config.model.remat = True
    config.data.train.name = "coco_stuff_171"
    config.data.eval.name = "coco_stuff_171"

    config.train.eval_every = 5_000  # as CAT-Seg, which scores all pictures each time
    config.train.eval_images = 500
    if gpu:
        config.model.dtype = "bfloat16"
        config.model.early.remat = True  # a hundredth of the operations, a third of the memory
        config.train.frozen_dtype = "bfloat16"
        config.train.accumulate = PARTS[gpu]
        config.data.workers = 8
    if gpu == "h100x8":
        config.model.remat = config.model.early.remat = False  # there is room
        config.fsdp_frozen = False
        config.train.batch_size = 8
        config.train.steps = 40_000
    return config
