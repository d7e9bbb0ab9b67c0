"""Options that contradict each other are two names in one sentence, before anything is built."""

import pytest

from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.costs.dry_run import dry_run
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.training.program import refuse_misfits

PROBE = ("model.linear.classes=3", "model.vision.depth=2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.vision.heads=5",), "model.vision.dim 64 cannot be shared out over model.vision.heads 5; make it a"),
        (("model.text.heads=5",), "model.text.dim .* cannot be shared out over model.text.heads 5"),
        (("model.late.heads=5",), "model.late.dim .* cannot be shared out over model.late.heads 5"),
        (("model.vision.dim=66", "model.vision.heads=2"), "leaves 33 for each head, and .* a multiple of 4"),
        (("data.crop_size=100",), "data.crop_size 100 is no multiple of the 16 pixels .*; set it to 96"),
        (("data.crop_size=8",), "data.crop_size 8 is no multiple of the 16 pixels .*; set it to 16"),
        (("train.view_size=100",), "train.view_size 100 is no multiple of the 16 pixels .*; set it to 96"),
        (("train.negatives=unbiased", "train.hardest_classes=9"), "'unbiased' needs classes drawn evenly, and train.h"),
        (
            ("model.float32_residual=all", "model.late.kernel=fused"),
            "'fused' adds up in model.dtype, and model.float32_residual is 'all'; set --config.model.late.kernel=xla",
        ),
        (
            ("model.float32_residual=all", "model.late.class_kernel=fused"),
            "'fused' adds up in model.dtype, .* set --config.model.late.class_kernel=xla or",
        ),
        (("train.accumulate=3",), "train.batch_size 16 cannot be run in train.accumulate=3 equal parts"),
        (("train.finetune=lora", "train.lora_rank=65"), "train.lora_rank 65 is more than the towers are wide"),
        (
            ("data.mix=[{'name': 'painted_scenes'}]", "train.hardest_classes=0", "train.negatives=unbiased"),
            "needs classes drawn from one list, and data.mix has several",
        ),
        ((*PROBE, "data.mix=[{'name': 'painted_scenes'}]"), "data.mix needs names, of which the linear head has none"),
        ((*PROBE, "train.class_weights=inverse"), "train.class_weights=inverse weighs names, which the linear head"),
        (
            ("train.alignment_by=captions", "model.towers=clip"),
            "captions train dinov3.txt's towers, .* model.towers is clip; set --config.train.alignment_by=masks",
        ),
        (
            ("train.alignment_by=captions", "data.mix=[{'name': 'painted_scenes'}]"),
            "captions need the names of one data set",
        ),
        (("train.objective=captions", "train.accumulate=2"), "captions are told apart within a batch, which"),
        (("train.objective=patches", "data.crop_size=32"), "data.crop_size 32 leaves no part .*; set it to 48 or more"),
        (("model.spe=sam", "model.sam.depth=2"), r"global_blocks is \(2,\), but .* model.sam.depth is 2; give incr"),
        ((*PROBE, "model.linear.layers=(0,2)"), r"layers is \(0, 2\), but .* model.vision.depth is 2; give increasing"),
        ((*PROBE, "model.linear.layers=(1,0)"), r"layers is \(1, 0\), but"),
        ((*PROBE, "model.linear.layers=(0,0)"), r"layers is \(0, 0\), but"),
    ],
)
def test_options_that_do_not_fit_together(overrides, message):
    with pytest.raises(UserError, match=message):
        dry_run(load_config("quickstart", overrides))


@pytest.mark.parametrize("overrides", [("model.spe=vision", "model.sam.heads=5"), (*PROBE, "model.late.heads=5")])
def test_parts_that_are_not_there_need_not_fit(overrides):
    refuse_misfits(load_config("quickstart", overrides))


@pytest.mark.parametrize(
    "recipe",
    [
        *("ablation:full", "ade", "catseg", "catseg:b", "coco_stuff", "linear_ade"),
        *("pod:vit7b", "pod:batch=64,anyup", "quickstart"),
    ],
)
def test_the_recipes_fit(recipe):
    refuse_misfits(load_config(recipe))


def test_cafedino_is_not_trained():
    with pytest.raises(UserError, match="CAFe-DINO is not trained here"):
        refuse_misfits(load_config("quickstart", ["model.cafedino.layers=6"]))
