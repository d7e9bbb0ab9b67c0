"""The paper's training on pods: bfloat16 arithmetic, the towers' blocks recomputed, the head's as TPU kernels.

    dinov3seg plan --config pod --topology v5e:16x16
    dinov3seg plan --config pod:vit7b --topology v5p:4x4x4

The paper's batch is 4. A pod needs a larger one: here a crop for each chip of v5e:16x16, to be set for others
(docs/pods.md has what fits). The learning rate is the paper's; how it should follow the batch is not known.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.presets import VISION

BACKBONES = {"vitl": "vitl16", "vit7b": "vit7b16"}


def get_config(backbone: str = "vitl") -> ConfigDict:
    """The run with one of BACKBONES."""
    if backbone not in BACKBONES:
        raise UserError(f"configs/pod.py knows {', '.join(BACKBONES)} and not '{backbone}'; name one of them")
    config = default_config()
    config.workdir = f"runs/pod/{backbone}"
    config.data.train.name = "coco_stuff_171"
    config.data.eval.name = "coco_stuff_171"
    config.model.vision = to_config_dict(VISION[BACKBONES[backbone]])
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.model.late.kernel = "fused"
    config.train.frozen_dtype = "bfloat16"
    config.fsdp_frozen = backbone == "vit7b"  # the others' frozen parameters are 2.2 GB: every chip can hold them
    config.train.batch_size = 256
    config.data.workers = 8
    return config
