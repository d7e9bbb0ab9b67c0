"""The paper's five benchmarks, with its local-global inference: one table of ours and the published scores.

    dinov3seg eval --config benchmarks --checkpoint runs/coco_stuff --config.data.eval.root=DATASETS

DATASETS holds a folder for each data set, as `dinov3seg prepare` makes it (docs/data.md), under its
name in `dinov3seg_jax/data/benchmark_sets.py`; or the tree that DETECTRON2_DATASETS names for PyTorch tools.
Without the option, that environment variable is taken. Other sets are chosen by --config.benchmarks=ade20k_150,voc_20b.

The model is the checkpoint's: what is set here is how it is asked. The paper reports A-847 20.09, PC-459 27.80,
A-150 42.19, PC-59 64.27, PAS-20 97.86 mIoU.
"""

import os

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config
from dinov3seg_jax.data.benchmark_sets import FIVE


def get_config() -> ConfigDict:
    """The paper's inference, §7, spelled out: these are the defaults."""
    config = default_config()
    config.workdir = "runs/benchmarks"
    config.benchmarks = FIVE
    config.data.eval.split = "eval"
    config.data.eval.root = os.environ.get("DETECTRON2_DATASETS", "")

    config.inference.mode = "local_global"
    config.inference.fusion = "features"
    config.inference.resize = "square"
    config.inference.image_size = 640
    config.inference.window = 384
    config.inference.stride = 128
    config.inference.templates = ("A photo of a {} in the scene",)
    return config
