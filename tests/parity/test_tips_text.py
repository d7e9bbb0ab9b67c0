"""TIPSv2's text tower against the official one."""

import functools

import jax
import numpy as np
import pytest

from dinov3seg_jax.models.blocks import run_stack
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.tips_text import TipsText, key_bias, sinusoids
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, described, run, section
from tests.parity.tips import text_tower

TOLERANCE, SMALL_TOLERANCE, SINUSOID_TOLERANCE = 5e-6, 3e-5, 2e-5


@functools.cache
def load(path):
    return arrays(path)


CASES = [
    pytest.param(path, case, id=f"{path.stem}-{case}")
    for path in fixtures("tips_text")
    for case in described(load(path), "config")
]


def everything(tower: TipsText, tokens: jax.Array, padding: jax.Array) -> dict[str, jax.Array]:
    """What the file calls it -> ours."""
    embedded, bias = tower.embed(tokens), key_bias(padding)
    depth = tower.config.depth
    after = run_stack(tower.blocks, embedded, lambda block, x: block(x, bias), stop=depth, every=True)
    found = {f"mid/block{number}": x for number, x in enumerate(after)}
    pooled = tower(tokens)
    return found | {
        "mid/embedded": embedded,
        "mid/ln_final": tower.norm(after[-1]),
        "out/pooled": pooled,
        "out/normalized": l2_normalize(pooled),
    }


@pytest.mark.parametrize(("path", "case"), CASES)
def test_text_tower(path, case, compare):
    values, options = section(load(path), f"{case}/"), described(load(path), "config")[case]
    if "rows" in options:
        for name, official in section(values, "out/pe_").items():
            ours = sinusoids(max(options["rows"]) + 1, int(name))[options["rows"]]
            compare(f"positions {name}", ours, official, SINUSOID_TOLERANCE, relative=True)
        return
    padding = values["in/paddings"].astype(bool)
    ours = run(text_tower(options, values), everything, values["in/ids"], padding)
    tolerance = SMALL_TOLERANCE if options["small_activations"] else TOLERANCE
    for part in ("mid", "out"):
        for name, official in section(values, f"{part}/").items():
            if not name.startswith("scenic_"):  # of another epsilon
                found = np.asarray(ours[f"{part}/{name}"])
                found = np.where(padding[..., None], 0, found) if part == "mid" else found
                compare(name, found, official, tolerance, relative=True)
