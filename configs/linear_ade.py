"""DINOv3's linear evaluation on ADE20K: a linear head on the frozen backbone.

    dinov3seg convert dinov3 --source dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth --out weights/vitl16
    dinov3seg train --config linear_ade --config.init_from=weights/vitl16 --config.data.train.root=DATASETS
    dinov3seg eval --config linear_ade --config.data.eval.root=DATASETS --checkpoint runs/linear_ade

DATASETS is as for `configs/ade.py`. Another backbone needs its sizes in `config.model.vision` (see
`dinov3seg_jax/models/presets.py`). `docs/zero_shot.md` lists what is ours in the recipe. It was not run with the
released weights, to which we had no access.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config


def get_config() -> ConfigDict:
    """The DINOv3 repository's recipe, on one batch of 16 for its eight of 2."""
    config = default_config()
    config.workdir = "runs/linear_ade"
    config.model.linear.classes = 150
    config.model.vision.head_blocks = 0
    config.data.train.name = "ade20k_150"
    config.data.eval.name = "ade20k_150"
    config.data.crop_size = 512
    config.data.short_side = (256, 1023)
    config.data.crop_tries = 10

    config.train.finetune = "none"
    config.train.batch_size = 16
    config.train.steps = 40_000
    config.train.schedule = "one_cycle"
    config.train.warmup_steps = 1500
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 1e-3
    config.train.decay_all = True
    config.train.clip_norm = 35.0

    config.inference.mode = "slide"
    config.inference.resize = "short_side"
    config.inference.image_size = 512
    config.inference.window = 512
    config.inference.stride = 341
    return config
