"""Rotary tables against the official ones."""

import functools

import pytest

from dinov3seg_jax.models.rope import patch_centres, rope_tables
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, described

TOLERANCE = 1e-6


@functools.cache
def load(path):
    return arrays(path)


def described_cases(path):
    return described(load(path), "meta/config_json")["cases"]


CASES = [
    pytest.param(path, case, id=f"{path.stem}-{case['name']}")
    for path in fixtures("rope_tables")
    for case in described_cases(path)
]
AUGMENTED = [path for path in fixtures("rope_tables") if "in/aug/periods" in load(path)]


@pytest.mark.parametrize(("path", "case"), CASES)
def test_tables(path, case, compare):
    values, name = load(path), case["name"]
    centres = patch_centres(case["H"], case["W"], case["normalize_coords"])
    sin, cos = rope_tables(values[f"in/{name}/periods"], centres)
    compare("sin", sin, values[f"out/{name}/sin"], TOLERANCE)
    compare("cos", cos, values[f"out/{name}/cos"], TOLERANCE)


@pytest.mark.parametrize("path", AUGMENTED, ids=lambda path: path.stem)
def test_tables_of_moved_centres(path, compare):
    """As the official training code draws them: shifted, jittered and rescaled."""
    values = load(path)
    shift, jitter, scale = (values[f"in/aug/{name}"] for name in ("shift_hw", "jitter_hw", "rescale"))
    sizes = described(values, "meta/config_json")["aug"]
    centres = (patch_centres(sizes["H"], sizes["W"]) + shift) * jitter * scale
    sin, cos = rope_tables(values["in/aug/periods"], centres)
    compare("sin", sin, values["out/aug/sin"], TOLERANCE)
    compare("cos", cos, values["out/aug/cos"], TOLERANCE)
