"""The paper's head on the towers of CLIP ViT-L/14 at 336 pixels, in place of dinov3.txt's.

    dinov3seg train --config clip --config.init_from=weights/clip,weights/sam --config.data.train.root=DATASETS

The paper compares backbones so: with CLIP ViT-L its method has a mean of 48.83 mIoU on the five sets, with
dinov3.txt 50.44. A patch has 14 pixels here, so crops,
windows and strides have as many patches as in the paper, and seven eighths of its pixels.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.models import presets


def get_config() -> ConfigDict:
    """The paper's training on COCO-Stuff, but for the towers."""
    config = default_config()
    config.workdir = "runs/clip"
    config.model.towers = "clip"
    config.model.vision = to_config_dict(presets.CLIP_VISION["clip_vitl14_336"])
    config.model.text = to_config_dict(presets.CLIP_TEXT["clip_vitl14_336"])
    config.model.remat = True
    config.data.train.name = "coco_stuff_171"
    config.data.eval.name = "coco_stuff_171"
    config.data.crop_size = 336
    config.data.short_side = (336, 336)

    config.inference.image_size = 560
    config.inference.window = 336
    config.inference.stride = 112
    return config
