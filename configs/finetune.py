"""A trained or converted model goes on learning from a few pictures of one's own.

    dinov3seg train --config finetune:MODEL --config.data.train.root=PICTURES
    dinov3seg eval --config finetune:runs/finetune --config.data.train.root=PICTURES --checkpoint runs/finetune

MODEL is the folder of a run or of converted weights (several with commas between them); `--config finetune` with
`--config.init_from=MODEL` is the same. The model's own options, and how it segments, are taken from that folder.

PICTURES holds `images/train`, `masks/train` and `classes.json` (docs/data.md). For annotations in COCO's format add
`--config.data.train.name=coco_json`, and for masks in colours `colour_masks`. A fifth of the pictures is held out to
be scored on. docs/finetune.md leads through it.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config
from dinov3seg_jax.store.starting import starting_config


def get_config(init_from: str = "") -> ConfigDict:
    """A thousand steps at a quarter of the model's own rate, with low-rank updates of its towers."""
    begun = starting_config(init_from)
    config = default_config()
    config.workdir = "runs/finetune"
    config.init_from = init_from
    config.model = begun.model
    config.inference = begun.inference
    config.zero_shot = begun.zero_shot

    config.data.train.name = "folder"
    config.data.validation = 0.2
    crop = begun.data.crop_size
    config.data.crop_size = crop
    config.data.short_side = (crop, max(crop, begun.inference.image_size))  # from close by to as it will be asked

    config.train.steps = 1000
    config.train.batch_size = 4
    config.train.learning_rate = begun.train.learning_rate / 4
    config.train.warmup_steps = 50
    config.train.weight_decay = begun.train.weight_decay
    config.train.beta2 = begun.train.beta2
    config.train.clip_norm = begun.train.clip_norm
    config.train.finetune = "lora"
    config.train.checkpoint_every = 100
    config.train.eval_every = 100  # on what is held out; the best step is kept
    return config
