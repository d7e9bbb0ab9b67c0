"""SAM's image encoder against the official one, per block."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import sam
from dinov3seg_jax.models.sam import SamEncoder, relative_positions
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_first, channels_last, described, filled, run, sam_config, section

TOLERANCE = 1e-5
TABLE_TOLERANCE = 1e-6


@functools.cache
def load(path):
    return arrays(path)


def per_block(encoder: SamEncoder, image: jax.Array) -> dict[str, Any]:
    """What the file calls it -> ours."""
    config = encoder.config
    x = encoder.patch_embed(image)
    found = {"patch_embed": x}
    x = x + encoder._positions(*x.shape[1:3])
    seen = {"window_blocks": 0, "global_blocks": 0}
    for number in range(config.depth):
        kind = "global_blocks" if number in config.global_blocks else "window_blocks"
        graph, state = nnx.split(getattr(encoder, kind))
        block = nnx.merge(graph, jax.tree.map(lambda leaf, index=seen[kind]: leaf[index], state))
        x = found[f"blocks.{number}"] = block(x)
        seen[kind] += 1
    found["neck.0"] = encoder.neck_conv1(x).transpose(0, 3, 1, 2)
    found["neck.1"] = encoder.neck_norm1(encoder.neck_conv1(x)).transpose(0, 3, 1, 2)
    return found


@pytest.mark.parametrize("path", fixtures("sam_image_encoder"), ids=lambda path: path.stem)
def test_encoder(path, compare):
    values = load(path)
    config = sam_config(described(values, "config"))
    encoder = filled(lambda: SamEncoder(config, rngs=nnx.Rngs(0)), section(values, "w/"), sam.rules(config))
    image = channels_last(values["in/image"])

    neck, early, middle = run(encoder, lambda encoder, image: encoder(image), image)
    blocks = run(encoder, per_block, image[:1])
    for name, official in section(values, "mid/").items():
        if name in blocks:
            compare(name, blocks[name][: len(official)], official, TOLERANCE, relative=True)
    compare("embedding", channels_first(neck), values["out/embedding"], TOLERANCE, relative=True)
    thirds = (max(config.depth // 3, 1), max(2 * config.depth // 3, 1))
    for ours, number in zip((early, middle), thirds, strict=True):
        compare(f"guidance after {number}", ours[:1], blocks[f"blocks.{number - 1}"], TOLERANCE, relative=True)


TABLES = [
    pytest.param(path, case, sizes, id=f"{path.stem}-{case}")
    for path in fixtures("sam_rel_pos")
    for case, sizes in described(load(path), "config").items()
]


@pytest.mark.parametrize(("path", "case", "sizes"), TABLES)
def test_relative_positions(path, case, sizes, compare):
    values = load(path)
    ours = relative_positions(jnp.asarray(values[f"{case}/in/table"]), sizes["q_size"], sizes["k_size"])
    compare("R", ours, values[f"{case}/out/R"], TABLE_TOLERANCE, relative=True)
