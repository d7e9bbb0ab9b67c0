"""CAT-Seg's training, as its code has it: configs/vitl_336.yaml, vitb_384.yaml and config.yaml at commit 6d3a188."""

import pytest

from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.training.finetune import is_trainable


@pytest.mark.parametrize(("size", "seen"), [("l", 336), ("b", 384)])
def test_options(size, seen):
    config = load_config(f"catseg:{size}")
    data, train = config.data, config.train
    assert (train.view_size or data.crop_size) == seen == 24 * config.model.vision.patch_size
    assert (data.crop_size, data.short_side) == (384, (384, 384))
    assert (train.steps, train.batch_size, train.learning_rate, train.warmup_steps) == (80_000, 4, 2e-4, 0)
    assert (train.weight_decay, train.decay_biases, train.decay_all, train.clip_norm) == (1e-4, True, False, 0.01)
    assert (train.encoder_lr_scale, train.ignored, train.schedule) == (0.01, "negative", "cosine")
    late = config.model.late
    assert (late.layers, late.training_pooling, late.pooling, late.pad_classes) == (2, 2, 1, 256)


@pytest.mark.parametrize(("size", "of_clip", "in_all"), [("l", 64_487_424, 70_270_177), ("b", 20_447_232, 25_115_873)])
def test_what_trains_are_the_numbers_of_its_released_files(size, of_clip, in_all):
    """All queries' and values' matrices of both towers, no bias, no position; and all that is no tower."""
    config = load_config(f"catseg:{size}")
    _, described = build(config.model)
    trained = {name: leaf.size for name, leaf in described.items() if is_trainable(name, config.train)}
    towers = {name: count for name, count in trained.items() if name.startswith(("vision/", "text/"))}
    assert sum(towers.values()) == of_clip
    assert sum(trained.values()) == in_all


def test_an_unknown_size():
    with pytest.raises(UserError, match="knows l, b and not 'h'; name one of them"):
        load_config("catseg:h")
