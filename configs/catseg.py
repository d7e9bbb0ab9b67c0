"""CAT-Seg: its training, and the six data sets that its released models are scored on.

    dinov3seg eval --config catseg --checkpoint weights/catseg --config.data.eval.root=DATASETS
    dinov3seg train --config catseg --config.init_from=weights/clip --config.data.train.root=DATASETS
    dinov3seg train --config catseg:b --config.init_from=weights/clip_b --config.data.train.root=DATASETS

The first command scores a converted model_base.pth or model_large.pth, asked as its folder says: as it was published.
CAT-Seg reports for its L: A-847 16.0, PC-459 23.8, A-150 37.9, PC-59 63.3, PAS-20 97.0, PAS-20b 82.5 mIoU, and for its
B: 12.0, 19.0, 31.8, 57.5, 94.6, 77.3. The others train the L or the B from OpenAI's CLIP (`dinov3seg convert clip`) on
COCO-Stuff, as CAT-Seg's code at commit 6d3a188 does; its name for each option stands beside ours.

What differs: new layers begin with a deviation of 1 / sqrt(fan-in) and biases of 0, where PyTorch's deviation is
smaller by sqrt(3) and its biases are drawn; Detectron2 puts upright and lying pictures into batches of their own. Its
code evaluates every 5,000 steps, in one view and pooled as in training. For that, without the pooling, add
--config.train.eval_every=5000 --config.train.eval_view=whole --config.data.eval.root=DATASETS.
"""

import os

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.data.benchmark_sets import FIVE
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models import presets

MODELS = {"l": presets.CATSEG_L, "b": presets.CATSEG_B}


def get_config(size: str = "l") -> ConfigDict:
    """CAT-Seg L or B as it was trained, and its six sets.

    Raises:
        UserError: there is no such size.
    """
    if size not in MODELS:
        raise UserError(f"configs/catseg.py knows {', '.join(MODELS)} and not '{size}'; name one of them")
    config = default_config()
    config.workdir = "runs/catseg" if size == "l" else f"runs/catseg_{size}"
    config.model = to_config_dict(MODELS[size])  # POOLING_SIZES [2, 2] is late.training_pooling
    config.model.dtype = "float32"  # its matrix products are TF32, which is also JAX's default on such GPUs
    config.benchmarks = (*FIVE, "voc_20b")
    config.data.eval.name = "coco_stuff_171"
    config.data.eval.split = "eval"
    config.data.eval.root = os.environ.get("DETECTRON2_DATASETS", "")

    config.data.train.name = "coco_stuff_171"
    config.data.crop_size = 384  # INPUT.CROP.SIZE; what is missing is padded with grey, ignored
    config.data.short_side = (384, 384)  # INPUT.MIN_SIZE_TRAIN, the long side up to 1333
    config.data.crop_tries = 1  # SINGLE_CATEGORY_MAX_AREA 1.0: the first crop is taken
    config.data.color_jitter = True  # INPUT.COLOR_AUG_SSD, before the flip
    config.data.flip = True
    config.data.classes_per_image = 0  # all 171 names, in each step
    config.inference.templates = ("A photo of a {} in the scene",)  # PROMPT_ENSEMBLE_TYPE "single"; no synonyms

    config.train.view_size = 336 if size == "l" else 0  # CLIP's resolution; the loss is at 384 x 384
    config.train.ignored = "negative"  # the loss is a mean over all pixels; those without a label are of no class
    config.train.steps = 80_000  # SOLVER.MAX_ITER
    config.train.batch_size = 4  # SOLVER.IMS_PER_BATCH, on 4 GPUs together
    config.train.learning_rate = 2e-4  # SOLVER.BASE_LR
    config.train.schedule = "cosine"  # WarmupCosineLR, down to 0
    config.train.warmup_steps = 0  # SOLVER.WARMUP_ITERS
    config.train.finetune = "attention"  # CLIP_FINETUNE: q_proj and v_proj weights of both towers; no bias, no position
    config.train.encoder_lr_scale = 0.01  # SOLVER.CLIP_MULTIPLIER; there is no other backbone to multiply
    config.train.weight_decay = 1e-4  # SOLVER.WEIGHT_DECAY
    config.train.decay_biases = True  # WEIGHT_DECAY_NORM is 0, and all else decays
    config.train.beta2 = 0.999  # PyTorch's AdamW
    config.train.clip_norm = 0.01  # CLIP_GRADIENTS "full_model", over all that trains
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 5000  # Detectron2's CHECKPOINT_PERIOD

    config.inference.fusion = "logits"
    config.inference.resize = "catseg"
    config.inference.stride = 256
    return config
