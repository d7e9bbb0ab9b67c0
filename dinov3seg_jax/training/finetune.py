"""Which parameters train (§1). Frozen ones have no gradient and no optimiser state: they are another tree."""

import re

import jax.numpy as jnp

from dinov3seg_jax.config import ModelConfig, TrainConfig
from dinov3seg_jax.models.graph import FrozenBlocks
from dinov3seg_jax.models.low_rank import UPDATED, describe_updates
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters

TOWERS = r"(vision|text)/"
NEVER = r".*/(periods|mask_token)"
BLOCKS = r"(vision(/backbone)?|text)/blocks/"

# What trains of the two towers, by full match on the parameter's name.
TOWER_RULES = {
    "none": r"(?!)",
    "attention": UPDATED,
    "lora": rf"{TOWERS}.*/low_rank/(down|up)",
    "last_blocks": rf"{BLOCKS}.*|(vision/backbone|vision|text)/(norm|projection)/.*|vision/head/.*|text/logit_scale",
    "backbone": r"vision/backbone/.*",
    "head": r"vision/head/.*|text/(?!token_embedding).*",
    # Not the table of tokens: most of its rows are met in no training name, and weight decay would wear them away.
    "full": rf"{TOWERS}(?!token_embedding).*",
}


def frozen_blocks(model: ModelConfig, train: TrainConfig) -> FrozenBlocks:
    """How many of the first blocks of each part get no gradient."""
    sam = 0 if is_trainable("sam/", train) else model.sam.depth
    if train.finetune not in ("none", "last_blocks"):
        return FrozenBlocks(sam=sam)
    trained = train.finetune_blocks if train.finetune == "last_blocks" else 0
    vision, text = (max(tower.depth - trained, 0) for tower in (model.vision, model.text))
    return FrozenBlocks(vision, text, sam)


def is_trainable(name: str, train: TrainConfig) -> bool:
    """Whether a parameter trains, wholly or in its last blocks."""
    if re.fullmatch(NEVER, name):
        return False
    if re.match(TOWERS, name):
        return re.fullmatch(TOWER_RULES[train.finetune], name) is not None
    if train.objective != "masks":
        return False
    return train.train_spe if name.startswith("sam/") else True


def updates_of(described: AbstractParameters, train: TrainConfig) -> AbstractParameters:
    """What training adds to the parameters of a model: the low-rank updates of "lora"."""
    return describe_updates(described, train.lora_rank) if train.finetune == "lora" else {}


def partition(parameters: Parameters, model: ModelConfig, train: TrainConfig) -> tuple[Parameters, Parameters]:
    """Split into (trainable, frozen). A stack of blocks that trains in its last ones is cut and appears in both.

    Frozen kernels take `train.frozen_dtype`: with bfloat16 arithmetic they would be rounded to it anyway, so half the
    memory costs nothing. All else is float32: what trains would lose its small steps, and vectors their precision.
    """
    trainable, frozen = {}, {}
    first = frozen_blocks(model, train)
    cuts = {"vision/backbone/blocks/": first.vision, "vision/blocks/": first.vision, "text/blocks/": first.text}
    for name, value in parameters.items():
        cut = next((cut for prefix, cut in cuts.items() if name.startswith(prefix)), 0)
        if not is_trainable(name, train):
            frozen[name] = value
        elif cut:
            frozen[name], trainable[name] = value[:cut], value[cut:]
        else:
            trainable[name] = value
    kept = {
        name: value.astype(jnp.dtype(train.frozen_dtype)) if name.endswith("/kernel") else value
        for name, value in frozen.items()
    }
    return {name: value for name, value in trainable.items() if value.size}, kept


def join(trainable: Parameters, frozen: Parameters) -> Parameters:
    """Undo `partition`."""
    both = trainable.keys() & frozen.keys()
    return {**frozen, **trainable} | {name: jnp.concatenate([frozen[name], trainable[name]]) for name in both}
