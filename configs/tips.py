"""The paper's head on the towers of TIPSv2 L/14, in place of dinov3.txt's.

    dinov3seg train --config tips --config.init_from=weights/tips,weights/sam --config.data.train.root=DATASETS

TIPSv2 may be downloaded by anyone. Nobody has published a score of this training. A patch has 14 pixels here, so crops,
windows and strides have as many patches as in the paper, and seven eighths of its pixels.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.models import presets


def get_config() -> ConfigDict:
    """The paper's training on COCO-Stuff, but for the towers."""
    config = default_config()
    config.workdir = "runs/tips"
    config.model.towers = "tips"
    config.model.vision = to_config_dict(presets.TIPS_VISION["tipsv2_l14"])
    config.model.text = to_config_dict(presets.TIPS_TEXT["tipsv2_l14"])
    config.model.remat = True
    config.data.train.name = "coco_stuff_171"
    config.data.eval.name = "coco_stuff_171"
    config.data.crop_size = 336
    config.data.short_side = (336, 336)

    config.zero_shot.patch_features = "head"  # the notebook's recipe, for the towers alone
    config.zero_shot.short_side = 448
    config.zero_shot.window = 448
    config.zero_shot.stride = 336
    config.zero_shot.templates = "tcl_9"

    config.inference.image_size = 560
    config.inference.window = 336
    config.inference.stride = 112
    return config
