"""TIPSv2's vision tower against the official one, image by image."""

import functools

import jax
import numpy as np
import pytest

from dinov3seg_jax.models.blocks import run_stack
from dinov3seg_jax.models.tips_vision import TipsVision, resize_positions
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_last, described, run, section
from tests.parity.tips import vision_tower

TOLERANCE = 1e-5


@functools.cache
def load(path):
    return arrays(path)


CASES = [
    pytest.param(path, case, image, id=f"{path.stem}-{case}-{image}")
    for path in fixtures("tips_vision")
    for case, options in described(load(path), "config").items()
    for image in options["images"]
]


def everything(tower: TipsVision, images: jax.Array) -> dict[str, jax.Array]:
    """What the file calls it -> ours."""
    p, depth = tower.config.patch_size, tower.config.depth
    tokens = tower.embed(images)
    grid = resize_positions(tower.positions[...], images.shape[1] // p, images.shape[2] // p)
    positions = jax.numpy.concatenate([tower.cls_position[None], grid.reshape(-1, grid.shape[-1])])[None]
    after = run_stack(tower.blocks, tokens, lambda block, x: block(x), stop=depth, every=True)
    found = {f"mid/block{number}": x for number, x in enumerate(after)}
    features, ends = tower(images), tower.tokens(images)
    return found | {
        "mid/tokens_in": tokens,
        "mid/pos_embed": positions,
        "out/cls_first": features.cls,
        "out/cls_second": ends.mixed[:, 1],
        "out/patch": features.backbone_patches,
        "out/value_patch": features.patches,
    }


@pytest.mark.parametrize(("path", "case", "image"), CASES)
def test_vision_tower(path, case, image, compare):
    values = section(load(path), f"{case}/")
    tower = vision_tower(described(load(path), "config")[case], values)
    ours = run(tower, everything, channels_last(values[f"in/{image}"]))
    for part in ("mid", "out"):
        for name, official in section(values, f"{part}/{image}/").items():
            if not name.startswith("scenic_"):  # of another GELU
                compare(name, np.asarray(ours[f"{part}/{name}"]), official, TOLERANCE, relative=True)
