"""What converted weights say of their zero-shot recipe, against what a recipe file and a command line say."""

import pytest

from dinov3seg_jax.config import Config, ModelConfig, ZeroShotConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.load import with_own_recipe
from dinov3seg_jax.inference.zero_shot import ZeroShotSegmenter
from dinov3seg_jax.store.converted import Manifest, write_manifest

OWN = {"patch_features": "head", "short_side": 448, "window": 448, "stride": 336, "templates": "tcl_9"}


def test_the_command_line_counts_most_then_a_file_then_the_weights(tmp_path):
    arrays = {name: {"shape": [1], "sha256": ""} for name in ("vision/a", "text/a")}
    write_manifest(tmp_path, Manifest("tips", "custom", 1, [], [], {"towers": "tips"}, arrays, {"zero_shot": OWN}))
    assert with_own_recipe(Config(), tmp_path, False, []).zero_shot == ZeroShotConfig(**OWN)
    of_file = Config(zero_shot=ZeroShotConfig(mode="whole", window=384))
    found = with_own_recipe(of_file, tmp_path, False, ["zero_shot.window=384"]).zero_shot
    assert found == ZeroShotConfig(**OWN | {"mode": "whole", "window": 384})
    write_manifest(tmp_path, Manifest("dinotxt", "custom", 1, [], [], {}, arrays))
    assert with_own_recipe(of_file, tmp_path, False, []) == of_file


def test_clip_alone():
    with pytest.raises(UserError, match="CLIP's towers alone do not segment"):
        ZeroShotSegmenter(Config(model=ModelConfig(towers="clip")), {})
