"""CAT-Seg: its training, and the six data sets that its released models are scored on.

    dinov3seg eval --config catseg --checkpoint weights/catseg --config.data.eval.root=DATASETS
    dinov3seg train --config catseg --config.init_from=weights/clip --config.data.train.root=DATASETS

The first command scores a converted model_base.pth or model_large.pth, asked as its folder says: as it was published.
CAT-Seg reports for its L: A-847 16.0, PC-459 23.8, A-150 37.9, PC-59 63.3, PAS-20 97.0, PAS-20b 82.5 mIoU, and for its
B: 12.0, 19.0, 31.8, 57.5, 94.6, 77.3. The second trains the L from OpenAI's CLIP (`dinov3seg convert clip`) on
COCO-Stuff: 4 crops a step, 80,000 steps. The release cuts 384 pixels and resizes them to 336; here the crops have 336.
"""

import os

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.data.benchmark_sets import FIVE
from dinov3seg_jax.models import presets


def get_config() -> ConfigDict:
    """CAT-Seg L as it was trained, and its six sets."""
    config = default_config()
    config.workdir = "runs/catseg"
    config.model = to_config_dict(presets.CATSEG_L)
    config.benchmarks = (*FIVE, "voc_20b")
    config.data.eval.split = "eval"
    config.data.eval.root = os.environ.get("DETECTRON2_DATASETS", "")

    config.data.train.name = "coco_stuff_171"
    config.data.crop_size = 336
    config.data.short_side = (336, 336)
    config.train.ignored = "negative"

    config.inference.fusion = "logits"
    config.inference.resize = "catseg"
    config.inference.stride = 256
    return config
